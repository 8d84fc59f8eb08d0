use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vane_chassis::clock::{Manual, System};
use vane_identity::selector::SelectorSet;

use super::super::{Attestors, Match, Outcome};
use super::*;
use crate::peer::PeerPidfd;

/// This very process as its own peer.
fn own() -> (PeerProcess, ProcessFacts, OwnedFd) {
    let (one, other) = UnixStream::pair().unwrap();
    let peer = PeerProcess::from_socket(&one, PeerPidfd::Prefer).unwrap();
    let facts = peer.attest_facts().unwrap();
    (peer, facts, other.into())
}

fn unix(config: UnixConfig, names: Names) -> Unix {
    Unix {
        config,
        names,
        digests: Digests::default(),
    }
}

fn values(attested: &Attested) -> Vec<&str> {
    assert!(
        attested
            .selectors
            .iter()
            .all(|selector| selector.kind() == "unix")
    );
    attested.selectors.iter().map(Selector::value).collect()
}

fn named(name: &'static str) -> Names {
    Names::with_lookup(Arc::new(System), move |account| match account {
        Account::User(_) => Some(Some(name.into())),
        Account::Group(gid) => Some((gid % 2 == 0).then(|| format!("g{gid}").into())),
    })
}

#[tokio::test]
async fn the_selectors_are_those_of_spire() {
    let (peer, mut facts, _other) = own();
    facts.gid.effective = 10;
    facts.groups = [3, 4].into();
    let attested = unix(UnixConfig::default(), named("ann"))
        .attest(&peer, &facts)
        .await
        .unwrap();
    let uid = format!("uid:{}", facts.uid.effective);
    assert_eq!(
        values(&attested),
        [
            &uid,
            "user:ann",
            "gid:10",
            "group:g10",
            "supplementary_gid:3",
            "supplementary_gid:4",
            "supplementary_group:g4",
        ]
    );
    assert_eq!(attested.unknown, []);
}

#[tokio::test]
async fn the_effective_user_counts() {
    let (peer, mut facts, _other) = own();
    facts.uid.real = 7;
    facts.uid.effective = 8;
    let attested = unix(UnixConfig::default(), named("ann"))
        .attest(&peer, &facts)
        .await
        .unwrap();
    assert!(values(&attested).contains(&"uid:8"));
    assert!(!values(&attested).contains(&"uid:7"));
}

#[tokio::test]
async fn path_and_digest_are_found_when_configured_and_the_file_is_not_too_large() {
    let (peer, facts, _other) = own();
    let exe = std::fs::read("/proc/self/exe").unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &exe);
    let sha256 = digest
        .as_ref()
        .iter()
        .fold("sha256:".to_owned(), |hex, octet| {
            format!("{hex}{octet:02x}")
        });
    let path = format!("path:{}", std::env::current_exe().unwrap().display());
    let size = i64::try_from(exe.len()).unwrap();
    for (limit, has_digest) in [(0, true), (size, true), (size - 1, false), (-1, false)] {
        let config = UnixConfig {
            discover_workload_path: true,
            workload_size_limit: limit,
        };
        let unix = unix(config, named("ann"));
        // Twice: read, then from the cache.
        for _ in 0..2 {
            let attested = unix.attest(&peer, &facts).await.unwrap();
            assert!(values(&attested).contains(&path.as_str()));
            assert_eq!(
                values(&attested).contains(&sha256.as_str()),
                has_digest,
                "{limit}"
            );
            assert_eq!(attested.unknown, [], "{limit}");
        }
    }
}

#[tokio::test]
async fn the_digest_of_another_file_than_the_attested_one_is_unknown() {
    let (peer, mut facts, _other) = own();
    facts.exe.inode += 1;
    let config = UnixConfig {
        discover_workload_path: true,
        workload_size_limit: 0,
    };
    let attested = unix(config, named("ann"))
        .attest(&peer, &facts)
        .await
        .unwrap();
    assert_eq!(
        attested.unknown,
        [Unknown {
            kind: "unix",
            prefix: "sha256:"
        }]
    );
}

/// A name service that does not answer until told to.
fn hanging() -> (Names, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (answer, wait) = mpsc::channel::<()>();
    let (wait, running) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
    let counted = running.clone();
    let names = Names::with_lookup(Arc::new(System), move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
        Some(Some("late".into()))
    });
    (names, answer, running)
}

#[tokio::test]
async fn a_name_service_that_hangs_makes_names_unknown_and_hides_nothing_else() {
    let (peer, mut facts, _other) = own();
    facts.groups = [].into();
    let (names, answer, _running) = hanging();
    let attestors = Attestors::new(vec![Arc::new(unix(UnixConfig::default(), names.clone()))]);
    let attestation = attestors.attest(&peer, &facts).await;
    let outcome = attestation.outcome();
    let uid = format!("uid:{}", facts.uid.effective);
    assert_eq!(outcome.matches(&set(&[&uid])), Match::Yes);
    assert_eq!(outcome.matches(&set(&[&uid, "user:late"])), Match::Unknown);
    assert_eq!(
        outcome.matches(&set(&["uid:4000000000", "user:late"])),
        Match::No
    );
    // The answer that came too late is there for the next caller.
    drop(answer);
    let outcome = wait_for(&attestors, &peer, &facts).await;
    assert_eq!(
        outcome.matches(&set(&[&uid, "user:late", "group:late"])),
        Match::Yes
    );
}

async fn wait_for(attestors: &Attestors, peer: &PeerProcess, facts: &ProcessFacts) -> Outcome {
    let known = async {
        loop {
            let attestation = attestors.attest(peer, facts).await;
            if attestation.outcome().unknown().is_empty() {
                return attestation.outcome().clone();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_name_service_that_hangs_holds_four_threads_at_most() {
    let (names, answer, running) = hanging();
    let callers = (0..20).map(|uid| names.of(vec![Account::User(uid)]));
    let answers = futures_util::future::join_all(callers).await;
    assert!(answers.iter().all(HashMap::is_empty));
    assert_eq!(running.load(Ordering::SeqCst), 4);
    drop(answer);
}

#[tokio::test]
async fn names_are_asked_once_a_minute() {
    let clock = Arc::new(Manual::starting_now());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let names = Names::with_lookup(clock.clone(), move |account| {
        counted.fetch_add(1, Ordering::SeqCst);
        (account != Account::User(9)).then_some(None)
    });
    for _ in 0..3 {
        assert_eq!(
            names.of(vec![Account::User(1)]).await,
            HashMap::from([(Account::User(1), None)])
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    clock.advance(Duration::from_secs(60));
    names.of(vec![Account::User(1)]).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // A name service that fails has said nothing: it is asked again.
    assert!(names.of(vec![Account::User(9)]).await.is_empty());
    assert!(names.of(vec![Account::User(9)]).await.is_empty());
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn the_host_knows_root() {
    let names = Names::new(Arc::new(System))
        .of(vec![Account::User(0), Account::Group(4_100_000_000)])
        .await;
    assert_eq!(names.get(&Account::User(0)), Some(&Some("root".into())));
    assert_eq!(names.get(&Account::Group(4_100_000_000)), Some(&None));
}

fn set(values: &[&str]) -> SelectorSet {
    values
        .iter()
        .map(|value| Selector::new("unix", value).unwrap())
        .collect()
}
