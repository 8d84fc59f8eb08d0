//! Recorded pods, cgroups, and options.

use super::super::pod::{PodList, Pods};
use super::*;
use vane_chassis::builtin::Section;

fn pods(file: &str) -> Pods {
    let list: PodList = serde_json::from_value(body(file)).unwrap();
    list.items.into_iter().filter_map(|item| item.pod).collect()
}

fn said(pods: &Pods, at: (&str, &str)) -> Attested {
    let place = place(at);
    let pod = pods.get(&place.pod).unwrap();
    let container = pod.container(&place.container.unwrap());
    selectors::of(pod, container.map_or(Known::Not, Known::Kubelet))
}

#[test]
fn a_pod_has_spires_selectors() {
    let pods = pods("kubelet/pods.json");
    assert_eq!(pods.len(), 8);
    let web = said(&pods, WEB);
    let digest = "docker.io/local/busybox@sha256:eff633327c12e608526bcdce5d8fe3ef86d002b67335a6eb7a37e2d5497e9b1f";
    let mut expected = [
        "ns:shop".to_owned(),
        "sa:web".to_owned(),
        "node-name:vane-node".to_owned(),
        format!("pod-uid:{}", WEB.0),
        "pod-name:web-65b77c5b98-2ldbk".to_owned(),
        "pod-label:app.kubernetes.io/name:web".to_owned(),
        "pod-label:app:web".to_owned(),
        "pod-label:pod-template-hash:65b77c5b98".to_owned(),
        "pod-label:tier:front".to_owned(),
        "pod-owner:ReplicaSet:web-65b77c5b98".to_owned(),
        "pod-image-count:2".to_owned(),
        "pod-init-image-count:1".to_owned(),
        "pod-image:docker.io/local/busybox:1".to_owned(),
        "pod-image:docker.io/local/pause:1".to_owned(),
        format!("pod-image:{digest}"),
        "pod-init-image:docker.io/local/busybox:1".to_owned(),
        format!("pod-init-image:{digest}"),
        "container-name:app".to_owned(),
        "container-image:docker.io/local/busybox:1".to_owned(),
        format!("container-image:{digest}"),
    ];
    expected.sort_unstable();
    let mut values = values(&web);
    values.dedup();
    let uid = values
        .iter()
        .position(|value| value.starts_with("pod-owner-uid:ReplicaSet:"));
    values.remove(uid.unwrap());
    assert_eq!(values, expected);
    assert_eq!(unknown(&web), Vec::<&str>::new());
}

#[test]
fn what_the_kubelet_does_not_know_yet_is_unknown() {
    let pods = pods("kubelet/pods_partly.json");
    let web = said(&pods, WEB);
    assert!(values(&web).contains(&"pod-init-image-count:1"));
    assert_eq!(
        unknown(&web),
        ["pod-image:", "container-name:", "container-image:"]
    );
    let db = said(&pods, DB);
    assert_eq!(unknown(&db), Vec::<&str>::new());
}

/// The cgroups of a real kubelet's containers are those that it lists.
#[test]
fn the_recorded_cgroups_lead_to_the_recorded_containers() {
    let all: Value =
        serde_json::from_str(&recorded("cgroup/containerd_cgroupfs_hybrid.json")).unwrap();
    let pods = pods("kubelet/pods.json");
    let roots = Roots::of_own("9:name=systemd:/\n0::/\n");
    let mut listed = 0;
    for (name, one) in all.as_object().unwrap() {
        let lines = one["cgroup"].as_array().unwrap().iter();
        let text: String = lines
            .map(|line| format!("{}\n", line.as_str().unwrap()))
            .collect();
        let found = cgroup::place(&text, &roots).unwrap().unwrap();
        assert_eq!(found.pod.as_str(), one["pod_uid"], "{name}");
        assert_eq!(
            found.container.as_ref().unwrap().as_str(),
            one["container_id"],
            "{name}"
        );
        let pod = pods.get(&found.pod).unwrap();
        listed += usize::from(pod.container(&found.container.unwrap()).is_some());
    }
    assert!(listed >= 5, "{listed} containers");
}

