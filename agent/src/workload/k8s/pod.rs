//! A pod, as far as selectors come from it, out of Kubernetes' JSON
//! (<https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/>).
//!
//! Parsing keeps nothing else, so that a list of hundreds of pods stays small. Two pods are equal
//! when the same selectors come from them. A pod without a UID that a cgroup can name is left out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::cgroup::{ContainerId, PodUid};

/// The most bytes of labels and owners of a pod that are kept. The API server bounds an object
/// to 1.5 MiB: whoever may make pods could fill the agent's memory otherwise.
const MAX_LABELS: usize = 64 * 1024;

/// A pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: PodUid,
    pub(super) name: Box<str>,
    pub(super) namespace: Box<str>,
    pub(super) service_account: Box<str>,
    pub(super) node_name: Box<str>,
    /// None when there is more than is kept.
    pub(super) labels: Option<BTreeMap<Box<str>, Box<str>>>,
    /// None when there is more than is kept.
    pub(super) owners: Option<Box<[Owner]>>,
    pub(super) containers: Box<[Container]>,
    /// For what the API server has of a pod that comes from one of the kubelet's files: the UID
    /// that the kubelet knows it by.
    pub(super) mirror_of: Option<PodUid>,
}

/// What a pod belongs to.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Owner {
    pub(super) kind: Box<str>,
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
}

/// A container of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) part: Part,
    pub(super) name: Box<str>,
    /// The image that the pod asks for.
    pub(super) wanted: Box<str>,
    /// The container that runs, or ran last; None before the kubelet has told.
    pub(super) id: Option<ContainerId>,
    /// The image as the runtime calls it; may be empty.
    pub(super) image: Box<str>,
    /// The image with its digest; empty before it is there.
    pub(super) image_id: Box<str>,
}

/// Which of a pod's three lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Main,
    Init,
    /// Put in later, to look for mistakes.
    Ephemeral,
}

impl Pod {
    /// The container with this ID.
    pub(super) fn container(&self, id: &ContainerId) -> Option<&Container> {
        let mut containers = self.containers.iter();
        containers.find(|one| one.id.as_ref() == Some(id))
    }

    /// Whether the images of all containers of `part` are known.
    pub(super) fn has_images(&self, part: Part) -> bool {
        let mut containers = self.containers.iter().filter(|one| one.part == part);
        containers.all(|one| !one.image_id.is_empty())
    }
}

/// The pods of a node at one moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Pods {
    by_uid: HashMap<PodUid, Arc<Pod>>,
}

impl Pods {
    /// The pod of a process in this cgroup.
    ///
    /// The API server knows a pod of one of the kubelet's files by another UID than its cgroups
    /// have. It counts only if exactly one claims to be it: everybody who may make pods can write
    /// that annotation.
    pub(super) fn get(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        if let Some(pod) = self.by_uid.get(uid) {
            return Some(pod);
        }
        let mirrors = |pod: &&Arc<Pod>| pod.mirror_of.as_ref() == Some(uid);
        let mut claims = self.by_uid.values().filter(mirrors);
        claims.next().filter(|_| claims.next().is_none())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_uid.values()
    }

    /// Whether there is a pod with this very UID.
    pub(super) fn has(&self, uid: &PodUid) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// Puts a pod of another list in.
    pub(super) fn keep(&mut self, pod: Arc<Pod>) {
        self.by_uid.insert(pod.uid.clone(), pod);
    }

    /// Puts a pod in, or in the place of what it was before.
    pub(super) fn put(&mut self, pod: Pod) {
        self.keep(Arc::new(pod));
    }

    /// Takes a pod out.
    pub(super) fn remove(&mut self, uid: &PodUid) {
        self.by_uid.remove(uid);
    }
}

impl FromIterator<Pod> for Pods {
    fn from_iter<I: IntoIterator<Item = Pod>>(pods: I) -> Self {
        let mut all = Self::default();
        pods.into_iter().for_each(|pod| all.put(pod));
        all
    }
}

