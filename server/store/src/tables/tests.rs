use std::sync::Arc;

use tokio::task::JoinSet;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::selector::{Selector, SelectorSet};
use vane_identity::x509_svid::Certificate;
use vane_wire::record::{
    AgentRecord, AuthorityKind, AuthorityRecord, AuthorityState, JoinTokenRecord, TokenUse,
};

use super::entries::{CreateError, UpdateError};
use super::row::{ChangeError, Row};
use super::{agents, authorities, bundles, entries, join_tokens};
use crate::kv::{ChangeOp, CommitError, Kv, KvError, Txn};
use crate::memory::MemoryKv;

fn store() -> Arc<dyn Kv> {
    Arc::new(MemoryKv::new().unwrap())
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org/{path}")).unwrap()
}

fn selectors(values: &[&str]) -> SelectorSet {
    let unix = |value: &&str| Selector::new("unix", value).unwrap();
    values.iter().map(unix).collect()
}

fn entry(id_text: &str, name: &str, values: &[&str]) -> Entry {
    Entry {
        id: EntryId::parse(id_text).unwrap(),
        spiffe_id: id(name),
        parent_id: id("spire/agent/x"),
        selectors: selectors(values),
        x509_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        jwt_svid_ttl: 0,
        hint: String::new(),
        created_at: 1,
        additional_attributes: None,
    }
}

fn agent(name: &str, serial: &str) -> AgentRecord {
    AgentRecord {
        spiffe_id: id(name),
        attestation_type: "join_token".into(),
        serial: serial.into(),
        new_serial: None,
        not_after: 10,
        new_not_after: 0,
        selectors: SelectorSet::default(),
        banned: false,
        can_reattest: false,
        agent_version: String::new(),
        csr_key_sha256: None,
        previous: None,
    }
}

fn token(expires_at: i64) -> JoinTokenRecord {
    JoinTokenRecord {
        agent_id: None,
        expires_at,
        used: None,
    }
}

fn authority(name: &str, state: AuthorityState) -> AuthorityRecord {
    AuthorityRecord {
        id: name.into(),
        kind: AuthorityKind::X509 {
            certificate_der: Certificate::from_der(b"not looked at here"),
        },
        state,
        owner: "server-1".into(),
        key_ref: "x509-CA-A".into(),
        issued_at: 1,
        not_after: 2,
        activated_at: 0,
    }
}

