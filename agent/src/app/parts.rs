//! What every part of the agent uses, and what is made of it.

use std::sync::Arc;

use vane_chassis::backoff::Policy;
use vane_chassis::builtin::open_section;
use vane_chassis::clock::{Clock, Watched};
use vane_chassis::files::private_dir;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Identity, Party, Roots, client_config, only};
use vane_client::channel::{self, Channel};
use vane_identity::id::SpiffeId;

use crate::config::Config;
use crate::obtain::{Obtain, Persistence};
use crate::own_svid::{Disk, OwnSvid};
use crate::sealed::{self, Restored, Vault, VaultError};
use crate::tenure::Tenure;
use crate::workload::{Attestors, BUILTINS, Deps};

/// What every part uses.
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    pub(super) watched: Arc<Watched>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) backoff: Policy,
    pub(super) identity: Arc<Identity>,
    pub(super) roots: Arc<Roots>,
    pub(super) disk: Arc<Disk>,
    pub(super) tenure: Tenure,
    /// None when nothing is kept over a restart.
    pub(super) vault: Option<Arc<Vault>>,
}

impl Parts {
    /// With sealed state nothing is waited for; without, the SVID of the agent is.
    pub(super) async fn start(
        &self,
        obtain: &Obtain,
    ) -> anyhow::Result<(SpiffeId, Option<OwnSvid>, Option<Restored>)> {
        // One that expired may have lost its key to a new attestation that nobody answers.
        let agent_id = self.disk.load()?.id;
        let restored = match &self.vault {
            Some(vault) => vault.load(agent_id.as_ref(), self.clock.now())?,
            None => None,
        };
        if let (Some(agent_id), Some(restored)) = (agent_id, restored) {
            return Ok((agent_id, obtain.kept()?, Some(restored)));
        }
        let own = obtain.own_svid(Persistence::Starting).await?;
        Ok((own.id.clone(), Some(own), None))
    }

    /// How the agent comes by its own SVID.
    pub(super) fn obtain(&self) -> Obtain {
        Obtain {
            config: Arc::clone(&self.config),
            clock: Arc::clone(&self.clock),
            backoff: self.backoff,
            roots: Arc::clone(&self.roots),
            disk: Arc::clone(&self.disk),
        }
    }

    fn party(&self, identity: Arc<Identity>) -> anyhow::Result<Party> {
        Ok(Party {
            identity,
            roots: Arc::clone(&self.roots),
            authorizer: only(self.config.agent.trust_domain.server_id()?),
            clock: Arc::clone(&self.clock),
        })
    }

    /// Makes channels that present the identity of the moment in which they connect.
    pub(super) fn connect(&self) -> anyhow::Result<Box<dyn Fn() -> Channel + Send + Sync>> {
        let tls = client_config(&self.party(Arc::clone(&self.identity))?)?;
        let (host, port) = (
            self.config.agent.server_address.clone(),
            self.config.agent.server_port,
        );
        Ok(Box::new(move || {
            channel::server(&host, port, Arc::clone(&tls))
        }))
    }

    /// The attestors of workloads that the configuration names.
    pub(super) async fn attestors(&self, metrics: &Metrics) -> anyhow::Result<Attestors> {
        let deps = Deps {
            clock: Arc::clone(&self.clock),
            metrics: metrics.clone(),
        };
        let mut attestors = Vec::new();
        for section in &self.config.workload_attestor {
            attestors.push(open_section(BUILTINS, section, &deps).await?);
        }
        Ok(Attestors::new(attestors))
    }
}

/// Where the state is sealed. Without a place for the key the agent goes on: what it cannot keep
/// comes from the server again.
pub(super) fn vault(config: &Config) -> anyhow::Result<Option<Arc<Vault>>> {
    let agent = &config.agent;
    if !agent.sealed_state {
        private_dir(&agent.data_dir)?.remove(sealed::FILE)?;
        return Ok(None);
    }
    match Vault::open(
        agent.trust_domain.clone(),
        &agent.data_dir,
        &agent.seal_key_dir,
    ) {
        Ok(vault) => Ok(Some(Arc::new(vault))),
        Err(error @ VaultError::Newer { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(
                %error,
                "nothing is kept for the workloads over a restart: agent.seal_key_dir has to be a folder on a tmpfs that this user may write to (agent.sealed_state = false silences this)"
            );
            Ok(None)
        }
    }
}
