use tonic::Status;
use vane_identity::bundle::Bundle;
use vane_identity::entry::Entry;
use vane_identity::lifetime::to_unix;
use vane_wire::status::{Reason, Refusal};
use vane_wire::vane::sync::v1::watch_request::Request as Ask;
use vane_wire::vane::sync::v1::watch_response::Response as Say;
use vane_wire::vane::sync::v1::{Heartbeat, List, Renew};

use super::asking::PAUSE;
use super::slot::RETRY;
use super::*;
use crate::registry::Known;
use crate::snapshot::{Standing, State};
use crate::svid::Svid;
use crate::testing::{Fake, Running, Session, TTL, entry, own_svid, soon};

/// A cache in sync with `entries`.
async fn synced(entries: &[Entry]) -> (Fake, Running, Session, Bundle) {
    let mut fake = Fake::new();
    let mut running = fake.cache();
    let session = fake.session().await;
    assert!(session.hello.epoch.is_empty(), "nothing is known yet");
    let bundle = fake.bundle(false);
    session.bundle(&bundle).await;
    session.change(entries, &[]).await;
    session.in_sync(entries, &bundle).await;
    running.in_sync().await;
    (fake, running, session, bundle)
}

/// Waits for a snapshot of which `holds` is true.
async fn until(running: &mut Running, holds: impl Fn(&Snapshot) -> bool) {
    let mut snapshots = running.reader.snapshots();
    soon(snapshots.wait_for(|snapshot| holds(snapshot)))
        .await
        .unwrap();
}

fn ids(names: &[&str]) -> Vec<EntryId> {
    names.iter().map(|id| EntryId::parse(id).unwrap()).collect()
}

fn has_svid(snapshot: &Snapshot, id: &str) -> bool {
    let one = snapshot.find(&EntryId::parse(id).unwrap());
    matches!(one.map(|served| &served.svid), Some(State::Ready(_)))
}

#[tokio::test]
async fn what_somebody_waits_for_is_fetched_at_once_and_the_rest_in_the_background() {
    let entries = [entry("a", "unix:uid:1"), entry("b", "unix:uid:2")];
    let (mut fake, mut running, _session, _) = synced(&entries).await;
    running.reader.want(ids(&["a"]));
    assert_eq!(fake.batch().await, ["a"]);
    until(&mut running, |now| has_svid(now, "a")).await;
    assert!(fake.is_quiet(), "the rest waits");
    fake.clock.advance(PAUSE);
    assert_eq!(fake.batch().await, ["b"]);
    until(&mut running, |now| has_svid(now, "b")).await;
}

#[tokio::test]
async fn an_svid_is_replaced_around_half_of_its_life_and_not_before() {
    let (mut fake, mut running, _session, _) = synced(&[entry("a", "unix:uid:1")]).await;
    running.reader.want(ids(&["a"]));
    fake.batch().await;
    until(&mut running, |now| has_svid(now, "a")).await;
    fake.clock.advance(TTL.mul_f64(0.44));
    until(&mut running, |now| has_svid(now, "a")).await;
    assert!(fake.is_quiet());
    fake.clock.advance(TTL.mul_f64(0.12));
    assert_eq!(fake.batch().await, ["a"]);
}

#[tokio::test]
async fn an_svid_is_replaced_when_its_entry_changes_and_gone_with_it() {
    let (mut fake, mut running, session, _) = synced(&[entry("a", "unix:uid:1")]).await;
    running.reader.want(ids(&["a"]));
    fake.batch().await;
    let mut changed = entry("a", "unix:uid:1");
    changed.revision_number = 1;
    session.change(&[changed], &[]).await;
    assert_eq!(fake.batch().await, ["a"]);
    until(&mut running, |now| has_svid(now, "a")).await;
    session.change(&[], &["a"]).await;
    until(&mut running, |now| now.find(&ids(&["a"])[0]).is_none()).await;
}