/// A `PodList`, of the kubelet or of the API server.
#[derive(Debug, Deserialize)]
pub(super) struct PodList {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) items: Vec<Item>,
}

/// What the API server says of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// One pod of a list or of an event.
#[derive(Debug)]
pub(super) struct Item {
    /// None when no cgroup can name it.
    pub(super) pod: Option<Pod>,
    pub(super) resource_version: String,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut wire = WirePod::deserialize(deserializer)?;
        Ok(Self {
            resource_version: std::mem::take(&mut wire.metadata.resource_version),
            pod: wire.into_pod(),
        })
    }
}

#[derive(Deserialize)]
struct WirePod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    namespace: Box<str>,
    #[serde(default)]
    resource_version: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<Box<str>, Box<str>>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: Annotations,
    #[serde(default, deserialize_with = "or_default")]
    owner_references: Vec<Owner>,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(default, rename = "kubernetes.io/config.mirror")]
    mirror: Option<Box<str>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    service_account_name: Box<str>,
    node_name: Box<str>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<SpecContainer>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<SpecContainer>,
    #[serde(deserialize_with = "or_default")]
    ephemeral_containers: Vec<SpecContainer>,
}

#[derive(Deserialize)]
struct SpecContainer {
    name: Box<str>,
    #[serde(default)]
    image: Box<str>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    #[serde(deserialize_with = "or_default")]
    container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    name: Box<str>,
    #[serde(default)]
    image: Box<str>,
    #[serde(default, rename = "imageID")]
    image_id: Box<str>,
    /// `<runtime>://<id>`
    #[serde(default, rename = "containerID")]
    container_id: Box<str>,
}

impl WirePod {
    fn into_pod(self) -> Option<Pod> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let lists = [
            (Part::Main, spec.containers, status.container_statuses),
            (
                Part::Init,
                spec.init_containers,
                status.init_container_statuses,
            ),
            (
                Part::Ephemeral,
                spec.ephemeral_containers,
                status.ephemeral_container_statuses,
            ),
        ];
        let containers = lists
            .into_iter()
            .flat_map(|(part, specs, statuses)| containers(part, specs, statuses));
        let labels = metadata.labels.iter();
        let labels_size: usize = labels.map(|(key, value)| key.len() + value.len()).sum();
        let owners = metadata.owner_references.iter();
        let owners_size: usize = owners
            .map(|one| one.kind.len() + one.name.len() + one.uid.len())
            .sum();
        Some(Pod {
            uid: PodUid::parse(&metadata.uid)?,
            mirror_of: metadata.mirror_of(),
            name: metadata.name,
            namespace: metadata.namespace,
            service_account: spec.service_account_name,
            node_name: spec.node_name,
            labels: (labels_size <= MAX_LABELS).then_some(metadata.labels),
            owners: (owners_size <= MAX_LABELS).then_some(metadata.owner_references.into()),
            containers: containers.collect(),
        })
    }
}

impl Metadata {
    /// The API server makes a pod's mirror belong to its node.
    fn mirror_of(&self) -> Option<PodUid> {
        let of_node = self.owner_references.iter().any(|one| &*one.kind == "Node");
        let mirror = self.annotations.mirror.as_deref().filter(|_| of_node)?;
        PodUid::parse(mirror).filter(|uid| !uid.as_str().contains('-'))
    }
}

fn containers(
    part: Part,
    specs: Vec<SpecContainer>,
    mut statuses: Vec<ContainerStatus>,
) -> impl Iterator<Item = Container> {
    specs.into_iter().map(move |spec| {
        let at = statuses.iter().position(|one| one.name == spec.name);
        let status = at.map(|at| statuses.swap_remove(at));
        let id = status
            .as_ref()
            .and_then(|one| one.container_id.split_once("://"));
        let id = id.and_then(|(_, id)| ContainerId::parse(id));
        let (image, image_id) = status
            .map(|one| (one.image, one.image_id))
            .unwrap_or_default();
        Container {
            part,
            name: spec.name,
            wanted: spec.image,
            id,
            image,
            image_id,
        }
    })
}

/// Go writes an empty list as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
