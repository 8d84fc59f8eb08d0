//! From `/proc/<pid>/cgroup`, as this process sees it, to the pod and the container that the
//! kubelet put a process in.
//!
//! What a process may write are children of its own cgroup, with any name, and inside a session
//! or a container that cgroups were delegated to, whole trees that look like the kubelet's. So
//! a pod counts only where the kubelet makes them: right below its root, which is `/`, the place
//! that the agent's own pod shows, or the configured one; and the first pod on the way from
//! there is the process's, whatever stands behind it. Lines that name different pods or
//! containers are refused. Nothing here says that the pod exists: only the kubelet does.
//!
//! The forms (cgroup v1, v2 and both; the drivers `cgroupfs` and `systemd`; a cgroup namespace
//! of the agent's own) stand in `corpus/`, each with its source.

#[cfg(test)]
mod tests;

use std::fmt;

/// What the kubelet calls its top cgroup.
const TOP: &str = "kubepods";
/// Its children for all but guaranteed pods.
const QOS: [&str; 2] = ["besteffort", "burstable"];
/// Hexadecimal characters of a container ID of every runtime.
const CONTAINER_ID: usize = 64;
/// What runtimes write before the ID of a container.
const CONTAINER_PREFIXES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "libpod-"];

/// The UID of a pod as the kubelet has it: a UUID, or 32 hexadecimal characters for a pod from
/// one of its files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Box<str>);

/// The ID of a container: 64 hexadecimal characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(Box<str>);

/// Where the kubelet put a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The pod.
    pub pod: PodUid,
    /// None when the cgroup is not one of a container, as a runtime's own helpers have.
    pub container: Option<ContainerId>,
}

/// The hierarchies do not agree where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cgroup hierarchies of the process name different pods or containers: only who writes to the node's cgroups can make that"
)]
pub struct Conflict;

/// Where the kubelet makes its cgroups, as this process sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots(Vec<Vec<Box<str>>>);

impl Default for Roots {
    /// The kubelet's, unless it was told otherwise: `/`.
    fn default() -> Self {
        Self(vec![Vec::new()])
    }
}

impl Roots {
    /// What the agent's own cgroup file says: before the innermost pod, which is the agent's, stands
    /// the root. Outside of pods the root is `/`.
    #[must_use]
    pub fn of_own(cgroup: &str) -> Self {
        let mut roots: Vec<Vec<Box<str>>> = Vec::new();
        for path in paths(cgroup).filter(|path| path.up == 0) {
            let innermost = (0..path.names.len()).rev().find(|at| {
                let names = path.names.get(*at..).unwrap_or_default();
                place_below(names).is_some()
            });
            if let Some(before) = innermost.and_then(|at| path.names.get(..at)) {
                let root = before.iter().map(|name| (*name).into()).collect();
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
        match roots.is_empty() {
            true => Self::default(),
            false => Self(roots),
        }
    }

    /// The kubelet's `--cgroup-root`, for an agent outside of pods.
    #[must_use]
    pub fn configured(path: &str) -> Self {
        let names = path.split('/').filter(|name| !name.is_empty());
        Self(vec![names.map(Into::into).collect()])
    }
}

/// The place of the process with this cgroup file; None when it is in no pod.
///
/// # Errors
/// [`Conflict`].
pub fn place(cgroup: &str, roots: &Roots) -> Result<Option<Place>, Conflict> {
    let mut found = paths(cgroup).filter_map(|path| path.place(roots));
    let first = found.next();
    match found.all(|other| Some(other) == first) {
        true => Ok(first),
        false => Err(Conflict),
    }
}

/// The path of one line.
struct Path<'a> {
    /// How many cgroups it first goes up from the agent's: their names are hidden by its cgroup
    /// namespace.
    up: usize,
    names: Vec<&'a str>,
}

/// `hierarchy:controllers:path`, cgroups(7).
fn paths(cgroup: &str) -> impl Iterator<Item = Path<'_>> {
    let lines = cgroup.lines();
    lines
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| {
            let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
            let up = names.iter().take_while(|name| **name == "..").count();
            names.drain(..up);
            Path { up, names }
        })
}

