//! The container runtime's socket: a double that speaks one version of CRI, or hangs.

use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use vane_wire::runtime::{v1, v1alpha2};

use super::super::cri::Runtime;
use super::*;

#[derive(Clone, Copy)]
enum Does {
    Tells,
    Hangs,
}

struct Cri {
    does: Does,
    pod: &'static str,
}

macro_rules! speaks {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::runtime_service_server::RuntimeService for Cri {
            async fn container_status(
                &self,
                request: Request<$version::ContainerStatusRequest>,
            ) -> Result<Response<$version::ContainerStatusResponse>, Status> {
                if matches!(self.does, Does::Hangs) {
                    std::future::pending().await
                }
                let id = request.into_inner().container_id;
                if id != WEB.1 {
                    return Err(Status::not_found("no such container"));
                }
                let labels = [("io.kubernetes.pod.uid".to_owned(), self.pod.to_owned())];
                let status = $version::ContainerStatus {
                    id,
                    metadata: Some($version::ContainerMetadata {
                        name: "app".to_owned(),
                    }),
                    image: Some($version::ImageSpec {
                        image: "docker.io/local/busybox:1".to_owned(),
                    }),
                    image_ref: "docker.io/local/busybox@sha256:eff6".to_owned(),
                    labels: labels.into(),
                };
                Ok(Response::new($version::ContainerStatusResponse {
                    status: Some(status),
                }))
            }
        }
    };
}

speaks!(v1);
speaks!(v1alpha2);

/// A runtime at a socket in `folder`, of the older version only when it is `old`.
fn start(folder: &Path, cri: Cri, old: bool) -> (PathBuf, TaskSet) {
    let (socket, tasks) = (folder.join("cri.sock"), TaskSet::new("cri"));
    let connections = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let mut server = Server::builder();
    let router = match old {
        true => server.add_service(v1alpha2::runtime_service_server::RuntimeServiceServer::new(
            cri,
        )),
        false => server.add_service(v1::runtime_service_server::RuntimeServiceServer::new(cri)),
    };
    tasks.spawn(async move {
        router.serve_with_incoming(connections).await.unwrap();
    });
    (socket, tasks)
}

async fn told(cri: Cri, old: bool) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let (socket, _running) = start(folder.path(), cri, old);
    let at = place(WEB);
    let told = Runtime::new(socket)
        .container(&at.pod, &at.container.unwrap())
        .await;
    told.map(|container| container.name.clone())
}

#[tokio::test]
async fn both_versions_are_spoken_and_a_container_of_another_pod_is_none() {
    for old in [false, true] {
        let cri = |pod| Cri {
            does: Does::Tells,
            pod,
        };
        assert_eq!(told(cri(WEB.0), old).await.as_deref(), Some("app"));
        assert_eq!(told(cri(DB.0), old).await, None);
    }
}

#[tokio::test]
async fn with_the_runtime_a_new_container_is_known_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let cri = Cri {
        does: Does::Tells,
        pod: WEB.0,
    };
    let (socket, _running) = start(folder.path(), cri, false);
    let world = World::with(|config| config.cri_socket = Some(socket)).await;
    world.double.shows(PODS, body("kubelet/pods_partly.json"));
    let web = world.known(WEB).await;
    assert!(values(&web).contains(&"container-name:app"), "{web:?}");
    assert!(values(&web).contains(&"container-image:docker.io/local/busybox@sha256:eff6"));
    assert_eq!(unknown(&web), ["pod-image:"]);
}

/// Neither a runtime that hangs nor one that is not there hides what the kubelet says.
#[tokio::test(start_paused = true)]
async fn without_an_answer_of_the_runtime_the_container_is_unknown() {
    assert_eq!(
        told(
            Cri {
                does: Does::Hangs,
                pod: WEB.0
            },
            false
        )
        .await,
        None
    );
    let at = place(WEB);
    let nowhere = Runtime::new("/nowhere/cri.sock".into());
    assert_eq!(
        nowhere.container(&at.pod, &at.container.unwrap()).await,
        None
    );
}
