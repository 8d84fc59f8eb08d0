use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::Policy;
use vane_chassis::clock::{Clock as _, Manual, System};
use vane_chassis::tasks::TaskSet;
use vane_identity::bundle::Bundle;
use vane_identity::entry::Entry;
use vane_identity::id::SpiffeId;
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::to_unix;

use super::*;
use crate::counters::Counters;
use crate::tenure::Tenure;
use crate::testing::{entry, own, own_svid, soon};

const HOUR: Duration = Duration::from_secs(3600);

struct Place {
    dir: TempDir,
    clock: Arc<Manual>,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            clock: Arc::new(Manual::starting_now()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("data").join(FILE)
    }

    fn vault(&self) -> Vault {
        Vault::open(own(), &self.path("data"), &self.path("run")).unwrap()
    }

    fn key_file(&self) -> PathBuf {
        let mut files = std::fs::read_dir(self.path("run")).unwrap();
        files.next().unwrap().unwrap().path()
    }

    fn load(&self) -> Option<Restored> {
        let (vault, now) = (self.vault(), self.clock.now());
        vault.load(Some(&agent()), now).unwrap()
    }

    fn seal(&self, vault: &Vault, set: &Set) {
        let now = self.clock.now();
        vault
            .seal(&agent(), set, &[token(now + HOUR)], now)
            .unwrap();
    }

    /// `count` entries with SVIDs that live for an hour.
    fn set(&self, count: usize) -> Set {
        let now = self.clock.now();
        let entries: Vec<Arc<Entry>> = (0..count)
            .map(|at| Arc::new(entry(&format!("e{at:05}"), "unix:uid:1")))
            .collect();
        let svid = |entry: &Arc<Entry>| {
            let svid = Svid {
                chain: vec![1; 700],
                key: PrivateKey::from_pkcs8(b"a-key-that-nobody-may-see".to_vec()),
                not_after: now + HOUR,
                received_at: now,
                renew_at: now + HOUR / 2,
                authority: "aa".to_owned(),
                revision: (0, 7),
            };
            (entry.id.clone(), Arc::new(svid))
        };
        Set {
            svids: entries.iter().map(svid).collect(),
            known: Known {
                epoch: vec![9; 16],
                revision: 5,
                bundle_revision: 4,
                bundles: vec![Arc::new(Bundle::empty(own()))],
                entries,
            },
        }
    }
}

fn agent() -> SpiffeId {
    own_svid().id.clone()
}

/// A token that ends then; nobody looks at its signature.
fn token(expires_at: SystemTime) -> Arc<Token> {
    let claims = serde_json::json!({
        "sub": "spiffe://example.org/e00000", "aud": ["a"], "exp": to_unix(expires_at),
    });
    let header = serde_json::json!({"alg": "ES256", "kid": "k1"});
    let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}.c2lnbmF0dXJl", part(header), part(claims));
    Arc::new(Token {
        entry_id: EntryId::parse("e00000").unwrap(),
        revision: (0, 7),
        audience: vec!["a".to_owned()].into(),
        svid: JwtSvid::parse(&text).unwrap(),
        renew_at: SystemTime::UNIX_EPOCH + HOUR,
    })
}

