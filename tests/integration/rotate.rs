//! SVIDs and the CA rotate under a verifier that always holds something valid.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::entry;
use vane_tests::process::{Process, free_port, metric};
use vane_tests::workload::verify;
use vane_tests::world::{Options, World, own_selector, spiffe_id};
use vane_wire::workload::X509svidResponse;

const ENTRIES: usize = 64;
const ROTATIONS: usize = 16;
const AHEAD: Duration = Duration::from_millis(500);

/// What the verifier knows of one identity.
struct Held {
    serial: Vec<u8>,
    not_after: SystemTime,
    rotations: usize,
}

/// 64 entries x 16 rotations at a TTL of 6 s while the CA, which lives 40 s, rotates as well:
/// whenever something new arrives, what was held until then was still valid half a second ahead.
///
/// Proves: WAPI-09, WAPI-25, WAPI-39, TDB-01, TDB-05, FED-04.
#[tokio::test]
async fn every_identity_is_valid_half_a_second_ahead_through_sixteen_rotations() {
    let options = Options::default()
        .server("ca_ttl = \"40s\"")
        .server("default_x509_svid_ttl = \"6s\"")
        .server("agent_ttl = \"20s\"");
    let ops = free_port();
    let world = World::with(Options {
        agent_tables: format!("[telemetry]\nops_address = \"127.0.0.1:{ops}\"\n"),
        ..options
    })
    .await;
    let agent = world.agent("agent").await;
    let own = own_selector();
    let entries = (0..ENTRIES)
        .map(|n| entry(&spiffe_id(&format!("/w/{n:02}")), &agent.id, &[&own]))
        .collect();
    let created = world.admin().await.create_all(entries).await;
    assert!(created.iter().all(|result| {
        result
            .status
            .as_ref()
            .is_some_and(|status| status.code == 0)
    }));

    let mut stream = agent.workload().await.served().await;
    let first = stream.until(|ids| ids.len() == ENTRIES).await.unwrap();
    let order = order_of(&first);
    let mut held = HashMap::new();
    let mut authorities = std::collections::BTreeSet::new();
    let mut readings = Vec::new();
    take(&first, &mut held, &mut authorities);
    while held.values().any(|one| one.rotations < ROTATIONS) {
        let message = stream.next().await.unwrap();
        assert_eq!(order_of(&message), order, "rotation does not reorder");
        take(&message, &mut held, &mut authorities);
        readings.push(Reading::of(&agent.process, ops).await);
    }
    assert!(authorities.len() >= 2, "the CA rotated meanwhile");
    nothing_grows(&readings, authorities.len());
}

/// What the agent holds after a message.
struct Reading {
    rss: u64,
    descriptors: usize,
    tasks: u64,
}

impl Reading {
    async fn of(agent: &Process, ops: u16) -> Self {
        Self {
            rss: agent.rss(),
            descriptors: agent.descriptors(),
            tasks: metric(ops, "vane_agent_tasks").await,
        }
    }
}

/// The median of five readings from the 100th message on (or from the first quarter, where a
/// fast machine coalesces so that there are fewer) against that of the last five.
fn nothing_grows(readings: &[Reading], authorities: usize) {
    let from = if readings.len() >= 200 {
        100
    } else {
        readings.len() / 4
    };
    let median = |part: &[Reading], what: fn(&Reading) -> u64| {
        let mut values: Vec<u64> = part.iter().map(what).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let (early, late) = (&readings[from..from + 5], &readings[readings.len() - 5..]);
    let (before, after) = (median(early, |one| one.rss), median(late, |one| one.rss));
    println!(
        "{} messages, {authorities} CAs, agent RSS {before} -> {after}",
        readings.len()
    );
    assert!(
        after <= before + (before / 50).max(1 << 20),
        "agent RSS {before} -> {after}"
    );
    // A batch that is being issued, or a reading's own connection, is there for a moment, and a
    // connection that is replaced is away for one: what most of fifty readings say is what stays.
    let steady = |part: &[Reading], what: fn(&Reading) -> u64| {
        let mut counts = std::collections::BTreeMap::<u64, usize>::new();
        for value in part.iter().map(what) {
            *counts.entry(value).or_default() += 1;
        }
        counts
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(value, _)| value)
    };
    let (early, late) = (&readings[from..from + 50], &readings[readings.len() - 50..]);
    let descriptors = |one: &Reading| one.descriptors as u64;
    assert_eq!(
        steady(late, descriptors),
        steady(early, descriptors),
        "descriptors"
    );
    assert_eq!(
        steady(late, |one| one.tasks),
        steady(early, |one| one.tasks),
        "tasks"
    );
}

fn order_of(message: &X509svidResponse) -> Vec<String> {
    message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.clone())
        .collect()
}

fn take(
    message: &X509svidResponse,
    held: &mut HashMap<String, Held>,
    authorities: &mut std::collections::BTreeSet<Vec<u8>>,
) {
    let now = System.now();
    authorities.insert(message.svids[0].bundle.to_vec());
    for verified in verify(message, now + AHEAD) {
        let svid = verified.svid();
        let (id, leaf) = (svid.id().to_string(), svid.leaf());
        match held.get_mut(&id) {
            None => {
                let fresh = Held {
                    serial: leaf.serial.clone(),
                    not_after: leaf.validity.not_after,
                    rotations: 0,
                };
                held.insert(id, fresh);
            }
            Some(old) => {
                assert!(
                    old.not_after >= now + AHEAD,
                    "{id} was held {:?} too long",
                    now.duration_since(old.not_after)
                );
                if old.serial != leaf.serial {
                    old.serial.clone_from(&leaf.serial);
                    old.not_after = leaf.validity.not_after;
                    old.rotations += 1;
                }
            }
        }
    }
}
