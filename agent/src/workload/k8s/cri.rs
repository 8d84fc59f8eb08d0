//! The container runtime's socket (CRI), which knows a container before it runs.
//!
//! Only reads, and only the container that the process's cgroup names; what it says counts when
//! it says the same pod. Speaks `runtime.v1`, and `v1alpha2` with runtimes that do not know that
//! yet. Answers are kept, since a container does not change; failures are not.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Code;
use vane_client::channel::{self, Channel};
use vane_wire::runtime::{v1, v1alpha2};

use crate::cgroup::{ContainerId, PodUid};

/// Calls at the same time.
const AT_ONCE: usize = 16;
/// So long a call may take, waiting for its turn included.
const DEADLINE: Duration = Duration::from_secs(1);
/// The most containers that are kept.
const MAX_KEPT: usize = 1_024;
/// The most bytes of an answer: labels are the kubelet's.
const MAX_ANSWER: usize = 256 * 1024;
/// In which the kubelet writes the UID of the container's pod.
const POD_UID: &str = "io.kubernetes.pod.uid";

/// A container as the runtime has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    /// Its name in the pod.
    pub(super) name: String,
    /// The image as the runtime calls it.
    pub(super) image: String,
    /// The image with its digest.
    pub(super) image_id: String,
}

/// A runtime.
#[derive(Debug)]
pub(super) struct Runtime {
    socket: PathBuf,
    channel: Channel,
    turns: Semaphore,
    kept: Mutex<HashMap<ContainerId, (PodUid, Arc<Container>)>>,
}

/// What a runtime answers.
struct Answer {
    pod: Option<String>,
    container: Container,
}

impl From<v1::ContainerStatus> for Answer {
    fn from(mut status: v1::ContainerStatus) -> Self {
        Self {
            pod: status.labels.remove(POD_UID),
            container: Container {
                name: status.metadata.unwrap_or_default().name,
                image: status.image.unwrap_or_default().image,
                image_id: status.image_ref,
            },
        }
    }
}

impl Runtime {
    /// The runtime behind this socket, which is opened when it is first asked.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            channel: channel::unix_lazy(socket.clone()),
            socket,
            turns: Semaphore::new(AT_ONCE),
            kept: Mutex::default(),
        }
    }

    /// The container `id` of `pod`; None when it cannot be had now.
    pub(super) async fn container(&self, pod: &PodUid, id: &ContainerId) -> Option<Arc<Container>> {
        if let Some(kept) = self.kept(pod, id) {
            return Some(kept);
        }
        let why = match timeout(DEADLINE, self.ask(id)).await {
            Ok(Ok(answer)) if answer.pod.as_deref() == Some(pod.as_str()) => {
                return Some(self.keep(pod, id, answer.container));
            }
            Ok(Ok(_)) => "the runtime says that the container is in another pod".to_owned(),
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        };
        let socket = self.socket.display();
        tracing::warn!(%socket, container = %id, error = why, "the container runtime does not tell of a container");
        None
    }

    async fn ask(&self, id: &ContainerId) -> Result<Answer, tonic::Status> {
        let _turn = self.turns.acquire().await;
        match self.ask_v1(id).await {
            Err(status) if status.code() == Code::Unimplemented => self.ask_v1alpha2(id).await,
            answered => answered,
        }
    }

    async fn ask_v1(&self, id: &ContainerId) -> Result<Answer, tonic::Status> {
        use v1::runtime_service_client::RuntimeServiceClient;
        let request = v1::ContainerStatusRequest {
            container_id: id.as_str().to_owned(),
        };
        let client = RuntimeServiceClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(MAX_ANSWER);
        let status = client.container_status(request).await?.into_inner().status;
        Ok(status.unwrap_or_default().into())
    }

    /// The messages of both versions are the same on the wire.
    async fn ask_v1alpha2(&self, id: &ContainerId) -> Result<Answer, tonic::Status> {
        use v1alpha2::runtime_service_client::RuntimeServiceClient;
        let request = v1alpha2::ContainerStatusRequest {
            container_id: id.as_str().to_owned(),
        };
        let client = RuntimeServiceClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(MAX_ANSWER);
        let status = client.container_status(request).await?.into_inner().status;
        let bytes = status.unwrap_or_default().encode_to_vec();
        let status = v1::ContainerStatus::decode(bytes.as_slice());
        let malformed = |error: prost::DecodeError| tonic::Status::internal(error.to_string());
        Ok(status.map_err(malformed)?.into())
    }

    fn kept(&self, pod: &PodUid, id: &ContainerId) -> Option<Arc<Container>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, container) = kept.get(id)?;
        (of == pod).then(|| Arc::clone(container))
    }

    fn keep(&self, pod: &PodUid, id: &ContainerId, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // It is needed until the kubelet tells of the container, a second later.
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(id.clone(), (pod.clone(), Arc::clone(&container)));
        container
    }
}
