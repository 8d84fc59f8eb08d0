//! What the kubelet asks, checked: spiffe-csi's rules in its order and its words, which users
//! find in the events of their pods.

use tonic::Status;
use vane_wire::csi::v1::volume_capability::AccessType;
use vane_wire::csi::v1::volume_capability::access_mode::Mode;
use vane_wire::csi::v1::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability};

/// What the kubelet says of the kind of a volume (`CSIDriver` with podInfoOnMount).
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// The pod that a volume is for, as the kubelet says; empty where it says nothing. For the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Pod {
    /// The pod of a request.
    pub(super) fn of(request: &NodePublishVolumeRequest) -> Self {
        let said = |key| request.volume_context.get(key).cloned().unwrap_or_default();
        Self {
            namespace: said("csi.storage.k8s.io/pod.namespace"),
            name: said("csi.storage.k8s.io/pod.name"),
        }
    }
}

/// Checks that a volume can be published as it is asked for.
pub(super) fn check_publish(request: &NodePublishVolumeRequest) -> Result<(), Status> {
    check_names(&request.volume_id, &request.target_path)?;
    check_capability(request.volume_capability.as_ref())?;
    if !request.readonly {
        return Err(Status::invalid_argument(
            "pod.spec.volumes[].csi.readOnly must be set to 'true'",
        ));
    }
    if request.volume_context.get(EPHEMERAL).map(String::as_str) != Some("true") {
        return Err(Status::invalid_argument(
            "only ephemeral volumes are supported",
        ));
    }
    Ok(())
}

/// Checks that a volume can be unpublished.
pub(super) fn check_unpublish(request: &NodeUnpublishVolumeRequest) -> Result<(), Status> {
    check_names(&request.volume_id, &request.target_path)
}

fn check_names(volume_id: &str, target_path: &str) -> Result<(), Status> {
    if volume_id.is_empty() {
        return Err(Status::invalid_argument(
            "request missing required volume id",
        ));
    }
    if target_path.is_empty() {
        return Err(Status::invalid_argument(
            "request missing required target path",
        ));
    }
    Ok(())
}

fn check_capability(capability: Option<&VolumeCapability>) -> Result<(), Status> {
    let refuse = |text| Err(Status::invalid_argument(text));
    let Some(capability) = capability else {
        return refuse("request missing required volume capability");
    };
    match &capability.access_type {
        None => return refuse("request missing required volume capability access type"),
        Some(AccessType::Mount(mount))
            if mount.fs_type.is_empty() && mount.mount_flags.is_empty() => {}
        Some(_) => {
            return refuse("request volume capability access type must be a simple mount");
        }
    }
    let Some(mode) = &capability.access_mode else {
        return refuse("request missing required volume capability access mode");
    };
    // The kubelet asks for inline volumes as SINGLE_NODE_WRITER, whatever `readonly` says.
    if mode.mode() == Mode::SingleNodeReaderOnly {
        return refuse("request volume capability access mode is not valid");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use tonic::Code;
    use vane_wire::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    /// What the kubelet sends for an inline volume of a pod (1.20).
    pub(in crate::csi) fn publish(target_path: &str) -> NodePublishVolumeRequest {
        let said = [
            (EPHEMERAL, "true"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("csi.storage.k8s.io/pod.namespace", "shop"),
        ];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        NodePublishVolumeRequest {
            volume_id: "csi-0".to_owned(),
            target_path: target_path.to_owned(),
            volume_capability: Some(capability(Mode::SingleNodeWriter)),
            readonly: true,
            volume_context: said.map(owned).into(),
        }
    }

    fn capability(mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }
    }

    type Change = fn(&mut NodePublishVolumeRequest);

    fn change_mount(request: &mut NodePublishVolumeRequest, mount: MountVolume) {
        let capability = request.volume_capability.as_mut().unwrap();
        capability.access_type = Some(AccessType::Mount(mount));
    }

    #[test]
    fn what_the_kubelet_asks_for_an_inline_volume_is_accepted() {
        let request = publish("/t");
        check_publish(&request).unwrap();
        let pod = Pod::of(&request);
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str()),
            ("shop", "web-0")
        );
    }

    #[test]
    fn what_spiffe_csi_refuses_is_refused_in_its_words() {
        let refusals: [(&str, Change); 13] = [
            ("request missing required volume id", |r| {
                r.volume_id.clear();
            }),
            ("request missing required target path", |r| {
                r.target_path.clear();
            }),
            ("request missing required volume capability", |r| {
                r.volume_capability = None;
            }),
            (
                "request missing required volume capability access type",
                |r| r.volume_capability.as_mut().unwrap().access_type = None,
            ),
            (
                "request volume capability access type must be a simple mount",
                |r| {
                    let block = AccessType::Block(BlockVolume {});
                    r.volume_capability.as_mut().unwrap().access_type = Some(block);
                },
            ),
            (
                "request volume capability access type must be a simple mount",
                |r| {
                    let mount = MountVolume {
                        fs_type: "ext4".to_owned(),
                        ..MountVolume::default()
                    };
                    change_mount(r, mount);
                },
            ),
            (
                "request volume capability access type must be a simple mount",
                |r| {
                    let mount = MountVolume {
                        mount_flags: vec!["rw".to_owned()],
                        ..MountVolume::default()
                    };
                    change_mount(r, mount);
                },
            ),
            (
                "request missing required volume capability access mode",
                |r| r.volume_capability.as_mut().unwrap().access_mode = None,
            ),
            ("request volume capability access mode is not valid", |r| {
                r.volume_capability = Some(capability(Mode::SingleNodeReaderOnly));
            }),
            (
                "pod.spec.volumes[].csi.readOnly must be set to 'true'",
                |r| r.readonly = false,
            ),
            ("only ephemeral volumes are supported", |r| {
                r.volume_context.clear();
            }),
            ("only ephemeral volumes are supported", |r| {
                r.volume_context
                    .insert(EPHEMERAL.to_owned(), "false".to_owned());
            }),
            ("only ephemeral volumes are supported", |r| {
                r.volume_context
                    .insert(EPHEMERAL.to_owned(), "True".to_owned());
            }),
        ];
        for (text, change) in refusals {
            let mut request = publish("/t");
            change(&mut request);
            let status = check_publish(&request).unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::InvalidArgument, text)
            );
        }
    }

    #[test]
    fn unpublish_needs_a_volume_and_a_path() {
        for (volume_id, target_path, is_fine) in
            [("v", "/t", true), ("", "/t", false), ("v", "", false)]
        {
            let request = NodeUnpublishVolumeRequest {
                volume_id: volume_id.to_owned(),
                target_path: target_path.to_owned(),
            };
            assert_eq!(check_unpublish(&request).is_ok(), is_fine);
        }
    }
}
