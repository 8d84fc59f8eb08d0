//! The corpus: the forms of real nodes (UIDs and IDs are made up), as far as they could be
//! found: this machine's, those of components/ (containerd, CRI-O, docker, podman, crun), kind
//! and k3d from inside and outside, mixed drivers, and the forms in SPIRE's issues 949, 1081,
//! 2578, 3183, 4004 and 4088. tests/kubernetes has a real kubelet's.

use std::path::Path as FilePath;

use proptest::prelude::*;

use super::*;

const UID: &str = "0b1c2d3e-4f50-4a61-8b72-93a4b5c6d7e8";
const STATIC: &str = "5f0c1e2d3b4a59687786a5b4c3d2e1f0";
const VICTIM: &str = "ffffffff-4f50-4a61-8b72-93a4b5c6d7e8";

fn id(pair: &str) -> ContainerId {
    ContainerId::parse(&pair.repeat(32)).unwrap()
}

fn at(pod: &str, container: Option<ContainerId>) -> Place {
    let pod = PodUid::parse(pod).unwrap();
    Place { pod, container }
}

fn file(name: &str) -> String {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/corpus");
    std::fs::read_to_string(folder.join(name).with_extension("cgroup")).unwrap()
}

fn names() -> Vec<String> {
    let folder = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/corpus");
    let files = std::fs::read_dir(folder).unwrap();
    let stem = |entry: std::fs::DirEntry| {
        entry
            .path()
            .file_stem()
            .map(|it| it.to_string_lossy().into_owned())
    };
    let mut names: Vec<String> = files.filter_map(|entry| stem(entry.unwrap())).collect();
    names.sort();
    names
}

/// Where an agent runs that sees the process of this file so.
fn roots(name: &str) -> Roots {
    match name {
        // In a pod of that cluster: its own cgroup shows the kubelet's root.
        "v1-kind"
        | "v1-kind-systemd"
        | "v1-k3d"
        | "v1-docker-desktop"
        | "v1-containerd-under-its-service" => Roots::of_own(&file(name).replace("0b1c", "aaaa")),
        "v2-kind-from-its-node" => Roots::configured("/kubelet.slice"),
        _ => Roots::of_own("0::/system.slice/vane-agent.service\n"),
    }
}

#[test]
fn every_form_of_the_corpus_is_understood() {
    let mut seen = [0; 3];
    for name in names() {
        let found = place(&file(&name), &roots(&name)).unwrap();
        let (kind, expected) = match name.split('-').next().unwrap() {
            "none" => (0, None),
            "helper" => (1, Some(at(UID, None))),
            _ if name == "v2-static-pod" => (2, Some(at(STATIC, Some(id("9f"))))),
            _ => (2, Some(at(UID, Some(id("9f"))))),
        };
        assert_eq!(found, expected, "{name}");
        seen[kind] += 1;
    }
    assert!(seen[0] >= 14 && seen[1] >= 3 && seen[2] >= 33, "{seen:?}");
}

/// What a process makes below its own cgroup, and what a session or a container makes that
/// cgroups are delegated to, is nothing to the kubelet.
#[test]
fn a_pod_that_stands_elsewhere_is_none() {
    let roots = Roots::of_own("0::/\n");
    let victim = "ffffffff_4f50_4a61_8b72_93a4b5c6d7e8";
    let id = "9f".repeat(32);
    for before in [
        "/user.slice/user-1000.slice/user@1000.service",
        "/system.slice/web.service",
        "/docker/7777777777777777777777777777777777777777777777777777777777777777",
        "/machine.slice/libpod-7777777777777777777777777777777777777777777777777777777777777777.scope",
        "/kubepods2",
        "/evil",
        "/kubepods.slice/evil.slice",
        "/kubepods/evil",
        "/../../user.slice/user-1000.slice",
        "/../../../../docker/x",
    ] {
        for tree in [
            format!("kubepods.slice/kubepods-pod{victim}.slice/cri-containerd-{id}.scope"),
            format!("kubepods/burstable/pod{VICTIM}/{id}"),
            format!("kubepods-pod{victim}.slice:cri-containerd:{id}"),
        ] {
            let line = format!("0::{before}/{tree}\n");
            assert_eq!(place(&line, &roots), Ok(None), "{line}");
        }
    }
}

#[test]
fn names_that_only_look_like_the_kubelets_are_none() {
    let roots = Roots::of_own("");
    let id = "9f".repeat(32);
    for path in [
        format!("/kubepods/pod{}/{id}", UID.to_uppercase()),
        format!("/kubepods/pod{UID}0/{id}"),
        format!("/kubepods/pod../{id}"),
        format!("/kubepods/{UID}/{id}"),
        format!("/kubepods/burstable/besteffort/pod{UID}/{id}"),
        format!("/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice/{id}"),
        format!("/kubepods.slice/pod{UID}.slice/cri-containerd-{id}.scope"),
        format!(
            "/kubepods.slice/other-burstable-pod{}.slice/x",
            UID.replace('-', "_")
        ),
        format!("/kubepods-pod{}.slice:evil:{id}", UID.replace('-', "_")),
    ] {
        assert_eq!(place(&format!("0::{path}\n"), &roots), Ok(None), "{path}");
    }
    for container in [
        "",
        "9f",
        "9F",
        &"9g".repeat(32),
        &format!("x{id}"),
        &format!("{id} (deleted)"),
    ] {
        let line = format!("0::/kubepods/pod{UID}/{container}\n");
        assert_eq!(place(&line, &roots), Ok(Some(at(UID, None))), "{line}");
    }
}

