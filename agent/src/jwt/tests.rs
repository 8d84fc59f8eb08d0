use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tonic::Status;
use vane_chassis::clock::Clock as _;
use vane_identity::bundle::Bundle;
use vane_identity::entry::{AdditionalAttributes, Entry, EntryId};
use vane_identity::jwt_svid::JwtSvid;

use super::*;
use crate::limits::Customer;
use crate::testing::{Fake, JWT_TTL, Running, SOON, Session, entry, soon};

const BOUNDS: Bounds = Bounds {
    tokens: 100,
    bytes: 1_000_000,
};

/// A wish of the one customer.
fn wish<'a>(entry: &'a Arc<Entry>, audience: &'a Audience, patience: Duration) -> Wish<'a> {
    Wish {
        entry,
        audience,
        customer: &CUSTOMER,
        patience,
    }
}

static CUSTOMER: LazyLock<Customer> = LazyLock::new(|| Customer::Group(1, "cgroup".into()));

/// An agent in sync with a server that has a JWT key.
struct World {
    fake: Fake,
    running: Running,
    session: Session,
    bundle: Bundle,
    tokens: Tokens,
}

impl World {
    async fn new(entries: &[Entry]) -> Self {
        Self::within(entries, BOUNDS).await
    }

    async fn within(entries: &[Entry], bounds: Bounds) -> Self {
        let mut fake = Fake::new();
        let mut running = fake.cache();
        let session = fake.session().await;
        let bundle = fake.jwt_bundle(false);
        session.bundle(&bundle).await;
        session.change(entries, &[]).await;
        session.in_sync(entries, &bundle).await;
        running.in_sync().await;
        Self {
            tokens: fake.jwt_cache(&running, bounds),
            fake,
            running,
            session,
            bundle,
        }
    }

    fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        let id = EntryId::parse(id).unwrap();
        let newest = self.running.reader.newest();
        newest.find(&id).map(|served| Arc::clone(&served.entry))
    }

    async fn get(&self, id: &str, audience: &str) -> Result<JwtSvid, Refusal> {
        self.get_within(id, audience, SOON).await
    }

    async fn get_within(
        &self,
        id: &str,
        audience: &str,
        patience: Duration,
    ) -> Result<JwtSvid, Refusal> {
        let entry = self.entry(id).expect("the entry is there");
        let audience: Vec<String> = audience.split(',').map(str::to_owned).collect();
        let audience = Audience::try_from(audience).unwrap();
        let newest = self.running.reader.newest();
        soon(self.tokens.get(&newest, wish(&entry, &audience, patience))).await
    }

    /// A token that had to be asked for.
    async fn fetched(&mut self, id: &str, audience: &str) -> JwtSvid {
        let svid = self.get(id, audience).await.unwrap();
        assert_eq!(self.fake.token().await, format!("{id}:{audience}"));
        svid
    }

    /// The one token that is held, once it is not `before` any longer; nobody uses it.
    async fn replaced(&self, before: &JwtSvid) -> JwtSvid {
        let replaced = async {
            loop {
                let held = self.tokens.published.load();
                if let Some(one) = held.values().find(|one| one.svid() != before) {
                    break one.svid().clone();
                }
                tokio::task::yield_now().await;
            }
        };
        soon(replaced).await
    }

    async fn change(&mut self, upserts: &[Entry], removed: &[&str], holds: impl Fn(&Self) -> bool) {
        self.session.change(upserts, removed).await;
        let mut snapshots = self.running.reader.snapshots();
        while !holds(self) {
            soon(snapshots.changed()).await.unwrap();
        }
    }

    async fn pushes(&mut self, bundle: &Bundle) {
        self.session.bundle(bundle).await;
        let mut snapshots = self.running.reader.snapshots();
        let arrived =
            snapshots.wait_for(|now| now.own_bundle().is_some_and(|own| **own == *bundle));
        soon(arrived).await.unwrap();
    }

    /// The server is away: its stream ended, and no other is answered.
    async fn goes_away(self) -> Away {
        self.fake.refuse("server", true);
        let server = self.running.reader.server();
        self.session.end(Some(Status::unavailable("gone"))).await;
        let mut watch = server.clone();
        soon(watch.wait_for(Option::is_none)).await.unwrap();
        // It is let in again only when the test says so.
        Away {
            fake: self.fake,
            running: self.running,
            bundle: self.bundle,
            tokens: self.tokens,
        }
    }
}

struct Away {
    fake: Fake,
    running: Running,
    bundle: Bundle,
    tokens: Tokens,
}

#[tokio::test]
async fn a_token_is_fetched_once_for_an_audience_in_whatever_order() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let first = world.fetched("a", "x,y").await;
    assert_eq!(first.id().as_str(), "spiffe://example.org/a");
    assert_eq!(world.get("a", "y,x,x").await.unwrap(), first);
    let other = world.fetched("a", "x").await;
    assert_ne!(other, first);
    assert!(world.fake.is_quiet_about_tokens());
}

#[tokio::test]
async fn callers_of_one_key_share_one_call() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let (one, two) = tokio::join!(world.get("a", "x"), world.get("a", "x"));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(world.fake.token().await, "a:x");
    assert!(world.fake.is_quiet_about_tokens());
}

