//! The reader of cgroup files against what it promises of names that workloads choose.
//!
//! The input is a form, then text. As a whole file no text may make it panic, and what it finds
//! must stand in the text. As names behind the cgroup of a container it changes nothing, as names
//! below a session or a service it is no pod.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The file alone: to build all of the agent with the sanitizers takes minutes.
#[path = "../../../agent/src/cgroup/mod.rs"]
#[expect(dead_code, reason = "only the reader is used")]
mod cgroup;

use cgroup::{ContainerId, Place, PodUid, Roots, place};

const POD: &str = "7a8b0c1d-2e3f-4a5b-8c7d-9e0f1a2b3c4d";
const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fuzz_target!(|input: &[u8]| {
    let [form, rest @ ..] = input else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match form % 4 {
        0 => alone(&text, &Roots::default()),
        1 => {
            let (own, other) = text.split_once('\0').unwrap_or((&text, &text));
            alone(other, &Roots::of_own(own));
            let (root, other) = text.split_once('\n').unwrap_or((&text, &text));
            alone(other, &Roots::configured(root));
        }
        2 => behind(&name(&text)),
        _ => outside(&name(&text)),
    }
});

/// What mkdir takes: any octets but line ends, which the kernel escapes, and no `..`.
fn name(text: &str) -> String {
    let names = text.split('/').filter(|name| *name != "..");
    names.collect::<Vec<_>>().join("/").replace('\n', "\\012")
}

fn alone(text: &str, roots: &Roots) {
    let Ok(Some(Place { pod, container })) = place(text, roots) else {
        return;
    };
    assert_eq!(PodUid::parse(pod.as_str()).as_ref(), Some(&pod));
    let escaped = pod.as_str().replace('-', "_");
    assert!(text.contains(pod.as_str()) || text.contains(&escaped));
    if let Some(container) = container {
        assert_eq!(
            ContainerId::parse(container.as_str()).as_ref(),
            Some(&container)
        );
        assert!(text.contains(container.as_str()));
    }
}

/// Children of a container's cgroup are as the container's own, under every driver.
fn behind(names: &str) {
    let escaped = POD.replace('-', "_");
    let expected = Place {
        pod: PodUid::parse(POD).unwrap(),
        container: ContainerId::parse(CONTAINER),
    };
    for own in [
        format!("kubepods/besteffort/pod{POD}/{CONTAINER}"),
        format!("kubepods/pod{POD}/{CONTAINER}"),
        format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-{CONTAINER}.scope"
        ),
    ] {
        for file in [
            format!("0::/{own}/{names}\n"),
            format!("4:memory:/{own}/{names}\n1:name=systemd:/{own}\n"),
            format!("0::/../../{own}/{names}\n"),
        ] {
            let found = place(&file, &Roots::default());
            assert_eq!(found, Ok(Some(expected.clone())), "{file}");
        }
    }
}

/// Who is in no pod makes itself none.
fn outside(names: &str) {
    for own in [
        "user.slice/user-1000.slice/session-1.scope",
        "system.slice/cron.service",
        "init.scope",
    ] {
        let file = format!("0::/{own}/{names}\n");
        assert_eq!(place(&file, &Roots::default()), Ok(None), "{file}");
        let root = Roots::configured("/kubelet");
        assert_eq!(place(&file, &root), Ok(None), "{file}");
    }
}
