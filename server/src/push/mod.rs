//! Push: what an agent is told on `vane.sync.v1.Sync/Watch`, and in which order.
//!
//! One stream is one [`Session`]: requests and the passing of time go in, messages come out;
//! it is driven by `api/sync.rs` and knows no sockets. Rules for both ends:
//!
//! 1. **Hello** is the first request, and only that. Epoch and revision are those of the last
//!    `InSync` or later message, the digests those of what the agent holds. A server that is
//!    behind that revision (of the same epoch) waits until it is not.
//! 2. **Bundles come first.** If the bundle digests differ, all bundles follow (`full`, in
//!    chunks up to `last`); with the last chunk the agent forgets those that no message named
//!    since the full set began. A chunk that is empty and not `last` begins it anew. A later
//!    change comes as a message that is not `full`. Every agent gets every bundle.
//! 3. **Set equal**: `InSync`, nothing else. **Unequal**: the list of the whole set in chunks.
//!    Every list begins with an empty chunk that is not `last`; that also begins anew a list
//!    that was interrupted. Deltas may come between the chunks and belong to the list: listed
//!    and upserted entries are *seen*, removed ones are no longer. At `last` the agent drops
//!    what was not seen.
//! 4. **Need**: the agent asks for what it was listed and has not in that state, in any number
//!    of messages at any time; after each `last` it sends one without IDs: nothing more is
//!    needed. Bodies come as `Delta`; IDs that are not in the set (any longer) are left out.
//!    When all is answered **`InSync`** closes the resume. A digest that differs there is a
//!    bug: the agent counts it and comes back with empty digests.
//! 5. **Order.** What a stream carries is a line through the states of the server: each message
//!    is of a state no older than the one before. An upsert replaces whatever the agent has.
//! 6. **A slow agent** costs [`crate::state::PENDING_BYTES`]: then what waits is thrown away and
//!    the set is listed again. So is a change of an agent's aliases that moves many entries.
//! 7. **Ack** after applied bundles and after `InSync`. The lowest acknowledged bundle revision
//!    of all streams is [`Acks::lowest`].
//! 8. A **Heartbeat** comes every [`HEARTBEAT`]. A stream ends with OK after [`MAX_AGE`]
//!    +-20 %; with UNAVAILABLE when the certificate it was opened with was replaced, or newer
//!    streams of the agent were opened; with PERMISSION_DENIED and the reason when the agent
//!    is banned, deleted or expired, confirmed by a read.
//!
//! The listener must send HTTP/2 pings on its own ([`PING_EVERY`], [`PING_TIMEOUT`]): a
//! session does not notice a dead peer.

mod acks;
mod session;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;
use vane_chassis::metrics::{Latency, Metrics};
use vane_identity::id::SpiffeId;
use vane_store::kv::KvError;

use crate::state::State;

pub use acks::Acks;
pub use session::{Hello, Outgoing, Session};

/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// The age at which a stream ends, +-20 % so that agents spread.
pub const MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// Interval of the HTTP/2 pings of the server's TCP listener (`http2_keepalive_interval`).
pub const PING_EVERY: Duration = Duration::from_secs(10);
/// A ping that is not answered for so long ends the connection (`http2_keepalive_timeout`).
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// A stream with so many IDs asked for and not answered is not read from.
pub const MAX_NEEDS: usize = 16_384;

/// Opens sessions.
#[derive(Debug)]
pub struct Push {
    state: Arc<State>,
    acks: Arc<Acks>,
    counters: Counters,
    closing: CancellationToken,
}

/// What happens on the streams.
#[derive(Debug, Clone, Default)]
struct Counters {
    streams: Gauge,
    resumes: Counter,
    lists: Counter,
    overruns: Counter,
    unknown: Counter,
    delay: Latency,
}

impl Push {
    /// No sessions yet.
    #[must_use]
    pub fn new(state: Arc<State>, metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            state,
            acks: Acks::new(),
            counters: Counters::register(metrics),
            closing: CancellationToken::new(),
        })
    }

    /// The state that is pushed.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Which bundles the connected agents have.
    #[must_use]
    pub fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    /// Opens a stream of `agent`, once the state is not behind what the agent knows: an agent
    /// that is attested but not known yet would be told that its set is smaller than it is.
    ///
    /// # Errors
    /// [`KvError`] when the state may be behind and the store cannot be read.
    pub async fn open(
        self: &Arc<Self>,
        agent: &SpiffeId,
        hello: &Hello,
    ) -> Result<Session, KvError> {
        let state = &self.state;
        let is_ahead = hello.epoch == Some(state.epoch()) && hello.revision > state.revision();
        if is_ahead || state.agent(agent).is_none() {
            state.confirm().await?;
        }
        Ok(Session::open(self, agent, hello))
    }

    /// Ends all streams, and those that are opened later: agents come back to another server,
    /// or to the next process.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Waits for [`Push::close`].
    pub async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Counts a request whose meaning is not known here.
    pub fn count_unknown(&self) {
        self.counters.unknown.inc();
    }
}

impl Counters {
    fn register(metrics: &Metrics) -> Self {
        let counters = Self::default();
        metrics.register(|registry| {
            let mut add = |name: &str, help: &str, counter: &Counter| {
                registry.register(name, help, counter.clone());
            };
            add(
                "push_resumes",
                "Resumes that were closed",
                &counters.resumes,
            );
            add("push_lists", "Lists of a whole set", &counters.lists);
            add(
                "push_overruns",
                "Times that too much waited for a stream",
                &counters.overruns,
            );
            add(
                "push_unknown_requests",
                "Requests of a kind unknown to this version",
                &counters.unknown,
            );
            let help = "From a change in hot state until a stream takes it";
            registry.register("push_delay_seconds", help, counters.delay.clone());
            registry.register("push_streams", "Open streams", counters.streams.clone());
        });
        counters
    }
}

/// The age at which one stream ends; `draw` is uniform in [0, 1).
#[must_use]
pub fn age_of(draw: f64) -> Duration {
    MAX_AGE.mul_f64(0.8 + 0.4 * draw.clamp(0.0, 1.0))
}