#[test]
fn hierarchies_that_do_not_agree_are_refused() {
    let roots = Roots::of_own("0::/\n");
    let line = |n: u8, uid: &str, container: &str| {
        format!(
            "{n}:memory:/kubepods/burstable/pod{uid}/{}\n",
            container.repeat(32)
        )
    };
    let agree = line(2, UID, "9f") + &line(1, UID, "9f") + "0::/user.slice\n";
    assert_eq!(place(&agree, &roots), Ok(Some(at(UID, Some(id("9f"))))));
    assert_eq!(
        place(&(line(2, UID, "9f") + &line(1, VICTIM, "9f")), &roots),
        Err(Conflict)
    );
    assert_eq!(
        place(&(line(2, UID, "9f") + &line(1, UID, "1e")), &roots),
        Err(Conflict)
    );
    let without = format!("0::/kubepods/burstable/pod{UID}\n");
    assert_eq!(
        place(&(line(2, UID, "9f") + &without), &roots),
        Err(Conflict)
    );
}

#[test]
fn the_agents_own_cgroup_shows_the_kubelets_root() {
    let own = |text: &str| Roots::of_own(text).0;
    let root = |names: &[&str]| {
        names
            .iter()
            .map(|name| Box::from(*name))
            .collect::<Vec<Box<str>>>()
    };
    assert_eq!(own(&file("v2-containerd-systemd")), [root(&[])]);
    assert_eq!(own(&file("hybrid-under-service")), [root(&[])]);
    assert_eq!(own("0::/\n"), [root(&[])]);
    assert_eq!(own(&file("v2-private-same-qos")), [root(&[])]);
    assert_eq!(
        own(&file("v2-kind-from-its-node")),
        [root(&["kubelet.slice"])]
    );
    let nested = format!(
        "0::/kubepods/pod{VICTIM}/{0}/docker/{0}/kubepods/pod{UID}/{0}\n",
        "1e".repeat(32)
    );
    let outer = format!("pod{VICTIM}");
    let id = "1e".repeat(32);
    let inner = root(&["kubepods", &outer, &id, "docker", &id]);
    assert_eq!(own(&nested), [inner]);
    // Pods of the outer cluster are not this kubelet's.
    let roots = Roots::of_own(&nested);
    let other = format!("0::/kubepods/pod{UID}/{id}\n");
    assert_eq!(place(&other, &roots), Ok(None));
    assert_eq!(
        place(&nested, &roots),
        Ok(Some(at(UID, ContainerId::parse(&id))))
    );
}

/// A name that somebody who may make cgroups would choose.
fn hostile() -> impl Strategy<Value = String> {
    let victim = VICTIM.replace('-', "_");
    let id = "1e".repeat(32);
    prop_oneof![
        Just("kubepods".to_owned()),
        Just("kubepods.slice".to_owned()),
        Just("burstable".to_owned()),
        Just(format!("pod{VICTIM}")),
        Just(format!("kubepods-pod{victim}.slice")),
        Just(format!("kubepods-burstable-pod{victim}.slice")),
        Just(format!("cri-containerd-{id}.scope")),
        Just(format!("kubepods-pod{victim}.slice:cri-containerd:{id}")),
        Just(id.clone()),
        Just("..".to_owned()),
        "[^/\n]{1,40}",
    ]
}

proptest! {
    /// Whatever stands below a process's own cgroup, it stays in its pod and container.
    #[test]
    fn nothing_below_a_container_moves_it(names in prop::collection::vec(hostile(), 0..8), which in 0..40_usize) {
        let corpus: Vec<String> = names_of_containers();
        let name = &corpus[which % corpus.len()];
        let text = file(name);
        let suffix: String = names.iter().map(|name| format!("/{name}")).collect();
        let longer: String = text
            .lines()
            .map(|line| if line.contains("pod") { format!("{line}{suffix}\n") } else { format!("{line}\n") })
            .collect();
        prop_assert_eq!(place(&longer, &roots(name)), place(&text, &roots(name)));
    }

    /// No tree of anybody's own is a pod of the kubelet's.
    #[test]
    fn nothing_below_a_session_is_a_pod(names in prop::collection::vec(hostile(), 0..8)) {
        let tree: String = names.iter().map(|name| format!("/{name}")).collect();
        let line = format!("0::/user.slice/user-1000.slice/user@1000.service{tree}\n");
        prop_assert_eq!(place(&line, &Roots::of_own("0::/init.scope\n")), Ok(None));
    }

    #[test]
    fn any_text_is_survived(text in "(?s).{0,400}", own in "(?s).{0,400}") {
        let _ = place(&text, &Roots::of_own(&own));
    }
}

fn names_of_containers() -> Vec<String> {
    let other = |name: &String| !name.starts_with("none") && !name.starts_with("helper");
    names().into_iter().filter(other).collect()
}
