//! One stream as a state machine: see the rules in [`crate::push`].
//!
//! What waits in the outbox goes first; the rest (bundles, list, bodies, `InSync`) is made
//! from the state at the moment it is asked for, under the lock under which the outbox was
//! found empty. So nothing is prepared that a slow agent does not take, and what the agent
//! gets is in the order of the states. Only while bundles are to be sent first, everything
//! else waits for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use vane_identity::digest::Digest;
use vane_identity::entry::EntryId;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_store::kv::{Epoch, Revision};

use super::acks::Ack;
use super::{MAX_NEEDS, Push};
use crate::authorized::Cursor;
use crate::state::{Connection, Message, Opened, Pulled, Shared, View};

/// How an agent opens a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The epoch it knows; none when it comes for the first time.
    pub epoch: Option<Epoch>,
    /// The revision up to which it was told everything.
    pub revision: Revision,
    /// The digest of its entries.
    pub set: Digest,
    /// The digest of its bundles.
    pub bundles: Digest,
}

/// A message on its way out.
#[derive(Debug)]
pub enum Outgoing {
    /// Other streams get it too.
    Shared(Arc<Shared>),
    /// Only this one does.
    Own(Message),
}

/// The server's end of one stream.
#[derive(Debug)]
pub struct Session {
    push: Arc<Push>,
    connection: Connection,
    agent: SpiffeId,
    plan: Plan,
    ack: Ack,
}

/// What is still to be said.
#[derive(Debug)]
struct Plan {
    phase: Phase,
    /// Bodies asked for.
    needs: VecDeque<EntryId>,
    /// Lists sent to their end after which the agent did not yet say that it needs no more.
    open_lists: usize,
    /// The agent has the bundles of this revision once it has read what was sent.
    sent_bundles: Revision,
    heartbeat: Option<SystemTime>,
}

/// What is to be made next.
#[derive(Debug)]
enum Phase {
    /// Say that bundles begin anew.
    BundlesAnew,
    /// The bundles after this one, then a list or not.
    Bundles {
        after: Option<TrustDomain>,
        list: bool,
    },
    /// Say that a list begins.
    ListBegins,
    /// The list after this place.
    List(Option<Cursor>),
    /// Wait until the agent needs nothing more.
    Bodies,
    /// Close the resume.
    Closing,
    /// Nothing.
    Live,
}

impl Session {
    /// Opens a stream of `agent`, who said `hello`.
    pub(super) fn open(push: &Arc<Push>, agent: &SpiffeId, hello: &Hello) -> Self {
        let Opened {
            connection,
            set,
            bundles,
            bundle_revision,
        } = push.state.connect(agent);
        let list = set != hello.set;
        let has_bundles = bundles == hello.bundles;
        let phase = match (has_bundles, list) {
            (false, _) => Phase::Bundles { after: None, list },
            (true, true) => Phase::ListBegins,
            (true, false) => Phase::Closing,
        };
        let sent_bundles = if has_bundles { bundle_revision } else { 0 };
        push.counters.streams.inc();
        Self {
            push: Arc::clone(push),
            connection,
            agent: agent.clone(),
            ack: push.acks.join(sent_bundles),
            plan: Plan {
                phase,
                needs: VecDeque::new(),
                open_lists: 0,
                sent_bundles,
                heartbeat: None,
            },
        }
    }

    /// Whose stream it is.
    #[must_use]
    pub fn agent(&self) -> &SpiffeId {
        &self.agent
    }

    /// The next message, if there is one now.
    pub fn next_message(&mut self) -> Option<Outgoing> {
        loop {
            let plan = &mut self.plan;
            let bundles_only = plan.is_before_entries();
            match self.connection.pull(bundles_only, |view| plan.step(view)) {
                Pulled::Waiting(message) => {
                    self.plan.sends(message.message());
                    self.push.counters.delay.observe(message.age());
                    return Some(Outgoing::Shared(message));
                }
                Pulled::Made(message) => {
                    let message = message?;
                    self.plan.sends(&message);
                    self.count(&message);
                    return Some(Outgoing::Own(message));
                }
                Pulled::Lost => {
                    self.push.counters.overruns.inc();
                    tracing::debug!(agent_id = %self.agent, "agent lists its set again");
                    self.plan.start_over(self.connection.state().bundles().1);
                }
            }
        }
    }

    /// Waits until [`Session::next_message`] may have something that it had not.
    pub async fn woken(&self) {
        self.connection.woken().await;
    }

