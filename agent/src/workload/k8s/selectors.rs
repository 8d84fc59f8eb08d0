//! The selectors of a process in a pod: SPIRE's, with what is not known yet marked as unknown.
//!
//! Of the pod: `ns`, `sa`, `node-name`, `pod-uid`, `pod-name`, `pod-label:k:v`,
//! `pod-owner:Kind:name`, `pod-owner-uid:Kind:uid`, `pod-image`, `pod-init-image` and their
//! `-count`s; the images that the pod asks for count at once, and as the runtime calls them once
//! it has them. Of the container: `container-name`, `container-image` (name and digest).

use vane_identity::selector::Selector;

use super::NAME;
use super::cri;
use super::pod::{Container, Part, Pod};
use crate::workload::{Attested, Unknown};

/// What is known of the container of a process.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known<'a> {
    /// As the kubelet has it.
    Kubelet(&'a Container),
    /// As the runtime has it.
    Runtime(&'a cri::Container),
    /// Nothing now.
    Not,
    /// Nobody asked.
    Off,
}

/// The selectors of a process in this container of `pod`.
pub(super) fn of(pod: &Pod, container: Known<'_>) -> Attested {
    let mut found = Found::default();
    found.add("ns", &pod.namespace);
    found.add("sa", &pod.service_account);
    found.add("node-name", &pod.node_name);
    found.add("pod-uid", pod.uid.as_str());
    found.add("pod-name", &pod.name);
    found.add_labels(pod);
    found.add_owners(pod);
    found.add_images(pod, Part::Main, "pod-image");
    found.add_images(pod, Part::Init, "pod-init-image");
    match container {
        Known::Kubelet(one) => found.add_container(&one.name, [&one.image, &one.image_id]),
        Known::Runtime(one) => found.add_container(&one.name, [&one.image, &one.image_id]),
        Known::Not => found.unknown(&["container-name:", "container-image:"]),
        Known::Off => {}
    }
    found.0
}

/// What of a pod can change while it runs.
const CHANGING: [&str; 5] = [
    "pod-label:",
    "pod-owner:",
    "pod-owner-uid:",
    "pod-image:",
    "pod-init-image:",
];

/// While nobody tells of the pod, what it had not may be there by now: that is unknown, not absent.
pub(super) fn doubt(attested: &mut Attested) {
    let mut found = Found(std::mem::take(attested));
    found.unknown(&CHANGING);
    *attested = found.0;
}

#[derive(Default)]
struct Found(Attested);

impl Found {
    /// Adds `k8s:<what>:<value>`.
    fn add(&mut self, what: &str, value: &str) {
        match Selector::new(NAME, &format!("{what}:{value}")) {
            Ok(selector) => self.0.selectors.push(selector),
            Err(error) => tracing::warn!(what, %error, "selector left out"),
        }
    }

    fn add_labels(&mut self, pod: &Pod) {
        let Some(labels) = &pod.labels else {
            return self.unknown(&["pod-label:"]);
        };
        for (key, value) in labels {
            self.add("pod-label", &format!("{key}:{value}"));
        }
    }

    fn add_owners(&mut self, pod: &Pod) {
        let Some(owners) = &pod.owners else {
            return self.unknown(&["pod-owner:", "pod-owner-uid:"]);
        };
        for owner in owners {
            self.add("pod-owner", &format!("{}:{}", owner.kind, owner.name));
            self.add("pod-owner-uid", &format!("{}:{}", owner.kind, owner.uid));
        }
    }

    fn add_images(&mut self, pod: &Pod, part: Part, what: &'static str) {
        let of_part = || pod.containers.iter().filter(|one| one.part == part);
        self.add(&format!("{what}-count"), &of_part().count().to_string());
        for one in of_part() {
            self.add_all(what, [&one.wanted, &one.image, &one.image_id]);
        }
        if !pod.has_images(part) {
            self.unknown(match part {
                Part::Init => &["pod-init-image:"],
                Part::Main | Part::Ephemeral => &["pod-image:"],
            });
        }
    }

    fn add_container(&mut self, name: &str, images: [&str; 2]) {
        self.add("container-name", name);
        self.add_all("container-image", images);
    }

    fn add_all<const N: usize>(&mut self, what: &str, values: [&str; N]) {
        let values = values.into_iter().filter(|value| !value.is_empty());
        values.for_each(|value| self.add(what, value));
    }

    fn unknown(&mut self, prefixes: &[&'static str]) {
        for prefix in prefixes {
            let unknown = Unknown { kind: NAME, prefix };
            if !self.0.unknown.contains(&unknown) {
                self.0.unknown.push(unknown);
            }
        }
    }
}