#[tokio::test]
async fn a_used_token_is_replaced_around_half_of_its_life_before_anybody_asks() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let first = world.fetched("a", "x").await;
    world.fake.clock.advance(JWT_TTL.mul_f64(0.44));
    assert_eq!(world.get("a", "x").await.unwrap(), first);
    assert!(world.fake.is_quiet_about_tokens());
    world.fake.clock.advance(JWT_TTL.mul_f64(0.12));
    assert_eq!(world.fake.token().await, "a:x");
    let second = world.replaced(&first).await;
    // Nobody used the second one: only who asks has it replaced, and waits for that.
    world.fake.clock.advance(JWT_TTL.mul_f64(0.6));
    let third = world.fetched("a", "x").await;
    assert_ne!(third, second);
}

#[tokio::test]
async fn a_token_with_a_jti_is_made_for_one_caller_alone() {
    let mut with_jti = entry("a", "unix:uid:1");
    with_jti.additional_attributes = Some(AdditionalAttributes {
        jwt_svid_include_jti: true,
        ..AdditionalAttributes::default()
    });
    let mut world = World::new(&[with_jti]).await;
    let first = world.fetched("a", "x").await;
    assert_ne!(world.fetched("a", "x").await, first);
}

#[tokio::test]
async fn a_token_goes_when_its_entry_changes_and_with_it() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let first = world.fetched("a", "x").await;
    let mut changed = entry("a", "unix:uid:1");
    changed.revision_number = 1;
    let is_new = |world: &World| world.entry("a").unwrap().revision_number == 1;
    world.change(&[changed], &[], is_new).await;
    assert_ne!(world.fetched("a", "x").await, first);
    let gone = world.entry("a").unwrap();
    world
        .change(&[], &["a"], |world| world.entry("a").is_none())
        .await;
    let newest = world.running.reader.newest();
    let audience = Audience::try_from(vec!["x".to_owned()]).unwrap();
    let got = world.tokens.get(&newest, wish(&gone, &audience, SOON));
    // The look-up may be faster than the owner; the caller has looked for the entry before.
    if let Err(refusal) = soon(got).await {
        assert!(matches!(refusal, Refusal::Changed), "{refusal}");
    }
    assert!(world.fake.is_quiet_about_tokens());
}

#[tokio::test]
async fn a_used_token_of_a_tainted_or_revoked_key_is_replaced_at_once() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let first = world.fetched("a", "x").await;
    // Two keys, the first of them tainted.
    let mut tainted = world.fake.jwt_bundle(true);
    world.fake.new_jwt_key("k2");
    let second_key = world.fake.jwt_bundle(false);
    tainted
        .jwt_authorities
        .extend(second_key.jwt_authorities.clone());
    world.pushes(&tainted).await;
    assert_eq!(world.fake.token().await, "a:x");
    let second = world.get("a", "x").await.unwrap();
    assert_eq!((first.key_id(), second.key_id()), ("k1", "k2"));

    // The second key leaves the bundle.
    world.fake.new_jwt_key("k3");
    let mut third_key = world.fake.jwt_bundle(false);
    third_key.sequence_number = 99;
    world.pushes(&third_key).await;
    assert_eq!(world.fake.token().await, "a:x");
    assert_eq!(world.get("a", "x").await.unwrap().key_id(), "k3");
}

#[tokio::test]
async fn a_token_of_a_tainted_key_is_not_handed_out() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let tainted = world.fake.jwt_bundle(true);
    world.pushes(&tainted).await;
    let refused = world.get("a", "x").await.unwrap_err();
    assert!(matches!(refused, Refusal::Tainted), "{refused}");
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_a_passing_trouble_is_waited_for() {
    let mut world = World::new(&[entry("a", "unix:uid:1"), entry("b", "unix:uid:1")]).await;
    world.fake.refuse("a", true);
    let refused = world.get("a", "x").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the server refused: entry not found or not authorized"
    );
    assert_eq!(world.fake.token().await, "a:x");

    world.fake.refuse("server", true);
    let told = world.get_within("b", "x", Duration::from_millis(200)).await;
    assert_eq!(
        told.unwrap_err().to_string(),
        "the server cannot be asked: server is initializing"
    );
    assert_eq!(world.fake.token().await, "b:x");
    let waits = world.get("b", "x");
    let helped = async {
        world.fake.refuse("server", false);
        world.fake.clock.advance(Duration::from_secs(60));
    };
    let (got, ()) = tokio::join!(waits, helped);
    assert!(got.is_ok());
}

#[tokio::test]
async fn while_the_server_is_away_what_is_valid_is_served_and_renewed_when_it_is_back() {
    let mut world = World::new(&[entry("a", "unix:uid:1")]).await;
    let first = world.fetched("a", "x").await;
    let snapshot = world.running.reader.newest();
    let held = world.entry("a").unwrap();
    let audience = Audience::try_from(vec!["x".to_owned()]).unwrap();
    let Away {
        mut fake,
        running,
        bundle,
        tokens,
    } = world.goes_away().await;
    fake.clock.advance(JWT_TTL.mul_f64(0.9));
    let get = || soon(tokens.get(&snapshot, wish(&held, &audience, SOON)));
    assert_eq!(get().await.unwrap(), first, "due, but valid");

    fake.refuse("server", false);
    let session = fake.session().await;
    session.in_sync(&[entry("a", "unix:uid:1")], &bundle).await;
    let mut server = running.reader.server();
    soon(server.wait_for(Option::is_some)).await.unwrap();
    while get().await.unwrap() == first {
        tokio::task::yield_now().await;
    }
}

