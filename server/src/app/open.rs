//! What the server opens before it serves, as its configuration says: store, log, attestors, publishers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use vane_attest::{VERIFIERS, Verifier};
use vane_authority::log::Log;
use vane_authority::profile::ProfileConfig;
use vane_chassis::backoff::Policy;
use vane_chassis::builtin::{Section, open_section};
use vane_chassis::clock::Clock;
use vane_store::kv::Kv;
use vane_store::memory::MemoryKv;
use vane_store::sled_kv::{SledConfig, SledKv};

use crate::api::Settings;
use crate::audit::ledger::Ledger;
use crate::config::{Config, Engine, JOIN_TOKEN};
use crate::publish::{self, Publish};
use crate::state::State;

/// The waits between two tries to publish the bundle.
const PUBLISH_FIRST_WAIT: Duration = Duration::from_secs(1);
const PUBLISH_LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The store, opened and repaired.
pub(super) async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Kv>> {
    if config.store.engine == Engine::Memory {
        return Ok(Arc::new(MemoryKv::new()?));
    }
    let disk = SledConfig::new(config.server.data_dir.join("store"));
    // Opening reads and repairs files; a panic of sled's there is caught below it.
    let opened = tokio::task::spawn_blocking(move || SledKv::open(disk)).await?;
    Ok(Arc::new(opened.context("cannot open the store")?))
}

/// Where the store has its files, when it has some.
pub(super) fn store_dir(config: &Config) -> Option<PathBuf> {
    let dir = config.server.data_dir.join("store");
    (config.store.engine != Engine::Memory).then_some(dir)
}

/// The audit log, cut after its last whole line.
pub(super) fn open_log(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<Log>> {
    let path = config.server.data_dir.join(vane_authority::log::FILE);
    let log = Log::open_as(config.log.mode, &path, Arc::clone(clock))?;
    if log.repaired_bytes() > 0 {
        tracing::warn!(
            bytes = log.repaired_bytes(),
            "the log ended in the middle of a line: that line was never acknowledged and is cut off"
        );
    }
    Ok(Arc::new(log))
}

/// Brings into the log what was stored and not logged when the server ended.
pub(super) async fn catch_up(ledger: &Ledger, config: &Config) -> anyhow::Result<()> {
    let file = config.server.data_dir.join(vane_authority::log::FILE);
    let late = ledger.catch_up(&file).await?;
    if late > 0 {
        tracing::warn!(
            changes = late,
            "the server had ended between storing and logging: the log is caught up"
        );
    }
    Ok(())
}

/// The methods of node attestation; join tokens are always among them (SPIRE.md trap 14).
pub(super) async fn attestors(
    config: &Config,
    state: &Arc<State>,
) -> anyhow::Result<Vec<Arc<dyn Verifier>>> {
    let trust_domain = config.server.trust_domain.clone();
    let (state, own) = (Arc::clone(state), trust_domain.clone());
    let deps = vane_attest::Deps {
        trust_domain,
        bundle: Arc::new(move || state.bundle(&own)),
    };
    let mut sections = config.node_attestor.clone();
    if sections.iter().all(|section| section.kind() != JOIN_TOKEN) {
        sections.push(Section::new(JOIN_TOKEN, Default::default()));
    }
    let mut attestors = Vec::new();
    for section in &sections {
        let opened = open_section(VERIFIERS, section, &deps).await;
        attestors.push(opened.context("node_attestor")?);
    }
    Ok(attestors)
}

/// What publishes the bundle of the trust domain.
pub(super) async fn publishers(config: &Config) -> anyhow::Result<Vec<Publish>> {
    let waits = Policy::new(PUBLISH_FIRST_WAIT, PUBLISH_LONGEST_WAIT, 2.0)?;
    let mut all = Vec::new();
    for section in &config.bundle_publisher {
        let opened = open_section(publish::BUILTINS, section, &()).await;
        all.push(Publish::new(opened.context("bundle_publisher")?, waits));
    }
    Ok(all)
}

/// What the authorities sign by.
pub(super) fn profile(config: &Config) -> ProfileConfig {
    let server = &config.server;
    ProfileConfig {
        trust_domain: server.trust_domain.clone(),
        ca_ttl: server.ca_ttl,
        ca_key_type: server.ca_key_type,
        ca_subject: server.ca_subject.clone(),
        default_x509_svid_ttl: server.default_x509_svid_ttl,
        agent_ttl: server.agent_ttl,
        disable_jwt_svids: server.disable_jwt_svids,
        jwt_key_type: server.jwt_key_type,
        jwt_issuer: server.jwt_issuer.clone(),
        default_jwt_svid_ttl: server.default_jwt_svid_ttl,
    }
}

/// What the API decides by.
pub(super) fn settings(config: &Config) -> Settings {
    let server = &config.server;
    Settings {
        trust_domain: server.trust_domain.clone(),
        admin_ids: server.admin_ids.iter().cloned().collect(),
        max_staleness: server.max_staleness,
        max_renewal_staleness: server.max_renewal_staleness,
        limit_attestation: config.ratelimit.attestation,
        limit_signing: config.ratelimit.signing,
    }
}
