"""How fast a new pod has its first SVID, a hundred at once, and one that takes more than its share."""
import statistics
import time

from cluster import MANIFESTS, SPACE, agent_ready, pod
from node import until

SAMPLES = 15


def first_svids(cluster, name, selector, labels):
    """Milliseconds from the first call to the first SVID, for pods that come one after the other."""
    cluster.entry(f"/{name}", f"k8s:ns:{SPACE}", selector)
    took = []
    for at in range(SAMPLES):
        one = f"{name}-{at}"
        cluster.run(pod(one, "vane-test-pod", "first", labels=labels))
        took.append(cluster.first(one)["ms"])
    cluster.delete(*(f"{name}-{at}" for at in range(SAMPLES)))
    cluster.forget(f"/{name}")
    took.sort()
    print(f"        {name}: p50 {statistics.median(took):.1f} ms, least {took[0]:.1f}, most {took[-1]:.1f} ({SAMPLES} pods)", flush=True)
    return statistics.median(took)


def the_first_svid_is_quick(cluster, checks):
    p50 = first_svids(cluster, "by-label", "k8s:pod-label:speed:pod", {"speed": "pod"})
    checks.check(f"first SVID by selectors of the pod: p50 {p50:.0f} ms of 50", p50 <= 50)
    p50 = first_svids(cluster, "by-container", "k8s:container-name:main", {"speed": "other"})
    checks.check(f"first SVID by selectors of the container: p50 {p50:.0f} ms of 1500", p50 <= 1500)
    with_the_runtimes_socket(cluster)
    p50 = first_svids(cluster, "by-container-cri", "k8s:container-name:main", {"speed": "other"})
    checks.check(f"the same with the runtime's socket: p50 {p50:.0f} ms of 100", p50 <= 100)
    replaced(cluster)


def with_the_runtimes_socket(cluster):
    patch = (MANIFESTS / "options/cri-socket.yaml").read_text().replace("path: /run/containerd/containerd.sock", "path: /run/containerd.sock")
    replaced(cluster, k8s='cri_socket = "/run/containerd/containerd.sock"', patch=patch)


def replaced(cluster, **lines):
    """Applies a configuration that only the agent sees, and waits for the agent that has it."""
    before = cluster.agent_pod()["metadata"]["uid"]
    cluster.apply(**lines)
    until("another agent is ready", lambda: agent_ready(cluster, before), 120)


def pods_from_the_apiserver(cluster, checks):
    node = cluster.node
    node.kubectl("apply", "-f", MANIFESTS / "options/pods-from-the-apiserver.yaml")
    replaced(cluster, k8s='pod_source = "api_server"')
    wanted = cluster.entry("/watched", f"k8s:ns:{SPACE}", "k8s:pod-label:colour:blue")
    cluster.run(pod("watched", "vane-test-pod", "first", labels={"colour": "red"}))
    cluster.ready("watched")
    start = time.monotonic()
    node.kubectl("-n", SPACE, "label", "pod", "watched", "colour=blue", "--overwrite")
    got = cluster.first("watched")
    checks.check(f"pod_source = api_server: a new label is an identity after {time.monotonic() - start:.1f} s", got["ids"] == [wanted], got)
    cluster.delete("watched")
    cluster.forget("/watched")
    replaced(cluster)
    node.kubectl("delete", "-f", MANIFESTS / "options/pods-from-the-apiserver.yaml")


def a_hundred_pods_at_once(cluster, checks):
    wanted = cluster.entry("/crowd", f"k8s:ns:{SPACE}", "k8s:pod-label:crowd:yes")
    names = [f"crowd-{at}" for at in range(100)]
    before = cluster.rss_mib(cluster.agent_pod()["metadata"]["name"])
    start = time.monotonic()
    cluster.run(*(pod(name, "vane-test-pod", "first", labels={"crowd": "yes"}) for name in names))
    got = {}

    def all_have_it():
        for name in names:
            if name not in got:
                # The first line: later ones tell of renewals.
                got.update({name: line for line in reversed(cluster.lines(name)) if "ms" in line})
        return len(got) == len(names)

    until("all have their SVIDs", all_have_it, 300)
    took = sorted(line["ms"] for line in got.values())
    after = cluster.rss_mib(cluster.agent_pod()["metadata"]["name"])
    print(f"        100 pods: all run and served after {time.monotonic() - start:.0f} s; from call to SVID p50 {took[50]:.0f} ms, most {took[-1]:.0f} ms; "
          f"agent RSS {before:.1f} MiB before, {after:.1f} MiB with 100 streams", flush=True)
    checks.check("100 pods that start at once all get their SVID", all(line["ids"] == [wanted] for line in got.values()))
    cluster.delete(*names)


def a_greedy_pod_starves_nobody(cluster, checks):
    wanted = cluster.entry("/modest", f"k8s:ns:{SPACE}", "k8s:pod-label:modest:yes")
    # Each process says every second how many of its connections are still open.
    flood = "for i in 1 2 3 4 5; do while sleep 1; do echo; done | vane-test-greedy /run/vane/agent.sock 1000 > /tmp/$i & done; wait"
    cluster.run(pod("greedy", "sh", "-c", flood), pod("modest-before", "vane-test-pod", "first", labels={"modest": "yes"}))
    cluster.ready("greedy")

    def counts():
        said = [cluster.exec("greedy", "cat", f"/tmp/{at}", check=False, namespace=SPACE).split() for at in range(1, 6)]
        return [int(lines[-1]) for lines in said if len(lines) > 4]

    until("the greedy pod has opened what it can", lambda: len(counts()) == 5, 90)
    held = sum(said := counts())
    cluster.run(pod("modest", "vane-test-pod", "first", labels={"modest": "yes"}))
    got = cluster.first("modest")
    agent = cluster.agent_pod()["metadata"]["name"]
    print(f"        5,000 connections tried, {held} held; another pod's first SVID in {got['ms']:.1f} ms; agent RSS {cluster.rss_mib(agent):.1f} MiB", flush=True)
    checks.check("one pod is held to its share of connections", 0 < held <= 4000, said)
    checks.check("another pod is served meanwhile", got["ids"] == [wanted] and got["ms"] < 1000, got)
    cluster.delete("greedy", "modest", "modest-before")


STORIES = [the_first_svid_is_quick, pods_from_the_apiserver, a_hundred_pods_at_once, a_greedy_pod_starves_nobody]