impl Path<'_> {
    fn place(&self, roots: &Roots) -> Option<Place> {
        if self.up > 0 {
            // What follows is a child of a cgroup around the agent's own: the kubelet's, or
            // above. No workload may make children there.
            return place_below(&self.names).or_else(|| place_inside(&self.names));
        }
        roots.0.iter().find_map(|root| {
            let below = self.names.get(root.len()..)?;
            let fits = root.iter().zip(&self.names).all(|(a, b)| **a == **b);
            place_below(below).filter(|_| fits)
        })
    }
}

/// The place at these names below the kubelet's root.
fn place_below(names: &[&str]) -> Option<Place> {
    let (first, rest) = names.split_first()?;
    match *first == TOP || slice(first) == Some(Slice::Top) {
        true => place_inside(rest),
        false => place_in_one_name(first),
    }
}

/// The place at these names below the top cgroup, or below one of its children.
fn place_inside(names: &[&str]) -> Option<Place> {
    let (first, rest) = names.split_first()?;
    let is_qos = QOS.contains(first) || slice(first) == Some(Slice::Qos);
    let (pod, rest) = match is_qos {
        true => rest.split_first()?,
        false => (first, rest),
    };
    let pod = match slice(pod) {
        Some(Slice::Pod(uid)) => uid,
        Some(_) => return None,
        None => PodUid::parse(pod.strip_prefix("pod")?)?,
    };
    let container = rest.first().and_then(|name| container(name));
    Some(Place { pod, container })
}

/// What a runtime without systemd makes of what a kubelet with systemd tells it:
/// `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>`.
fn place_in_one_name(name: &str) -> Option<Place> {
    let (pod, container) = name.split_once(":cri-containerd:")?;
    let Slice::Pod(pod) = slice(pod)? else {
        return None;
    };
    Some(Place {
        pod,
        container: Some(ContainerId::parse(container)?),
    })
}

/// A slice that the kubelet has systemd make. systemd writes the whole way into each name:
/// `kubelet-kubepods-burstable.slice` below `kubelet-kubepods.slice` below `kubelet.slice`.
#[derive(Debug, PartialEq, Eq)]
enum Slice {
    Top,
    Qos,
    Pod(PodUid),
}

fn slice(name: &str) -> Option<Slice> {
    let name = name.strip_suffix(".slice")?;
    let (before, last) = name.rsplit_once('-').unwrap_or(("", name));
    if last == TOP {
        return Some(Slice::Top);
    }
    if QOS.contains(&last) {
        return is_top(before).then_some(Slice::Qos);
    }
    let uid = PodUid::parse(&last.strip_prefix("pod")?.replace('_', "-"))?;
    let qos = before
        .rsplit_once('-')
        .filter(|(_, qos)| QOS.contains(qos))
        .map(|(before, _)| before);
    is_top(qos.unwrap_or(before)).then_some(Slice::Pod(uid))
}

fn is_top(name: &str) -> bool {
    name.rsplit('-').next() == Some(TOP)
}

fn container(name: &str) -> Option<ContainerId> {
    let scope = name.strip_suffix(".scope").unwrap_or(name);
    let prefix = CONTAINER_PREFIXES
        .iter()
        .find_map(|prefix| scope.strip_prefix(prefix));
    ContainerId::parse(prefix.unwrap_or(name))
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl PodUid {
    /// Lower case only, as the API server and the kubelet write them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = match text.len() {
            32 => is_hex(text),
            36 => text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            }),
            _ => false,
        };
        fits.then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ContainerId {
    /// Lower case only, as runtimes write them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == CONTAINER_ID && is_hex(text)).then(|| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