/// What was held comes back as far as it is good for what was sealed with it.
#[tokio::test]
async fn what_was_kept_over_a_restart_is_judged_as_what_comes() {
    let entries = [
        entry("a", "unix:uid:1"),
        entry("b", "unix:uid:1"),
        entry("c", "unix:uid:1"),
    ];
    let mut world = World::new(&entries).await;
    let mut kept = Vec::new();
    for id in ["a", "b", "c"] {
        kept.push(world.fetched(id, "x").await);
    }
    world.fake.new_jwt_key("k2");
    let unknown = world.fetched("a", "y").await;
    let tokens = |world: &World| -> Vec<_> {
        let held = world.tokens.published.load();
        held.values().map(|one| Arc::clone(&one.token)).collect()
    };
    let before = tokens(&world);
    assert_eq!(before.len(), 4);
    let mut changed = entry("b", "unix:uid:1");
    changed.revision_number = 1;
    let is_there = |world: &World| world.entry("c").is_none();
    world.change(&[changed], &["c"], is_there).await;

    let again = world.fake.jwt_cache_of(&world.running, BOUNDS, &before);
    let held = again.published.load();
    let back: Vec<&JwtSvid> = held.values().map(|one| one.svid()).collect();
    assert_eq!(back, [&kept[0]], "not {unknown:?}, whose key nobody knows");
    // Who had it is served on, and it is replaced ahead.
    world.fake.clock.advance(JWT_TTL.mul_f64(0.6));
    assert_eq!(world.fake.token().await, "a:x");

    world.fake.clock.advance(JWT_TTL);
    let none = world.fake.jwt_cache_of(&world.running, BOUNDS, &before);
    assert!(none.published.load().is_empty(), "all are over");
}

#[tokio::test]
async fn a_token_that_expired_is_not_served_and_a_clock_set_back_does_not_revive_it() {
    let mut world = World::new(&[entry("a", "unix:uid:1"), entry("b", "unix:uid:1")]).await;
    let first = world.fetched("a", "x").await;
    let before = world.fake.clock.now();
    world.fake.refuse("a", true);
    world.fake.clock.advance(JWT_TTL);
    assert!(world.get("a", "x").await.is_err());
    world.fake.clock.set(before);
    world.fake.refuse("a", false);
    assert_ne!(world.get("a", "x").await.unwrap(), first);
}

#[tokio::test]
async fn who_fetches_for_many_audiences_pushes_out_only_its_own_tokens() {
    let bounds = Bounds {
        tokens: 10,
        ..BOUNDS
    };
    let entries = [entry("greedy", "unix:uid:1"), entry("modest", "unix:uid:2")];
    let mut world = World::within(&entries, bounds).await;
    let modest = world.fetched("modest", "x").await;
    for n in 0..50 {
        world.fetched("greedy", &format!("y{n}")).await;
    }
    assert_eq!(world.get("modest", "x").await.unwrap(), modest);
    world.get("greedy", "y49").await.unwrap();
    assert!(world.fake.is_quiet_about_tokens());
    world.fetched("greedy", "y0").await;
}

#[tokio::test]
async fn tokens_are_bounded_by_their_bytes_too() {
    let bounds = Bounds {
        tokens: 100,
        bytes: 3_000,
    };
    let mut world = World::within(&[entry("a", "unix:uid:1")], bounds).await;
    for n in 0..10 {
        world.fetched("a", &format!("y{n}")).await;
    }
    world.get("a", "y9").await.unwrap();
    assert!(world.fake.is_quiet_about_tokens());
    world.fetched("a", "y0").await;
}

#[tokio::test]
async fn who_has_too_many_made_is_refused_and_what_is_held_costs_nothing() {
    let entries = [entry("greedy", "unix:uid:1"), entry("modest", "unix:uid:2")];
    let world = World::new(&entries).await;
    let mut made = 0;
    let refused = loop {
        match world.get("greedy", &format!("y{made}")).await {
            Ok(_) => made += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, Refusal::Pace), "{refused}");
    assert_eq!(made, 200);
    world.get("greedy", "y199").await.unwrap();
    let newest = world.running.reader.newest();
    let entry = world.entry("modest").unwrap();
    let audience = Audience::try_from(vec!["x".to_owned()]).unwrap();
    let other = Customer::Group(2, "cgroup".into());
    let wish = Wish {
        customer: &other,
        ..wish(&entry, &audience, SOON)
    };
    soon(world.tokens.get(&newest, wish)).await.unwrap();
    world.fake.clock.advance(Duration::from_secs(1));
    assert!(world.get("greedy", "z").await.is_ok());
}