#[test]
fn what_is_sealed_comes_back_and_is_not_readable_on_the_disk() {
    let place = Place::new();
    let (vault, set) = (place.vault(), place.set(3));
    place.seal(&vault, &set);
    let file = std::fs::read(place.file()).unwrap();
    let holds = |needle: &[u8]| file.windows(needle.len()).any(|part| part == needle);
    assert!(!holds(b"a-key-that") && !holds(b"e00000") && !holds(b"c2lnbmF0dXJl"));
    let mode = |path| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap());
    assert_eq!(mode(place.file()) & 0o777, 0o600);
    assert_eq!(mode(place.key_file()) & 0o777, 0o600);

    let back = place.load().unwrap();
    assert_eq!(back.set.known.entries, set.known.entries);
    assert_eq!(back.set.known.bundles, set.known.bundles);
    let places = |set: &Set| {
        let known = &set.known;
        (known.epoch.clone(), known.revision, known.bundle_revision)
    };
    assert_eq!(places(&back.set), places(&set));
    let (before, after) = (token(place.clock.now() + HOUR), &back.tokens[0]);
    assert_eq!(after.svid, before.svid);
    assert_eq!(
        (&after.entry_id, after.revision),
        (&before.entry_id, before.revision)
    );
    assert_eq!(
        (&after.audience, after.renew_at),
        (&before.audience, before.renew_at)
    );
    let (before, after) = (&set.svids[0].1, &back.set.svids[0].1);
    assert_eq!(before.chain, after.chain);
    assert_eq!(before.key.pkcs8(), after.key.pkcs8());
    assert_eq!(before.revision, after.revision);
    let whole = |time| vane_identity::lifetime::whole_seconds(time);
    assert_eq!(whole(before.not_after), whole(after.not_after));
    assert_eq!(whole(back.heard_at), whole(place.clock.now()));
}

#[test]
fn a_file_of_which_any_byte_was_changed_is_thrown_away() {
    let place = Place::new();
    place.seal(&place.vault(), &place.set(1));
    let good = std::fs::read(place.file()).unwrap();
    let key = std::fs::read(place.key_file()).unwrap();
    // The format (8 and 9) is another matter.
    let places = (0..8).chain(10..good.len());
    for at in places.step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(place.file(), bad).unwrap();
        std::fs::write(place.key_file(), &key).unwrap();
        assert!(place.load().is_none(), "byte {at}");
        assert!(!place.file().exists());
    }
    for length in [0, 7, 13, 20, good.len() - 1] {
        std::fs::write(place.file(), &good[..length]).unwrap();
        std::fs::write(place.key_file(), &key).unwrap();
        assert!(place.load().is_none(), "{length} bytes");
    }
    std::fs::write(place.file(), &good).unwrap();
    std::fs::write(place.key_file(), &key).unwrap();
    assert!(place.load().is_some(), "it was the changes");
}

#[test]
fn an_older_file_that_was_put_back_is_refused_and_one_that_is_ahead_is_not() {
    let place = Place::new();
    let vault = place.vault();
    place.seal(&vault, &place.set(1));
    let old = std::fs::read(place.file()).unwrap();
    let old_key = std::fs::read(place.key_file()).unwrap();
    place.seal(&vault, &place.set(2));
    let new = std::fs::read(place.file()).unwrap();
    // The agent died after the file was written, and before its counter was.
    std::fs::write(place.key_file(), &old_key).unwrap();
    assert_eq!(place.load().unwrap().set.svids.len(), 2);
    std::fs::write(place.file(), &old).unwrap();
    assert!(place.load().is_none(), "the counter was caught up");
    std::fs::write(place.file(), &new).unwrap();
    assert!(place.load().is_none(), "the key is another one since");
}

#[test]
fn a_reboot_takes_the_key_and_with_it_what_was_sealed() {
    let place = Place::new();
    place.seal(&place.vault(), &place.set(1));
    std::fs::remove_dir_all(place.path("run")).unwrap();
    assert!(place.load().is_none());
    assert!(!place.file().exists());
    place.seal(&place.vault(), &place.set(1));
    assert!(place.load().is_some(), "a new key works");
    place.vault().wipe().unwrap();
    assert!(
        !place.file().exists()
            && std::fs::read_dir(place.path("run"))
                .unwrap()
                .next()
                .is_none()
    );
}

#[test]
fn another_agents_state_is_not_taken() {
    let place = Place::new();
    place.seal(&place.vault(), &place.set(1));
    let other = own().with_path("/spire/agent/other").unwrap();
    let now = place.clock.now();
    assert!(place.vault().load(Some(&other), now).unwrap().is_none());
    place.seal(&place.vault(), &place.set(1));
    assert!(place.vault().load(None, now).unwrap().is_none());
    let foreign = vane_identity::id::TrustDomain::parse("other.org").unwrap();
    place.seal(&place.vault(), &place.set(1));
    let vault = Vault::open(foreign, &place.path("data"), &place.path("run")).unwrap();
    assert!(vault.load(Some(&agent()), now).unwrap().is_none());
}

