//! The `unix` attestor: user, groups and executable of a process, with SPIRE's selectors.
//!
//! `uid`, `user`, `gid`, `group` (the effective ones), `supplementary_gid`,
//! `supplementary_group`; with `discover_workload_path` also `path` and
//! `sha256`. All numbers come from the facts that are re-checked before each
//! message; names are looked up by this host, not in the workload's container.
//! Numbers and `path` cost no thread hop, cached names and digests neither.

mod digest;
mod names;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join;
use nix::fcntl::readlinkat;
use serde::{Deserialize, Serialize};
use vane_chassis::builtin::{Builtin, OpenError};
use vane_identity::selector::Selector;

use super::{AttestError, Attested, Deps, Unknown, WorkloadAttestor};
use crate::peer::{PeerProcess, ProcessFacts};
use digest::{Digest, Digests};
use names::{Account, Name, Names};

const NAME: &str = "unix";

/// `[[workload_attestor]] type = "unix"`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnixConfig {
    /// Adds the selectors `path` and `sha256` of the executable.
    pub discover_workload_path: bool,
    /// Executables of more bytes get no `sha256`; 0 = all do, negative = none does.
    pub workload_size_limit: i64,
}

/// The attestor.
#[derive(Debug)]
pub(super) struct Unix {
    config: UnixConfig,
    names: Names,
    digests: Digests,
}

impl Builtin<dyn WorkloadAttestor, Deps> for Unix {
    const NAME: &'static str = NAME;
    type Config = UnixConfig;

    async fn open(config: UnixConfig, deps: &Deps) -> Result<Arc<dyn WorkloadAttestor>, OpenError> {
        Ok(Arc::new(Self {
            config,
            names: Names::new(deps.clock.clone()),
            digests: Digests::default(),
        }))
    }
}

#[async_trait]
impl WorkloadAttestor for Unix {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(
        &self,
        peer: &PeerProcess,
        facts: &ProcessFacts,
    ) -> Result<Attested, AttestError> {
        let (names, digest) = join(self.names.of(accounts(facts)), self.digest(peer, facts)).await;
        let mut found = Found::default();
        found.add_accounts(facts, &names);
        if self.config.discover_workload_path {
            found.add_path(path(peer));
        }
        if let Some(digest) = digest {
            found.add_digest(digest);
        }
        Ok(found.0)
    }
}

impl Unix {
    /// None when no digest is wanted.
    async fn digest(&self, peer: &PeerProcess, facts: &ProcessFacts) -> Option<Digest> {
        let limit = size_limit(self.config.workload_size_limit)
            .filter(|_| self.config.discover_workload_path)?;
        Some(self.digests.of_exe(peer, facts.exe, limit).await)
    }
}

fn accounts(facts: &ProcessFacts) -> Vec<Account> {
    let effective = [
        Account::User(facts.uid.effective),
        Account::Group(facts.gid.effective),
    ];
    effective
        .into_iter()
        .chain(facts.groups.iter().map(|gid| Account::Group(*gid)))
        .collect()
}

/// The executable's name when it was started, as SPIRE has it: ` (deleted)` is part of it when it is.
fn path(peer: &PeerProcess) -> Option<String> {
    let path = readlinkat(peer.directory(), "exe").ok()?;
    Some(String::from_utf8_lossy(path.as_bytes()).into_owned())
}

/// None = no digest at all, u64::MAX = of everything.
fn size_limit(configured: i64) -> Option<u64> {
    match u64::try_from(configured) {
        Ok(0) => Some(u64::MAX),
        Ok(limit) => Some(limit),
        Err(_) => None,
    }
}

#[derive(Default)]
struct Found(Attested);

impl Found {
    fn add_accounts(&mut self, facts: &ProcessFacts, names: &HashMap<Account, Name>) {
        let (uid, gid) = (facts.uid.effective, facts.gid.effective);
        self.add("uid", &uid.to_string());
        self.add_name("user:", names.get(&Account::User(uid)));
        self.add("gid", &gid.to_string());
        self.add_name("group:", names.get(&Account::Group(gid)));
        for gid in &facts.groups {
            self.add("supplementary_gid", &gid.to_string());
            self.add_name("supplementary_group:", names.get(&Account::Group(*gid)));
        }
    }

    fn add_path(&mut self, path: Option<String>) {
        match path {
            Some(path) => self.add("path", &path),
            None => self.unknown("path:"),
        }
    }

    /// Adds `unix:<what>:<value>`.
    fn add(&mut self, what: &str, value: &str) {
        match Selector::new(NAME, &format!("{what}:{value}")) {
            Ok(selector) => self.0.selectors.push(selector),
            Err(error) => tracing::warn!(what, %error, "selector left out"),
        }
    }

    /// `prefix` ends with a colon. A number without a name has no such selector.
    fn add_name(&mut self, prefix: &'static str, name: Option<&Name>) {
        match name {
            Some(Some(name)) => self.add(prefix.trim_end_matches(':'), name),
            Some(None) => {}
            None => self.unknown(prefix),
        }
    }

    fn add_digest(&mut self, digest: Digest) {
        match digest {
            Digest::Sha256(hex) => self.add("sha256", &hex),
            Digest::TooLarge => {}
            Digest::Unknown => self.unknown("sha256:"),
        }
    }

    fn unknown(&mut self, prefix: &'static str) {
        let unknown = Unknown { kind: NAME, prefix };
        if !self.0.unknown.contains(&unknown) {
            self.0.unknown.push(unknown);
        }
    }
}
