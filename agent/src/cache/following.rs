//! The way to the server: what it says is taken in, and a way that ended is tried again.

use std::time::{Duration, SystemTime};

use vane_identity::lifetime::to_unix;
use vane_wire::status::Reason;

use super::{Cache, CacheError, SYNC_INTERVAL};
use crate::denial::{Denial, WayBack};
use crate::link::{End, Event, Link};
use crate::registry::{Reaction, Round};
use crate::sealed::Urgency;

/// The difference to the server's clock that is reported.
const SKEW: Duration = Duration::from_secs(5);

impl Cache {
    /// Others ask the server over the same channel. Between two streams there is always a
    /// while without one.
    pub(super) fn tell_server(&self) {
        let open = self.link.channel();
        self.server.send_if_modified(|told| {
            let changes = told.is_some() != open.is_some();
            if changes {
                *told = open.cloned();
            }
            changes
        });
    }

    pub(super) fn on_link(&mut self, event: Event) -> Result<(), CacheError> {
        match event {
            Event::Time => self.try_again(),
            Event::Opened => {
                self.deps.counters.sync_streams.inc();
                if std::mem::take(&mut self.is_asking) {
                    tracing::info!("the server pushes now");
                }
                tracing::debug!("the stream to the server is open");
                self.heard();
            }
            Event::NoStreams => self.ask_server(),
            Event::Round(round) => self.take_round(round),
            Event::Message(message) => {
                let now = to_unix(self.deps.clock.now());
                self.deps.counters.sync_last.set(now);
                let reaction = self.registry.apply(message.response);
                self.react(reaction);
                self.heard();
            }
            Event::Ended(end) => self.on_end(end)?,
        }
        Ok(())
    }

    /// The server said something.
    fn heard(&self) {
        let (heard, revision) = (self.deps.clock.monotonic(), self.registry.revision());
        self.link_state.send_modify(|state| {
            state.connected = true;
            state.heard = Some(heard);
            state.revision = revision;
            state.error = None;
        });
    }

    fn try_again(&mut self) {
        let hello = self.registry.hello(env!("CARGO_PKG_VERSION"));
        if !self.link.try_again(hello) {
            self.reopen();
        }
    }

    fn ask_server(&mut self) {
        if !self.is_asking {
            let interval_ms = self.deps.sync_interval.as_millis();
            tracing::info!(interval_ms, "the server cannot push (SPIRE?): it is asked");
            self.is_asking = true;
        }
        self.link.ask(self.registry.entries().clone());
    }

    fn take_round(&mut self, round: Round) {
        let now = to_unix(self.deps.clock.now());
        self.deps.counters.sync_last.set(now);
        self.link.pause(self.pause());
        let reaction = self.registry.take_round(round);
        self.react(reaction);
        self.heard();
    }

    /// How long until the server is asked again: SPIRE's interval, +-10 %, and not longer than
    /// its default while there is nothing to serve.
    fn pause(&self) -> Duration {
        let has_some = self.slots.values().any(|slot| slot.svid.is_some());
        let interval = match has_some {
            true => self.deps.sync_interval,
            false => self.deps.sync_interval.min(SYNC_INTERVAL),
        };
        interval.mul_f64(0.9 + 0.2 * fastrand::f64())
    }

    pub(super) fn reopen(&mut self) {
        self.was_in_sync = false;
        self.contact.lost(self.deps.clock.now());
        if self.deps.own_svid.borrow_and_update().is_none() {
            self.link = Link::idle();
            return;
        }
        let hello = self.registry.hello(env!("CARGO_PKG_VERSION"));
        self.link = Link::open((self.deps.connect)(), hello);
    }