#[test]
fn what_a_newer_version_wrote_is_refused_with_a_text_and_left_alone() {
    let place = Place::new();
    place.seal(&place.vault(), &place.set(1));
    for path in [place.file(), place.key_file()] {
        let good = std::fs::read(&path).unwrap();
        let mut newer = good.clone();
        newer[9] = 2;
        std::fs::write(&path, &newer).unwrap();
        let now = place.clock.now();
        let refusal = Vault::open(own(), &place.path("data"), &place.path("run"))
            .and_then(|vault| vault.load(Some(&agent()), now).map(drop))
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("newer version") && refusal.contains("remove the file"),
            "{refusal}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), newer);
        std::fs::write(&path, &good).unwrap();
    }
    assert!(place.load().is_some());
}

#[test]
fn what_ended_before_or_after_it_was_sealed_does_not_come_back() {
    let place = Place::new();
    let set = place.set(2);
    place.clock.advance(HOUR + Duration::from_secs(2));
    place.seal(&place.vault(), &set);
    place.clock.advance(HOUR / 2);
    let back = place.load().unwrap();
    assert!(back.set.svids.is_empty());
    assert_eq!(back.tokens.len(), 1, "half an hour of it is left");
    place.clock.advance(HOUR / 2);
    assert!(place.load().unwrap().tokens.is_empty());
    let over = token(place.clock.now());
    let (vault, now) = (place.vault(), place.clock.now());
    vault.seal(&agent(), &set, &[over], now).unwrap();
    place.clock.set(place.clock.now() - HOUR * 3);
    let back = place.load().unwrap();
    assert!(
        back.set.svids.is_empty() && back.tokens.is_empty(),
        "a clock that is set back revives nothing"
    );
    assert_eq!(back.set.known.entries.len(), 2, "the set is as it was");
}

/// A running writer.
struct Running {
    place: Place,
    vault: Arc<Vault>,
    handle: Handle,
    counters: Counters,
    tenure: Tenure,
    stop: CancellationToken,
    tasks: TaskSet,
}

impl Running {
    fn start() -> Self {
        let place = Place::new();
        let (counters, stop) = (Counters::default(), CancellationToken::new());
        let (_sender, own) = watch::channel(Some(own_svid()));
        let ms = Duration::from_millis;
        let (tenure, vault) = (Tenure::default(), Arc::new(place.vault()));
        let deps = Deps {
            vault: Arc::clone(&vault),
            own,
            clock: Arc::<Manual>::clone(&place.clock),
            tenure: tenure.clone(),
            backoff: Policy::new(ms(1), ms(5), 2.0).unwrap(),
            counters: counters.clone(),
        };
        let (writer, handle) = Writer::new(deps, None);
        let tasks = TaskSet::new("writer");
        let until = stop.clone();
        tasks.spawn(async move { _ = writer.run(until).await });
        Self {
            place,
            vault,
            handle,
            counters,
            tenure,
            stop,
            tasks,
        }
    }

    async fn until(&self, holds: impl Fn(&Counters) -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        let kept = async {
            while !holds(&self.counters) {
                looks.tick().await;
            }
        };
        soon(kept).await;
    }
}

#[tokio::test]
async fn a_burst_of_changes_is_few_files_and_the_last_one_has_all() {
    let running = Running::start();
    for count in 1..=200 {
        running.handle.keep(running.place.set(count), Urgency::Now);
    }
    running.until(|now| now.sealed_svids.get() == 200).await;
    let files = running.counters.sealed_writes.get();
    assert!(files <= 2, "{files} files");
    assert_eq!(running.place.load().unwrap().set.svids.len(), 200);
}

#[tokio::test]
async fn a_renewal_may_wait_and_the_end_of_the_agent_does_not_lose_it() {
    let running = Running::start();
    running.handle.keep(running.place.set(1), Urgency::Now);
    running.until(|now| now.sealed_writes.get() == 1).await;
    running.handle.keep(running.place.set(2), Urgency::Soon);
    running.stop.cancel();
    assert_eq!(running.tasks.join(HOUR).await, 0);
    assert_eq!(running.place.load().unwrap().set.svids.len(), 2);
}