async fn row(kv: &dyn Kv, entry: &Entry) -> Row<Entry> {
    entries::get(kv, &entry.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_similar_entry_is_returned_instead_of_created() {
    let kv = store();
    let first = entry("1", "web", &["uid:1", "gid:2"]);
    let revision = entries::create(&*kv, &first, Txn::new()).await.unwrap();
    assert_eq!(row(&*kv, &first).await.mod_revision, revision);
    let second = entry("2", "web", &["gid:2", "uid:1"]);
    let refused = entries::create(&*kv, &second, Txn::new())
        .await
        .unwrap_err();
    let CreateError::Similar(existing) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(existing.value, first);
    assert_eq!(entries::get(&*kv, &second.id).await, Ok(None));
    assert_eq!(entries::similar(&*kv, &second).await, Ok(Some(first.id)));
}

#[tokio::test]
async fn a_taken_entry_id_is_told_from_a_similar_entry() {
    let kv = store();
    entries::create(&*kv, &entry("1", "web", &["uid:1"]), Txn::new())
        .await
        .unwrap();
    let other = entry("1", "db", &["uid:1"]);
    let refused = entries::create(&*kv, &other, Txn::new()).await;
    assert_eq!(refused, Err(CreateError::IdTaken(other.id.clone())));
    assert_eq!(entries::similar(&*kv, &other).await, Ok(None));
}

#[tokio::test]
async fn no_two_different_triples_share_a_uniqueness_key() {
    let one =
        |kind: &str, value: &str| SelectorSet::from_iter([Selector::new(kind, value).unwrap()]);
    let base = entry("1", "a", &["uid:1"]);
    let others = [
        entry("1", "ab", &["uid:1"]),
        entry("1", "a", &["uid:1", "uid:2"]),
        entry("1", "a", &[]),
        Entry {
            selectors: one("unix", "uid:11"),
            ..base.clone()
        },
        Entry {
            selectors: one("unixu", "id:1"),
            ..base.clone()
        },
        Entry {
            parent_id: id("spire/agent/xy"),
            ..base.clone()
        },
        Entry {
            spiffe_id: base.parent_id.clone(),
            parent_id: base.spiffe_id.clone(),
            ..base.clone()
        },
    ];
    let key = entries::unique_key(&base);
    for other in &others {
        assert_ne!(entries::unique_key(other), key, "{other:?}");
    }
    let same = Entry {
        id: EntryId::parse("2").unwrap(),
        hint: "h".into(),
        ..base
    };
    assert_eq!(entries::unique_key(&same), key);
}

#[tokio::test]
async fn an_update_moves_the_uniqueness_key() {
    let kv = store();
    let (web, db) = (entry("1", "web", &["uid:1"]), entry("2", "db", &["uid:1"]));
    entries::create(&*kv, &web, Txn::new()).await.unwrap();
    entries::create(&*kv, &db, Txn::new()).await.unwrap();
    let old = row(&*kv, &web).await;

    let like_db = Entry {
        spiffe_id: id("db"),
        ..web.clone()
    };
    let refused = entries::update(&*kv, &old, &like_db, Txn::new()).await;
    assert_eq!(refused, Err(UpdateError::Similar(db.id.clone())));

    let moved = Entry {
        selectors: selectors(&["uid:2"]),
        revision_number: 1,
        ..web.clone()
    };
    entries::update(&*kv, &old, &moved, Txn::new())
        .await
        .unwrap();
    assert_eq!(row(&*kv, &web).await.value, moved);
    assert_eq!(
        entries::similar(&*kv, &web).await,
        Ok(None),
        "the old triple is free"
    );
    assert_eq!(
        entries::similar(&*kv, &moved).await,
        Ok(Some(web.id.clone()))
    );
    let late = Entry {
        hint: "late".into(),
        ..moved.clone()
    };
    assert_eq!(
        entries::update(&*kv, &old, &late, Txn::new()).await,
        Err(UpdateError::Changed)
    );
    let same_triple = Entry {
        hint: "h".into(),
        ..moved.clone()
    };
    entries::update(&*kv, &row(&*kv, &web).await, &same_triple, Txn::new())
        .await
        .unwrap();
    assert_eq!(entries::similar(&*kv, &moved).await, Ok(Some(web.id)));
}

#[tokio::test]
async fn a_deleted_entry_frees_its_triple_and_is_not_deleted_twice() {
    let kv = store();
    let web = entry("1", "web", &["uid:1"]);
    entries::create(&*kv, &web, Txn::new()).await.unwrap();
    let old = row(&*kv, &web).await;
    entries::delete(&*kv, &old).await.unwrap();
    let again = entries::delete(&*kv, &old).await;
    assert!(matches!(again, Err(CommitError::Conflict { .. })));
    assert!(kv.scan(b"", None, 10).await.unwrap().items.is_empty());
    entries::create(
        &*kv,
        &Entry {
            id: EntryId::parse("2").unwrap(),
            ..web
        },
        Txn::new(),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_similar_creations_at_once_one_wins_and_all_learn_its_id() {
    let kv = store();
    let mut tasks = JoinSet::new();
    for n in 0..50 {
        let kv = Arc::clone(&kv);
        let entry = entry(&format!("id-{n}"), "web", &["uid:1"]);
        tasks.spawn(async move {
            match entries::create(&*kv, &entry, Txn::new()).await {
                Ok(_) => (true, entry.id),
                Err(CreateError::Similar(row)) => (false, row.value.id),
                Err(other) => panic!("{other:?}"),
            }
        });
    }
    let outcomes = tasks.join_all().await;
    let winners: Vec<_> = outcomes.iter().filter(|(won, _)| *won).collect();
    assert_eq!(winners.len(), 1);
    assert!(outcomes.iter().all(|(_, id)| *id == winners[0].1));
}

#[tokio::test]
async fn pages_and_events_carry_every_entry() {
    let kv = store();
    let mut watch = kv.watch(b"", 0).unwrap();
    for n in 0..25 {
        let name = format!("{n:02}");
        entries::create(&*kv, &entry(&name, &name, &["uid:1"]), Txn::new())
            .await
            .unwrap();
    }
    let other = agents::put(None, &agent("spire/agent/a", "1"));
    kv.commit(other).await.unwrap();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = entries::page(&*kv, after.as_ref(), 10).await.unwrap();
        listed.extend(page.rows);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed.len(), 25);
    let mut watched = Vec::new();
    while let Some(change) = watch.try_next().unwrap() {
        let events = change
            .ops
            .iter()
            .filter_map(|op| entries::event(op).unwrap());
        watched.extend(events.map(|event| event.row.unwrap()));
    }
    assert_eq!(watched, listed);
    entries::delete(&*kv, &listed[3]).await.unwrap();
    let change = watch.next().await.unwrap();
    let events: Vec<_> = change
        .ops
        .iter()
        .filter_map(|op| entries::event(op).unwrap())
        .collect();
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].key.as_str(), &events[0].row), ("03", &None));
}