#[tokio::test]
async fn svids_are_replaced_on_demand_and_when_their_authority_is_tainted() {
    let (mut fake, mut running, session, _) = synced(&[entry("a", "unix:uid:1")]).await;
    running.reader.want(ids(&["a"]));
    fake.batch().await;
    until(&mut running, |now| has_svid(now, "a")).await;
    let renew = |entry_ids: &[&str]| {
        Say::Renew(Renew {
            entry_ids: entry_ids.iter().map(|id| (*id).to_owned()).collect(),
            authority_ids: Vec::new(),
        })
    };
    session.say(renew(&["a", "nosuch"])).await;
    assert_eq!(fake.batch().await, ["a"]);
    session.bundle(&fake.bundle(true)).await;
    assert_eq!(fake.batch().await, ["a"], "its authority is tainted");
}

#[tokio::test]
async fn an_svid_that_expired_is_not_served_and_a_clock_set_back_does_not_revive_it() {
    let (mut fake, mut running, session, _) = synced(&[entry("a", "unix:uid:1")]).await;
    running.reader.want(ids(&["a"]));
    fake.batch().await;
    until(&mut running, |now| has_svid(now, "a")).await;
    fake.refuse("a", true);
    let before = vane_chassis::clock::Clock::now(&*fake.clock);
    fake.clock.advance(TTL + Duration::from_secs(2));
    until(&mut running, |now| !has_svid(now, "a")).await;
    fake.clock.set(before);
    session.change(&[entry("b", "unix:uid:2")], &[]).await;
    until(&mut running, |now| now.find(&ids(&["b"])[0]).is_some()).await;
    assert!(!has_svid(&running.reader.snapshots().borrow(), "a"));
}

#[tokio::test]
async fn a_refusal_hides_no_other_entry_and_is_tried_again() {
    let entries = [entry("a", "unix:uid:1"), entry("b", "unix:uid:2")];
    let (mut fake, mut running, _session, _) = synced(&entries).await;
    fake.refuse("a", true);
    running.reader.want(ids(&["a", "b"]));
    assert_eq!(fake.batch().await, ["a", "b"]);
    until(&mut running, |now| has_svid(now, "b")).await;
    assert!(!has_svid(&running.reader.snapshots().borrow(), "a"));
    fake.refuse("a", false);
    fake.clock.advance(RETRY);
    assert_eq!(fake.batch().await, ["a"]);
}

#[tokio::test]
async fn a_stream_that_ends_is_resumed_with_what_is_held() {
    let entries = [entry("a", "unix:uid:1")];
    let (mut fake, running, session, bundle) = synced(&entries).await;
    session.end(None).await;
    let session = fake.session().await;
    assert_eq!(session.hello.epoch.len(), 16);
    assert_eq!(session.hello.set_digest.len(), 16);
    session.in_sync(&entries, &bundle).await;
    running.own_svid.send_replace(Some(own_svid()));
    let session = fake.session().await;
    assert_eq!(
        session.hello.epoch.len(),
        16,
        "a new SVID of the agent, a new stream"
    );
}

#[tokio::test]
async fn a_difference_after_a_resume_makes_the_agent_ask_for_everything() {
    let (mut fake, _running, session, bundle) = synced(&[entry("a", "unix:uid:1")]).await;
    session.in_sync(&[], &bundle).await;
    let mut session = fake.session().await;
    assert!(session.hello.epoch.is_empty());
    let list = |last| {
        Say::List(List {
            items: Vec::new(),
            last,
        })
    };
    session.say(list(false)).await;
    session.say(list(true)).await;
    let need = soon(session.requests.message()).await.unwrap().unwrap();
    assert!(matches!(need.request, Some(Ask::Need(need)) if need.entry_ids.is_empty()));
    session.in_sync(&[], &bundle).await;
    let ack = soon(session.requests.message()).await.unwrap().unwrap();
    assert!(matches!(ack.request, Some(Ask::Ack(_))));
}

#[tokio::test]
async fn a_heartbeat_is_answered_with_what_was_applied() {
    let (_fake, _running, mut session, _) = synced(&[]).await;
    session
        .say(Say::Heartbeat(Heartbeat {
            revision: 77,
            time: 0,
        }))
        .await;
    let answered = async {
        loop {
            let request = session.requests.message().await.unwrap().unwrap();
            if matches!(request.request, Some(Ask::Ack(ack)) if ack.revision == 77) {
                return;
            }
        }
    };
    soon(answered).await;
}