#[tokio::test]
async fn while_a_successor_gets_ready_and_after_it_serves_nothing_is_written() {
    let running = Running::start();
    let frozen = running.tenure.freeze().await;
    running.handle.keep(running.place.set(1), Urgency::Now);
    tokio::task::yield_now().await;
    running.stop.cancel();
    assert_eq!(running.tasks.join(HOUR).await, 0);
    assert!(running.place.load().is_none());
    drop(frozen);
}

/// A directory that has the file's name keeps it from being put there, as a full disk does.
#[tokio::test]
async fn a_disk_that_takes_nothing_is_tried_until_it_does() {
    let running = Running::start();
    std::fs::create_dir(running.place.file()).unwrap();
    running.handle.keep(running.place.set(1), Urgency::Now);
    running.until(|now| now.sealed_failures.get() > 3).await;
    assert_eq!(running.counters.sealed_writes.get(), 0);
    assert!(running.vault.trouble().is_some());
    running.handle.keep(running.place.set(2), Urgency::Soon);
    std::fs::remove_dir(running.place.file()).unwrap();
    running.until(|now| now.sealed_writes.get() == 1).await;
    assert_eq!(
        running.place.load().unwrap().set.svids.len(),
        2,
        "the newest"
    );
    assert!(running.vault.trouble().is_none());
}

#[test]
fn an_svid_that_replaces_a_long_lived_one_is_not_urgent() {
    let place = Place::new();
    let now = place.clock.now();
    let set = place.set(1);
    let held = &set.svids[0].1;
    assert_eq!(Urgency::replacing(None, now), Urgency::Now);
    assert_eq!(Urgency::replacing(Some(held), now), Urgency::Soon);
    let late = now + HOUR - Duration::from_secs(5);
    assert_eq!(Urgency::replacing(Some(held), late), Urgency::Now);
    assert!(Urgency::Soon < Urgency::Now);
}

/// Not a bound: what a batch costs with as many SVIDs as an agent fetches ahead.
#[test]
fn a_thousand_svids_are_one_file_of_about_a_megabyte() {
    let place = Place::new();
    let (vault, set) = (place.vault(), place.set(1_000));
    place.seal(&vault, &set);
    let before = System.monotonic();
    place.seal(&vault, &set);
    let took = System.monotonic() - before;
    let bytes = std::fs::metadata(place.file()).unwrap().len();
    println!("1,000 SVIDs: {bytes} bytes in {took:?}");
    assert!((700_000..2_000_000).contains(&bytes), "{bytes}");
}

/// A workload that asks for ever new audiences does not keep the disk busy.
#[tokio::test(start_paused = true)]
async fn files_for_tokens_alone_are_a_second_apart() {
    let running = Running::start();
    let end = running.place.clock.now() + HOUR;
    running.handle.keep(running.place.set(1), Urgency::Now);
    running.until(|now| now.sealed_writes.get() == 1).await;
    let begun = tokio::time::Instant::now();
    for count in 1..=50 {
        let tokens = vec![token(end); count];
        running.handle.keep_tokens(tokens.into(), Urgency::Paced);
        tokio::task::yield_now().await;
    }
    running.until(|now| now.sealed_tokens.get() == 50).await;
    assert_eq!(running.counters.sealed_writes.get(), 2);
    let took = begun.elapsed();
    assert!((900..1_100).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_token_that_replaces_a_long_lived_one_is_not_urgent() {
    let now = SystemTime::UNIX_EPOCH + HOUR;
    assert_eq!(Urgency::replacing_token(None, now), Urgency::Paced);
    let soon = Some(now + Duration::from_secs(5));
    assert_eq!(Urgency::replacing_token(soon, now), Urgency::Paced);
    assert_eq!(
        Urgency::replacing_token(Some(now + HOUR), now),
        Urgency::Soon
    );
    assert!(Urgency::Soon < Urgency::Paced && Urgency::Paced < Urgency::Now);
}