#[tokio::test]
async fn a_damaged_row_is_refused_with_its_key() {
    let kv = store();
    kv.commit(Txn::new().put("e/1", "garbage")).await.unwrap();
    let error = entries::get(&*kv, &EntryId::parse("1").unwrap())
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        KvError::NewerFormat { .. } | KvError::Corrupt { .. }
    ));
    assert!(error.to_string().contains("\"e/1\""), "{error}");
    let bad = ChangeOp::Delete(b"e/\xff".as_ref().into());
    assert!(entries::event(&bad).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_is_not_overwritten_by_a_change_under_way() {
    let kv = store();
    let record = agent("spire/agent/a", "1");
    kv.commit(agents::put(None, &record)).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..20 {
        let (kv, name) = (Arc::clone(&kv), record.spiffe_id.clone());
        tasks.spawn(async move {
            let changed = agents::change(&*kv, &name, |agent| match n {
                7 => Some(AgentRecord {
                    banned: true,
                    ..agent.clone()
                }),
                _ => Some(AgentRecord {
                    agent_version: n.to_string(),
                    ..agent.clone()
                }),
            });
            changed.await.unwrap();
        });
    }
    tasks.join_all().await;
    let row = agents::get(&*kv, &record.spiffe_id).await.unwrap().unwrap();
    assert!(row.value.banned);
    assert!(!row.value.agent_version.is_empty());
}

#[tokio::test]
async fn a_change_of_an_agent_that_is_not_there_is_told() {
    let kv = store();
    let name = id("spire/agent/a");
    let missing = agents::change(&*kv, &name, |agent| Some(agent.clone())).await;
    assert_eq!(missing, Err(ChangeError::Missing));
    let revision = kv
        .commit(agents::put(None, &agent("spire/agent/a", "1")))
        .await
        .unwrap();
    assert_eq!(
        agents::change(&*kv, &name, |_| None).await,
        Ok(revision),
        "left as it is"
    );
    let event = ChangeOp::Delete(agents::key(&name));
    let event = agents::event(&event).unwrap().unwrap();
    assert_eq!(event.key, agents::path(&name));
    assert_eq!(
        entries::event(&ChangeOp::Delete(agents::key(&name))),
        Ok(None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_has_one_winner_and_leaves_a_tombstone_with_its_agent() {
    let kv = store();
    let hash = join_tokens::hash("secret");
    kv.commit(join_tokens::put(None, &hash, &token(100)))
        .await
        .unwrap();
    let fresh = join_tokens::get(&*kv, &hash).await.unwrap().unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..50_u8 {
        let (kv, fresh) = (Arc::clone(&kv), fresh.clone());
        tasks.spawn(async move {
            let record = agent("spire/agent/join_token/secret", &n.to_string());
            let used = TokenUse {
                csr_key_sha256: [n; 32],
                agent_id: record.spiffe_id.clone(),
            };
            let txn = join_tokens::consumption(&fresh, &hash, used);
            match kv.commit(txn.and(agents::put(None, &record))).await {
                Ok(_) => Some(n),
                Err(CommitError::Conflict { compare: 0, .. }) => None,
                Err(other) => panic!("{other:?}"),
            }
        });
    }
    let winners: Vec<u8> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let tombstone = join_tokens::get(&*kv, &hash).await.unwrap().unwrap().value;
    assert_eq!(tombstone.used.unwrap().csr_key_sha256, [winners[0]; 32]);
    assert_eq!(tombstone.expires_at, 100);
    let name = id("spire/agent/join_token/secret");
    let record = agents::get(&*kv, &name).await.unwrap().unwrap().value;
    assert_eq!(record.serial, winners[0].to_string());
    let stored = kv.scan(b"j/", None, 10).await.unwrap().items;
    let bytes = [stored[0].key.as_ref(), stored[0].value.as_ref()].concat();
    assert!(!bytes[..36].windows(6).any(|window| window == b"secret"));
}

#[tokio::test]
async fn expired_tokens_are_swept_in_steps() {
    let kv = store();
    for n in 0..10 {
        let hash = join_tokens::hash(&n.to_string());
        kv.commit(join_tokens::put(None, &hash, &token(n)))
            .await
            .unwrap();
    }
    let (first, next) = join_tokens::sweep(&*kv, 5, None, 4).await.unwrap();
    let (second, next) = join_tokens::sweep(&*kv, 5, next.as_ref(), 4).await.unwrap();
    let (third, end) = join_tokens::sweep(&*kv, 5, next.as_ref(), 4).await.unwrap();
    assert_eq!(first + second + third, 5);
    assert_eq!(end, None);
    let left = join_tokens::page(&*kv, None, 100).await.unwrap().rows;
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|row| row.value.expires_at >= 5));
}

#[tokio::test]
async fn a_bundles_sequence_number_counts_changes_of_content() {
    let kv = store();
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let with = |der: &'static [u8]| {
        move |mut bundle: Bundle| {
            bundle
                .x509_authorities
                .push(X509Authority::new(Certificate::from_der(der)));
            bundle
        }
    };
    let number = async || {
        let row = bundles::get(&*kv, &trust_domain).await.unwrap().unwrap();
        row.value.sequence_number
    };
    let empty = bundles::change(&*kv, &trust_domain, |bundle| bundle).await;
    assert_eq!(empty, Err(ChangeError::Missing));
    bundles::change(&*kv, &trust_domain, with(b"one"))
        .await
        .unwrap();
    assert_eq!(number().await, 1);
    bundles::change(&*kv, &trust_domain, with(b"two"))
        .await
        .unwrap();
    assert_eq!(number().await, 2);
    let before = kv.revision();
    let same = bundles::change(&*kv, &trust_domain, |mut bundle| {
        bundle.sequence_number = 99;
        bundle
    });
    assert_eq!(same.await, Ok(before), "no change, no revision");
    assert_eq!(number().await, 2);

    let row = bundles::get(&*kv, &trust_domain).await.unwrap();
    let same = bundles::put(row.as_ref(), row.as_ref().unwrap().value.clone());
    assert_eq!(kv.commit(same).await, Ok(before));
    let other = with(b"three")(row.as_ref().unwrap().value.clone());
    kv.commit(bundles::put(row.as_ref(), other.clone()))
        .await
        .unwrap();
    assert_eq!(number().await, 3);
    let stale = kv.commit(bundles::put(row.as_ref(), other)).await;
    assert!(matches!(
        stale,
        Err(CommitError::Conflict { compare: 0, .. })
    ));
    let event = bundles::event(&ChangeOp::Delete(bundles::key(&trust_domain)));
    assert_eq!(event.unwrap().unwrap().key, trust_domain);
}

#[tokio::test]
async fn an_authority_and_the_bundle_change_in_one_commit() {
    let kv = store();
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let prepared = authority("aa", AuthorityState::Prepared);
    let bundle = Bundle::empty(trust_domain.clone());
    let both = authorities::put(None, &prepared).and(bundles::put(None, bundle));
    let revision = kv.commit(both.clone()).await.unwrap();
    assert!(kv.commit(both).await.is_err(), "not twice");
    let row = authorities::get(&*kv, "aa").await.unwrap().unwrap();
    assert_eq!((row.mod_revision, &row.value), (revision, &prepared));
    authorities::change(&*kv, "aa", |one| {
        Some(AuthorityRecord {
            state: AuthorityState::Active,
            ..one.clone()
        })
    })
    .await
    .unwrap();
    let page = authorities::page(&*kv, None, 10).await.unwrap();
    assert_eq!(page.rows[0].value.state, AuthorityState::Active);
    let stale = kv.commit(authorities::deletion(&row)).await;
    assert!(matches!(
        stale,
        Err(CommitError::Conflict { compare: 0, .. })
    ));
    kv.commit(authorities::deletion(&page.rows[0]))
        .await
        .unwrap();
    assert_eq!(authorities::get(&*kv, "aa").await, Ok(None));
}