/// A pod of one of the kubelet's files has another UID at the API server.
#[test]
fn a_mirror_counts_only_when_it_is_the_only_one_and_the_nodes() {
    const STATIC: &str = "5f0c1e2d3b4a59687786a5b4c3d2e1f0";
    let mirror = |uid: &str, owner: &str| {
        json!({"metadata": {"uid": uid, "name": "etcd", "namespace": "kube-system",
            "annotations": {"kubernetes.io/config.mirror": STATIC},
            "ownerReferences": [{"apiVersion": "v1", "kind": owner, "name": "n", "uid": "u"}]}})
    };
    let get = |items: &[Value]| {
        let list: PodList = serde_json::from_value(json!({"items": items})).unwrap();
        let pods: Pods = list.items.into_iter().filter_map(|item| item.pod).collect();
        pods.get(&PodUid::parse(STATIC).unwrap())
            .map(|pod| pod.uid.clone())
    };
    let own = mirror(WEB.0, "Node");
    assert_eq!(get(std::slice::from_ref(&own)), PodUid::parse(WEB.0));
    assert_eq!(get(&[mirror(WEB.0, "ReplicaSet")]), None);
    assert_eq!(get(&[own, mirror(DB.0, "Node")]), None);
    // No annotation reaches a pod that has a UID of its own.
    let mut thief = mirror(WEB.0, "Node");
    thief["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!(DB.0);
    let list: PodList = serde_json::from_value(json!({"items": [thief]})).unwrap();
    let pods: Pods = list.items.into_iter().filter_map(|item| item.pod).collect();
    assert!(pods.get(&PodUid::parse(DB.0).unwrap()).is_none());
}

#[test]
fn labels_beyond_the_bound_are_unknown_and_not_kept() {
    let labels: serde_json::Map<String, Value> = (0..2_000)
        .map(|at| (format!("l{at}"), json!("x".repeat(60))))
        .collect();
    let item = json!({"metadata": {"uid": WEB.0, "labels": labels}});
    let list: PodList = serde_json::from_value(json!({"items": [item]})).unwrap();
    let pod = list.items.into_iter().find_map(|item| item.pod).unwrap();
    assert_eq!(pod.labels, None);
    let said = selectors::of(&pod, Known::Off);
    assert_eq!(unknown(&said), ["pod-label:"]);
}

fn check(text: &str) -> Result<(), String> {
    let mut section: Section = toml::from_str(&format!("type = \"k8s\"\n{text}")).unwrap();
    let checked = section.check(crate::workload::BUILTINS);
    checked.map_err(|error| error.to_string())
}

#[test]
fn options_of_spire_are_taken_or_refused_with_the_way_out() {
    for taken in [
        "",
        "kubelet_secure_port = 10250\nskip_kubelet_verification = true",
        "kubelet_read_only_port = 10255",
        "disable_container_selectors = true\nmax_poll_attempts = 5\npoll_retry_interval = \"300ms\"",
        "token_path = \"/t\"\nkubelet_ca_path = \"/c\"\nnode_name_env = \"N\"\nnode_name = \"n\"",
        "certificate_path = \"/c\"\nprivate_key_path = \"/k\"\nuse_anonymous_authentication = false",
        "use_new_container_locator = true",
    ] {
        check(taken).unwrap();
    }
    for (refused, way_out) in [
        ("use_new_container_locator = false", "leave it out"),
        ("verbose_container_locator_logs = true", "agent.log_level"),
        ("reload_interval = \"1m\"", "leave it out"),
        (
            "disable_kubelet_client = true",
            "pod_source = \"api_server\"",
        ),
        ("enable_namespace_labels = true", "pod-label"),
        ("[sigstore]\nskipped_images = []", "by digest"),
        ("[experimental]\nx = 1", "pod_source"),
        ("kubelet_port = 1", "unknown field"),
        ("pod_source = \"nowhere\"", "unknown variant"),
    ] {
        let error = check(refused).unwrap_err();
        assert!(error.contains(way_out), "{refused}: {error}");
    }
}

#[test]
fn the_kubelet_is_found_as_spire_finds_it() {
    use vane_chassis::kubernetes::{Name, Trust};
    let kubelet = |config: K8sConfig, variables: &'static [(&str, &str)]| {
        config.kubelet(|name| {
            let value = variables.iter().find(|(key, _)| *key == name);
            value.map(|(_, value)| (*value).to_owned())
        })
    };
    let default = kubelet(K8sConfig::default(), &[]).unwrap();
    assert_eq!(default.endpoint.to_string(), "https://127.0.0.1:10250");
    assert_eq!(default.name, Name::Any);
    assert!(matches!(default.trust, Trust::Roots(_)) && default.credentials.token.is_some());

    let node = kubelet(K8sConfig::default(), &[("MY_NODE_NAME", "node-7")]).unwrap();
    assert_eq!(node.endpoint.to_string(), "https://node-7:10250");
    assert_eq!(node.name, Name::OfEndpoint);
    let both = [("MY_NODE_NAME", "node-7"), ("MY_NODE_IP", "192.0.2.7")];
    let both: &'static [(&str, &str)] = Box::leak(Box::new(both));
    let address = kubelet(K8sConfig::default(), both).unwrap();
    assert_eq!(address.endpoint.to_string(), "https://192.0.2.7:10250");
    assert_eq!(address.name, Name::Other("node-7".to_owned()));

    let read_only = K8sConfig {
        kubelet_read_only_port: Some(10_255),
        ..K8sConfig::default()
    };
    let read_only = kubelet(read_only, &[]).unwrap();
    assert_eq!(read_only.endpoint.to_string(), "http://127.0.0.1:10255");
    assert!(read_only.credentials.token.is_none());

    let half = K8sConfig {
        certificate_path: Some("/c".into()),
        ..K8sConfig::default()
    };
    assert!(
        kubelet(half, &[])
            .unwrap_err()
            .to_string()
            .contains("belong together")
    );
    let anonymous = K8sConfig {
        use_anonymous_authentication: true,
        ..K8sConfig::default()
    };
    let shown = kubelet(anonymous, &[]).unwrap().credentials;
    assert!(shown.token.is_none() && shown.certificate.is_none());
}
