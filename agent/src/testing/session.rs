//! The end of a Watch stream that a test holds.

use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use vane_identity::bundle::Bundle;
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::Entry;
use vane_wire::spire::api::types;
use vane_wire::vane::sync::v1::watch_response::Response as Say;
use vane_wire::vane::sync::v1::{Bundles, Delta, Hello, InSync, WatchRequest, WatchResponse};

/// The end of a Watch stream that the test holds.
pub(crate) struct Session {
    pub(crate) hello: Hello,
    pub(crate) requests: Streaming<WatchRequest>,
    pub(super) answers: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Session {
    pub(crate) async fn say(&self, response: Say) {
        let response = WatchResponse {
            response: Some(response),
        };
        self.answers.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn bundle(&self, bundle: &Bundle) {
        self.say(Say::Bundles(Bundles {
            bundles: vec![bundle.into()],
            removed: Vec::new(),
            bundle_revision: 1,
            full: false,
            last: true,
        }))
        .await;
    }

    pub(crate) async fn change(&self, upserts: &[Entry], removed: &[&str]) {
        self.say(Say::Delta(Delta {
            revision: 1,
            upserts: upserts.iter().map(types::Entry::from).collect(),
            removed: removed.iter().map(|id| (*id).to_owned()).collect(),
        }))
        .await;
    }

    /// Closes the resume of an agent that holds `entries` and `bundle`.
    pub(crate) async fn in_sync(&self, entries: &[Entry], bundle: &Bundle) {
        let member =
            |one: &Entry| Member::of_entry(one.id.as_str(), one.revision_number, one.created_at);
        let set: Digest = entries.iter().map(member).collect();
        let bundles: Digest = [Member::of_bundle(bundle)].into_iter().collect();
        self.say(Say::InSync(InSync {
            revision: 1,
            set_digest: set.to_bytes().to_vec().into(),
            epoch: vec![1; 16].into(),
            bundle_digest: bundles.to_bytes().to_vec().into(),
        }))
        .await;
    }

    /// Ends the stream: in good order, or with `status`.
    pub(crate) async fn end(self, status: Option<Status>) {
        if let Some(status) = status {
            self.answers.send(Err(status)).await.unwrap();
        }
    }
}