    fn on_end(&mut self, end: End) -> Result<(), CacheError> {
        // A denial without a reason may pass; the known reasons do not.
        if let Some(reason) = end.denied.filter(|reason| *reason != Reason::Unknown) {
            // What was denied may be the SVID of before.
            if self.deps.own_svid.has_changed().unwrap_or_default() {
                self.reopen();
                return Ok(());
            }
            if reason != Reason::AgentBanned && self.deps.anew.ask() {
                tracing::warn!(error = end.message, "denied: waiting for a new attestation");
                self.link = Link::idle();
                return Ok(());
            }
            let own = self.deps.own_svid.borrow();
            let way_back = own.as_ref().map(|own| WayBack::of_agent(&own.id));
            return Err(CacheError::Denied(Denial {
                reason,
                message: end.message,
                way_back: way_back.unwrap_or(WayBack::NextStart),
            }));
        }
        if end.untrusted {
            self.deps.anew.doubt();
        }
        self.contact.lost(self.deps.clock.now());
        // The server ends streams in good order now and then: no reason to wait.
        let delay = if end.in_order && self.was_in_sync {
            Duration::ZERO
        } else {
            if self.contact.failed() {
                self.publish();
            }
            self.backoff.next_delay()
        };
        tracing::info!(
            code = end.code,
            error = end.message,
            delay_ms = delay.as_millis(),
            "the stream to the server ended"
        );
        self.link_state.send_modify(|state| {
            state.connected = false;
            state.error = (!end.in_order).then(|| format!("{}: {}", end.code, end.message));
        });
        self.link = Link::wait(delay);
        Ok(())
    }

    fn react(&mut self, reaction: Reaction) {
        if reaction.ignored > 0 {
            let count = u64::try_from(reaction.ignored).unwrap_or(u64::MAX);
            self.deps.counters.sync_ignored.inc_by(count);
            tracing::warn!(
                count = reaction.ignored,
                "the server sent something that this agent does not understand"
            );
        }
        if let Err(error) = self.link.send(reaction.answers) {
            self.link = Link::wait(self.backoff.next_delay());
            tracing::warn!(%error, "the stream to the server is given up");
        }
        if reaction.diverged {
            self.deps.counters.sync_divergences.inc();
            tracing::error!(
                "the set of entries or bundles differs from the server's after a resume: asking for all of it"
            );
            self.link = Link::wait(self.backoff.next_delay());
        }
        for id in &reaction.renew_entries {
            self.renew_now(id);
        }
        if !reaction.renew_authorities.is_empty() {
            self.renew_signed_by(&reaction.renew_authorities);
        }
        if reaction.changed {
            self.renew_signed_by(&self.tainted());
            self.match_slots();
            self.unsealed = Some(Urgency::Now);
            self.publish();
        }
        if let Some(time) = reaction.server_time {
            self.compare_clocks(time);
        }
        if reaction.in_sync {
            self.backoff.reset();
            self.was_in_sync = true;
            if self.contact.gained() {
                self.publish();
            }
            self.synced.send_replace(true);
            self.seal();
        }
        if let (true, Some(_), Some(sealer)) =
            (self.was_in_sync, self.deps.offline_grace, &self.deps.sealer)
        {
            sealer.heard(self.deps.clock.now());
        }
    }

    /// Says when the own clock differs from the server's, and when it no longer does.
    fn compare_clocks(&mut self, server_ms: i64) {
        let Ok(server) = u64::try_from(server_ms) else {
            return;
        };
        let server = SystemTime::UNIX_EPOCH + Duration::from_millis(server);
        let own = self.deps.clock.now();
        let skew = own
            .duration_since(server)
            .unwrap_or_else(|behind| behind.duration());
        let ms = i64::try_from(skew.as_millis()).unwrap_or(i64::MAX);
        let ahead = if own < server { -ms } else { ms };
        self.deps.counters.clock_skew.set(ahead);
        self.link_state
            .send_modify(|state| state.skew_ms = Some(ahead));
        let is_skewed = skew > SKEW;
        if is_skewed && !self.is_skewed {
            tracing::warn!(
                skew_ms = skew.as_millis(),
                is_ahead = own > server,
                "this node's clock differs from the server's: SVIDs may seem expired or not yet valid"
            );
        } else if !is_skewed && self.is_skewed {
            tracing::info!("this node's clock agrees with the server's again");
        }
        self.is_skewed = is_skewed;
    }
}
