//! The services at the two sockets: CSI Identity and Node for the kubelet's mounts, Registration
//! for its list of drivers. Requests become paths and settings here; [`Volumes`] does the work,
//! one call at a time and off the thread that serves.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tonic::{Request, Response, Status};
use vane_wire::csi::v1::identity_server::Identity;
use vane_wire::csi::v1::node_server::Node;
use vane_wire::csi::v1::node_service_capability::rpc::Type as Rpc;
use vane_wire::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, ProbeRequest, ProbeResponse,
    VolumeCondition, node_service_capability,
};
use vane_wire::pluginregistration::registration_server::Registration;
use vane_wire::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

use super::folder::FolderError;
use super::options::Settings;
use super::request::{Pod, check_publish, check_unpublish};
use super::volumes::{Condition, Done, VolumeError, Volumes};

/// The version of CSI that is spoken, as the kubelet compares it.
const CSI_VERSION: &str = "1.0.0";

/// What only a new start of the container mends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    /// The kubelet did not take the driver; it does not ask again by itself.
    #[error("the kubelet did not register the driver: {0}")]
    NotRegistered(String),
    /// What pods would get is gone. A new container gets the new folder.
    #[error(transparent)]
    Folder(FolderError),
}

/// Tells the task that ends the process; the first to tell is heard.
type Alarm = mpsc::Sender<Fatal>;

/// CSI's services.
#[derive(Clone)]
pub(super) struct Driver {
    name: String,
    node_id: String,
    volumes: Arc<Volumes>,
    turn: Arc<Semaphore>,
    alarm: Alarm,
}

impl Driver {
    pub(super) fn new(settings: &Settings, volumes: Volumes, alarm: Alarm) -> Self {
        Self {
            name: settings.name.clone(),
            node_id: settings.node_id.clone(),
            volumes: Arc::new(volumes),
            turn: Arc::new(Semaphore::new(1)),
            alarm,
        }
    }

    /// Carries out `call` when those before it have ended; a caller that goes away does not
    /// interrupt it.
    async fn in_turn<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Volumes) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let stopping = || Status::unavailable("the driver is stopping");
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let turn = turn.map_err(|_| stopping())?;
        let volumes = Arc::clone(&self.volumes);
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            call(&volumes)
        });
        work.await.map_err(|_| stopping())
    }

    fn status(&self, error: VolumeError) -> Status {
        let text = error.to_string();
        match error {
            VolumeError::Target(_) => Status::invalid_argument(text),
            VolumeError::Folder(removed @ FolderError::Removed(_)) => {
                // One that is told already ends the process as well.
                let _ = self.alarm.try_send(Fatal::Folder(removed));
                Status::unavailable(text)
            }
            VolumeError::Folder(FolderError::System { .. })
            | VolumeError::NoParent(_)
            | VolumeError::Stack(_)
            | VolumeError::System { .. } => Status::internal(text),
            VolumeError::Folder(_) | VolumeError::Foreign(_) => Status::failed_precondition(text),
        }
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse {}))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let pod = Pod::of(&request);
        let published = match check_publish(&request) {
            Ok(()) => {
                let target = request.target_path.clone();
                let done = self.in_turn(move |volumes| volumes.publish(&target));
                done.await?.map_err(|error| self.status(error))
            }
            Err(status) => Err(status),
        };
        let (volume_id, target_path) = (&request.volume_id, &request.target_path);
        match published {
            Ok(Done::Already) => tracing::debug!(?volume_id, ?pod, "volume was published already"),
            Ok(Done::Changed) => tracing::info!(?volume_id, ?pod, "volume published"),
            Ok(Done::Replaced) => tracing::info!(
                ?volume_id,
                ?pod,
                "volume published anew: it had a folder of before"
            ),
            Err(status) => {
                let error = status.message();
                tracing::error!(
                    ?volume_id,
                    ?target_path,
                    ?pod,
                    error,
                    "volume not published"
                );
                return Err(status);
            }
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        check_unpublish(&request)?;
        let target = request.target_path.clone();
        let done = self.in_turn(move |volumes| volumes.unpublish(&target));
        let (volume_id, target_path) = (&request.volume_id, &request.target_path);
        match done.await? {
            Ok(_) => tracing::info!(?volume_id, "volume unpublished"),
            Err(error) => {
                tracing::error!(?volume_id, ?target_path, %error, "volume not unpublished");
                return Err(self.status(error));
            }
        }
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let path = request.into_inner().volume_path;
        let seen = self.in_turn(move |volumes| volumes.condition(&path));
        Ok(Response::new(NodeGetVolumeStatsResponse {
            volume_condition: Some(condition(seen.await?)),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let able = |rpc: Rpc| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(
                node_service_capability::Rpc { r#type: rpc.into() },
            )),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: vec![able(Rpc::VolumeCondition), able(Rpc::GetVolumeStats)],
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
        }))
    }
}

fn condition(seen: Result<Condition, VolumeError>) -> VolumeCondition {
    let (abnormal, message) = match seen {
        Ok(Condition::Mounted) => (false, "mounted".to_owned()),
        Ok(Condition::NotMounted) => (true, "volume path is not mounted".to_owned()),
        Ok(Condition::Outdated) => (
            true,
            "the agent's socket folder was made anew since: the pod has to be made anew, too"
                .to_owned(),
        ),
        Err(error) => (true, error.to_string()),
    };
    VolumeCondition { abnormal, message }
}

/// The kubelet's question who this is.
pub(super) struct Introduction {
    pub(super) name: String,
    /// The path of the driver's socket as the kubelet sees it.
    pub(super) endpoint: String,
    pub(super) alarm: Alarm,
}

#[tonic::async_trait]
impl Registration for Introduction {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(name = self.name, "the kubelet registered the driver");
        } else {
            let _ = self.alarm.try_send(Fatal::NotRegistered(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