    /// The agent needs the bodies of `ids`; without any it needs no more.
    pub fn need(&mut self, ids: Vec<EntryId>) {
        if ids.is_empty() {
            self.plan.open_lists = self.plan.open_lists.saturating_sub(1);
        }
        self.plan.needs.extend(ids);
    }

    /// Whether more requests may be read: an agent that asks faster than it reads waits.
    #[must_use]
    pub fn wants_requests(&self) -> bool {
        self.plan.needs.len() <= MAX_NEEDS
    }

    /// The agent has applied the bundles of `revision`; one that was not sent does not count.
    pub fn acknowledged(&mut self, revision: Revision) {
        self.ack.raise(revision.min(self.plan.sent_bundles));
    }

    /// Asks for a heartbeat that says `now`, once all else was said.
    pub fn beat(&mut self, now: SystemTime) {
        self.plan.heartbeat = Some(now);
    }

    /// Whether the agent's record changed since the last call: it may no longer be served.
    #[must_use]
    pub fn take_doubt(&self) -> bool {
        self.connection.take_doubt()
    }

    /// Whether newer streams of the agent took the place of this one.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.connection.is_replaced()
    }

    fn count(&self, message: &Message) {
        match message {
            Message::List { last: true, .. } => self.push.counters.lists.inc(),
            Message::InSync { .. } => self.push.counters.resumes.inc(),
            _ => return,
        };
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.push.counters.streams.dec();
    }
}

impl Plan {
    /// Whether entries have to wait for bundles.
    fn is_before_entries(&self) -> bool {
        matches!(self.phase, Phase::BundlesAnew | Phase::Bundles { .. })
    }

    /// The next message made from the state.
    fn step(&mut self, view: &View<'_>) -> Option<Message> {
        loop {
            match &self.phase {
                Phase::BundlesAnew => {
                    self.phase = Phase::Bundles {
                        after: None,
                        list: true,
                    };
                    return Some(Message::begin_bundles(view.bundle_revision()));
                }
                Phase::Bundles { after, list } => {
                    let list = *list;
                    let (message, next) = view.bundles(after.as_ref());
                    self.phase = match next {
                        after @ Some(_) => Phase::Bundles { after, list },
                        None if list => Phase::ListBegins,
                        None => Phase::Closing,
                    };
                    return Some(message);
                }
                _ if !self.needs.is_empty() => {
                    if let Some(message) = self.bodies(view) {
                        return Some(message);
                    }
                }
                Phase::ListBegins => {
                    self.phase = Phase::List(None);
                    return Some(Message::begin_list());
                }
                Phase::List(cursor) => {
                    let (message, next) = view.list(*cursor);
                    self.phase = match next {
                        next @ Some(_) => Phase::List(next),
                        None => Phase::Bodies,
                    };
                    return Some(message);
                }
                Phase::Bodies if self.open_lists == 0 => self.phase = Phase::Closing,
                Phase::Closing => {
                    self.phase = Phase::Live;
                    return Some(view.in_sync());
                }
                Phase::Bodies | Phase::Live => {
                    let time = self.heartbeat.take()?;
                    let revision = view.revision();
                    return Some(Message::Heartbeat { revision, time });
                }
            }
        }
    }

    /// Some of the bodies asked for; nothing when none of those looked at is in the set.
    fn bodies(&mut self, view: &View<'_>) -> Option<Message> {
        let (message, looked_at) = view.bodies(self.needs.iter());
        self.needs.drain(..looked_at.min(self.needs.len()));
        message
    }

    /// Keeps account of a message that goes out.
    fn sends(&mut self, message: &Message) {
        match message {
            Message::Bundles {
                revision,
                full,
                last,
                ..
            } => {
                // A change within a full set is not the whole of it.
                let is_whole = *last && (*full || !self.is_before_entries());
                if is_whole {
                    self.sent_bundles = self.sent_bundles.max(*revision);
                }
            }
            Message::List { last: true, .. } => {
                self.open_lists = self.open_lists.saturating_add(1);
            }
            _ => {}
        }
    }

    /// What waited was thrown away: the set is listed again, after the bundles if some of
    /// them were among it.
    fn start_over(&mut self, bundle_revision: Revision) {
        self.phase = match self.phase {
            Phase::BundlesAnew | Phase::Bundles { .. } => Phase::BundlesAnew,
            _ if self.sent_bundles < bundle_revision => Phase::Bundles {
                after: None,
                list: true,
            },
            _ => Phase::ListBegins,
        };
    }
}