#[tokio::test]
async fn a_denial_with_a_reason_ends_the_cache_and_one_without_does_not() {
    let (mut fake, mut running, session, _) = synced(&[]).await;
    session
        .end(Some(Refusal::denied(Reason::Unknown, "who knows").into()))
        .await;
    let session = fake.session().await;
    session
        .end(Some(Status::permission_denied("authorization denied")))
        .await;
    let session = fake.session().await;
    session
        .end(Some(Refusal::denied(Reason::AgentBanned, "banned").into()))
        .await;
    let ended = soon(running.ended.recv()).await.unwrap();
    assert!(matches!(
        ended,
        Err(CacheError::Denied(Denial {
            reason: Reason::AgentBanned,
            ..
        }))
    ));
}

/// What becomes of an SVID of ten minutes that was received ten seconds ago, when the clock
/// is set: the server signs by the time that this node had before.
#[tokio::test]
async fn when_the_clock_is_set_svids_are_judged_anew() {
    const HOUR: i64 = 3_600;
    #[derive(Debug, PartialEq)]
    enum Then {
        /// It is served, and not asked for again.
        Stays,
        /// It is asked for again at once, and what comes is served.
        Renewed,
        /// It is over, and so is what comes: nothing is served, and it is tried again later.
        Over,
    }
    let table = [
        (1, Then::Stays),
        (-1, Then::Stays),
        (-HOUR, Then::Renewed),
        (-24 * HOUR, Then::Renewed),
        (HOUR, Then::Over),
        (24 * HOUR, Then::Over),
    ];
    for (jump, then) in table {
        let (mut fake, mut running, session, _) = synced(&[entry("a", "unix:uid:1")]).await;
        running.reader.want(ids(&["a"]));
        fake.batch().await;
        until(&mut running, |now| has_svid(now, "a")).await;
        fake.clock.advance(Duration::from_secs(10));
        fake.ahead
            .store(-jump, std::sync::atomic::Ordering::Relaxed);
        let now = to_unix(vane_chassis::clock::Clock::now(&*fake.clock));
        fake.clock
            .set(vane_identity::lifetime::from_unix(now + jump));
        if then == Then::Stays {
            session.change(&[entry("b", "unix:uid:2")], &[]).await;
            until(&mut running, |now| now.find(&ids(&["b"])[0]).is_some()).await;
            assert!(has_svid(&running.reader.snapshots().borrow(), "a"));
            assert!(fake.is_quiet(), "{jump}");
            continue;
        }
        assert_eq!(fake.batch().await, ["a"], "{jump}");
        if then == Then::Renewed {
            until(&mut running, |now| has_svid(now, "a")).await;
            continue;
        }
        let failed = |now: &Snapshot| {
            let one = now.find(&ids(&["a"])[0]);
            matches!(one.map(|served| &served.svid), Some(State::Failed))
        };
        until(&mut running, failed).await;
        assert!(fake.is_quiet(), "{jump}: it is not asked for in a loop");
        // The clock is corrected: the wait of the wrong clock does not count.
        fake.clock.set(vane_identity::lifetime::from_unix(now));
        fake.ahead.store(0, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(fake.batch().await, ["a"], "{jump}");
        until(&mut running, |now| has_svid(now, "a")).await;
    }
}

#[tokio::test]
async fn a_denied_agent_that_may_attest_again_waits_for_that_unless_it_is_banned() {
    let entries = [entry("a", "unix:uid:1")];
    let (mut fake, mut running, session, _) = synced(&entries).await;
    fake.anew.set_possible(true);
    let denied = Refusal::denied(Reason::AgentNotActive, "authorization denied");
    session.end(Some(denied.into())).await;
    soon(fake.anew.asked()).await;
    let snapshot = running.reader.snapshots().borrow().clone();
    assert!(
        snapshot.find(&ids(&["a"])[0]).is_some(),
        "nothing is dropped"
    );
    running.own_svid.send_replace(Some(own_svid()));
    let session = fake.session().await;
    let banned = Refusal::denied(Reason::AgentBanned, "authorization denied");
    session.end(Some(banned.into())).await;
    let ended = soon(running.ended.recv()).await.unwrap();
    assert!(matches!(
        ended,
        Err(CacheError::Denied(Denial {
            reason: Reason::AgentBanned,
            ..
        }))
    ));
}

#[tokio::test]
async fn a_server_that_cannot_push_is_asked_and_found_again_once_it_can() {
    let mut fake = Fake::spire();
    let entries = ["a", "b", "c"].map(|id| entry(id, "unix:uid:1"));
    fake.spire.holds().entries = entries.iter().map(Into::into).collect();
    let mut running = fake.cache();
    running.in_sync().await;
    assert_eq!(fake.spire.holds().asked, [vec!["a", "b"], vec!["c"]]);
    running.reader.want(ids(&["c"]));
    assert_eq!(fake.batch().await, ["c"]);
    until(&mut running, |now| has_svid(now, "c")).await;

    // Only what changed comes over the wire; what is gone is dropped.
    let changed = Entry {
        revision_number: 1,
        ..entries[1].clone()
    };
    fake.spire.holds().asked.clear();
    fake.spire.holds().entries = [&changed, &entries[2], &entry("d", "unix:uid:1")]
        .map(Into::into)
        .into();
    until(&mut running, |now| now.find(&ids(&["d"])[0]).is_some()).await;
    until(&mut running, |now| now.find(&ids(&["a"])[0]).is_none()).await;
    assert_eq!(fake.spire.holds().asked, [["b", "d"]]);

    // A tainted authority replaces SVIDs as ever.
    fake.spire.holds().bundles = vec![(&fake.bundle(true)).into()];
    assert_eq!(fake.batch().await, ["c"]);

    // While it is broken everything stays, and once it can push it does.
    fake.spire.holds().broken = Some(Status::unavailable("broken"));
    fake.spire.holds().is_spire = false;
    let session = fake.session().await;
    assert!(session.hello.epoch.is_empty(), "nothing is claimed");
    let held = [changed, entries[2].clone(), entry("d", "unix:uid:1")];
    let bundle = fake.bundle(true);
    session.in_sync(&held, &bundle).await;
    session.change(&[], &["d"]).await;
    until(&mut running, |now| now.find(&ids(&["d"])[0]).is_none()).await;
    until(&mut running, |now| now.find(&ids(&["b"])[0]).is_some()).await;
}

#[tokio::test]
async fn a_server_without_pages_is_asked_for_all_and_bundles_follow_the_entries() {
    let fake = Fake::spire();
    let other = TrustDomain::parse("other.org").unwrap();
    let federated = Entry {
        federates_with: vec![other.clone(), TrustDomain::parse("gone.org").unwrap()],
        ..entry("a", "unix:uid:1")
    };
    {
        let mut holds = fake.spire.holds();
        holds.no_sync = true;
        holds.entries = vec![(&federated).into(), (&entry("b", "unix:uid:1")).into()];
        holds.bundles.push((&Bundle::empty(other.clone())).into());
    }
    let mut running = fake.cache();
    running.in_sync().await;
    until(&mut running, |now| now.bundle(&other).is_some()).await;
    fake.spire.holds().entries.remove(0);
    until(&mut running, |now| now.bundle(&other).is_none()).await;
    assert!(running.reader.snapshots().borrow().own_bundle().is_some());
}

#[tokio::test]
async fn a_denial_of_a_server_that_is_asked_ends_the_cache() {
    let fake = Fake::spire();
    let denied = Refusal::denied(Reason::AgentBanned, "authorization denied");
    fake.spire.holds().broken = Some(denied.into());
    let mut running = fake.cache();
    let ended = soon(running.ended.recv()).await.unwrap();
    assert!(matches!(
        ended,
        Err(CacheError::Denied(Denial {
            reason: Reason::AgentBanned,
            ..
        }))
    ));
}

const GRACE: Duration = Duration::from_secs(300);

/// What an agent with `entries`, each with an SVID, sealed `ago`.
fn sealed(fake: &Fake, entries: &[Entry], ago: Duration) -> Restored {
    let now = vane_chassis::clock::Clock::now(&*fake.clock);
    let svid = |entry: &Entry| {
        let svid = Svid {
            chain: vec![1],
            key: vane_identity::key::PrivateKey::from_pkcs8(vec![1]),
            not_after: now + TTL,
            received_at: now,
            renew_at: now + TTL / 2,
            authority: String::new(),
            revision: (entry.revision_number, entry.created_at),
        };
        (entry.id.clone(), Arc::new(svid))
    };
    Restored {
        set: Set {
            svids: entries.iter().map(svid).collect(),
            known: Known {
                epoch: vec![1; 16],
                revision: 1,
                bundle_revision: 1,
                entries: entries.iter().cloned().map(Arc::new).collect(),
                bundles: vec![Arc::new(fake.bundle(false))],
            },
        },
        tokens: Arc::default(),
        heard_at: now - ago,
    }
}

#[tokio::test]
async fn what_was_sealed_is_served_before_the_server_answers_and_then_compared_with_its_set() {
    let entries = [entry("a", "unix:uid:1"), entry("b", "unix:uid:2")];
    let mut fake = Fake::new();
    let restored = sealed(&fake, &entries, Duration::ZERO);
    let mut running = fake.cache_of(Some(restored), None);
    {
        let snapshot = running.reader.snapshots().borrow().clone();
        assert!(has_svid(&snapshot, "a") && has_svid(&snapshot, "b"));
        assert_eq!(snapshot.standing(), Standing::Unconfirmed);
    }
    let session = fake.session().await;
    assert_eq!(session.hello.epoch.len(), 16, "it claims what it has");
    session.change(&[entry("c", "unix:uid:3")], &["b"]).await;
    let now = [entry("a", "unix:uid:1"), entry("c", "unix:uid:3")];
    session.in_sync(&now, &fake.bundle(false)).await;
    running.in_sync().await;
    until(&mut running, |now| now.standing() == Standing::Current).await;
    let snapshot = running.reader.snapshots().borrow().clone();
    assert!(has_svid(&snapshot, "a"), "as it was");
    assert!(snapshot.find(&ids(&["b"])[0]).is_none(), "withdrawn");
    running.reader.want(ids(&["c"]));
    assert_eq!(fake.batch().await, ["c"], "and nothing else is asked for");
}

#[tokio::test]
async fn an_svid_of_an_entry_that_changed_meanwhile_is_replaced() {
    let mut fake = Fake::new();
    let restored = sealed(&fake, &[entry("a", "unix:uid:1")], Duration::ZERO);
    let _running = fake.cache_of(Some(restored), None);
    let session = fake.session().await;
    let mut changed = entry("a", "unix:uid:1");
    changed.revision_number = 1;
    session.change(&[changed], &[]).await;
    assert_eq!(fake.batch().await, ["a"]);
}

#[tokio::test]
async fn after_the_grace_nothing_is_served_until_the_server_is_back() {
    let entries = [entry("a", "unix:uid:1")];
    let mut fake = Fake::new();
    let restored = sealed(&fake, &entries, GRACE / 2);
    let mut running = fake.cache_of(Some(restored), Some(GRACE));
    fake.clock.advance(GRACE / 2 - Duration::from_secs(1));
    until(&mut running, |now| now.standing() == Standing::Unconfirmed).await;
    fake.clock.advance(Duration::from_secs(1));
    until(&mut running, |now| now.standing() == Standing::Overdue).await;
    let session = fake.session().await;
    session.in_sync(&entries, &fake.bundle(false)).await;
    until(&mut running, |now| now.standing() == Standing::Current).await;
    assert!(
        has_svid(&running.reader.snapshots().borrow(), "a"),
        "it was kept"
    );
    // In contact it does not run.
    fake.clock.advance(GRACE * 2 / 3);
    session.end(Some(Status::unavailable("gone"))).await;
    let _session = fake.session().await;
    fake.clock.advance(GRACE * 2 / 3);
    assert_eq!(
        running.reader.snapshots().borrow().standing(),
        Standing::Current
    );
    fake.clock.advance(GRACE / 3);
    until(&mut running, |now| now.standing() == Standing::Overdue).await;
}

#[tokio::test]
async fn a_new_agent_asks_when_it_has_an_svid_of_its_own() {
    let mut fake = Fake::new();
    let running = fake.cache();
    let session = fake.session().await;
    running.own_svid.send_replace(None);
    session.end(None).await;
    running.own_svid.send_replace(Some(own_svid()));
    fake.session().await;
}
