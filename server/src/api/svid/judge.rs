//! Whether an agent may have an SVID of an entry, now.
//!
//! That an entry is not authorized makes an agent drop it, so it is said only after hot state
//! has caught up with the store (a read that is linearizable). While the state cannot be
//! confirmed, only what was issued lately is issued again.

use std::sync::Arc;

use tonic::Code;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::SpiffeId;
use vane_wire::status::Refusal;

use crate::api::Parts;
use crate::api::parts::Freshness;

/// Decides about the items of one call.
pub(super) struct Judge<'a> {
    parts: &'a Parts,
    agent: &'a SpiffeId,
    freshness: Freshness,
    /// Whether hot state was brought up to the store: at most once for a call.
    caught_up: Option<Result<(), Refusal>>,
}

impl<'a> Judge<'a> {
    /// Decides for `agent`, with state of this freshness.
    pub(super) fn new(parts: &'a Parts, agent: &'a SpiffeId, freshness: Freshness) -> Self {
        Self {
            parts,
            agent,
            freshness,
            caught_up: None,
        }
    }

    /// The entry `id`, when the agent may have an SVID of it now.
    ///
    /// # Errors
    /// NOT_FOUND in SPIRE's words; UNAVAILABLE while the store is silent.
    pub(super) async fn entry(&mut self, id: &str) -> Result<Arc<Entry>, Refusal> {
        let entry = self.authorized(id).await?;
        if self.freshness == Freshness::RenewalsOnly
            && !self.parts.recent.has(self.agent, &entry.id)
        {
            self.parts.check_fresh()?;
        }
        Ok(entry)
    }

    async fn authorized(&mut self, id: &str) -> Result<Arc<Entry>, Refusal> {
        let not_found = || Refusal::new(Code::NotFound, "entry not found or not authorized");
        let id = EntryId::parse(id).map_err(|_| not_found())?;
        if let Some(entry) = self.look(&id) {
            return Ok(entry);
        }
        if self.caught_up.is_none() {
            self.caught_up = Some(self.parts.catch_up(self.agent).await);
        }
        if let Some(Err(refusal)) = &self.caught_up {
            return Err(refusal.clone());
        }
        self.look(&id).ok_or_else(not_found)
    }

    fn look(&self, id: &EntryId) -> Option<Arc<Entry>> {
        let entry = self.parts.state.authorized(self.agent, id)?;
        (!entry.is_expired(self.parts.clock.now())).then_some(entry)
    }
}
