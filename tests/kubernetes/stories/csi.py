"""Pods without hostPath: deploy/kubernetes/csi beside the base, and a real kubelet that mounts by it."""
import json
import re
import time

import images
from cluster import MANIFESTS, SPACE, agent_ready, pod
from node import BIN, NAME, until

VOLUME = {"name": "vane", "csi": {"driver": "csi.spiffe.io", "readOnly": True}}
WRITABLE = {"name": "vane", "csi": {"driver": "csi.spiffe.io"}}
CAP_SYS_ADMIN = 1 << 21


def with_volume(name, *command, **more):
    return pod(name, *command, volumes=[VOLUME], **more)


def driver(cluster):
    found = cluster.node.json("-n", "vane", "get", "pod", "-l", "app.kubernetes.io/name=vane-csi")["items"]
    return next((one for one in found if "deletionTimestamp" not in one["metadata"]), None)


def registered(cluster):
    shown = cluster.node.kubectl("get", "csinode", NAME, "-o", "jsonpath={.spec.drivers[*].name}", check=False)
    return "csi.spiffe.io" in shown


def apply(cluster):
    text = cluster.node.run(BIN / "kubectl", "kustomize", MANIFESTS / "csi").stdout
    cluster.node.apply(re.sub(r"image: vane$", f"image: {images.VANE}", text, flags=re.M))
    until("the kubelet knows the driver", lambda: registered(cluster), 90)


def mounts(cluster, uid):
    """How the volumes of a pod are mounted on the node."""
    table = cluster.node.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    return [line.split()[5] for line in table if f"pods/{uid}/volumes/kubernetes.io~csi/" in line.split()[4]]


def fetches(cluster, name):
    return cluster.exec(name, "vane", "svid", "fetch", "-o", "json", check=False, namespace=SPACE)


def a_pod_without_host_path_has_its_identity(cluster, checks):
    start = time.monotonic()
    apply(cluster)
    print(f"        registered {time.monotonic() - start:.1f} s after kubectl apply -k", flush=True)
    wanted = cluster.entry("/csi", f"k8s:ns:{SPACE}", "k8s:pod-label:by:csi")
    labels = {"by": "csi"}
    start = time.monotonic()
    cluster.run(with_volume("csi-first", "vane-test-pod", "first", labels=labels))
    got = cluster.first("csi-first")
    took = time.monotonic() - start
    checks.check(f"a pod's first SVID through the volume, {took:.1f} s after its making", got["ids"] == [wanted], got)
    root = {"securityContext": {"runAsUser": 0}}
    touch = "touch /run/vane/x 2>&1; echo written $?; ls -A /run/vane; echo end; sleep 1000"
    cluster.run(with_volume("csi-go", "gospiffe", "x509", labels=labels), with_volume("csi-long", "sleep", "1000", labels=labels),
                with_volume("csi-root", "sh", "-c", touch, labels=labels, container=root), pod("csi-writable", "sleep", "1000", volumes=[WRITABLE]))
    said = until("go-spiffe is answered", lambda: cluster.lines("csi-go"), 60)[-1]
    checks.check("go-spiffe through the volume", said.get("ok") and wanted in json.dumps(said), said)
    cluster.ready("csi-long")
    uid = cluster.get("csi-long")["metadata"]["uid"]
    checks.check("the volume is mounted once on the node, read-only", [mount.split(",")[0] for mount in mounts(cluster, uid)] == ["ro"],
                 mounts(cluster, uid))
    said = until("root in a pod has tried", lambda: (log := cluster.node.kubectl("-n", SPACE, "logs", "csi-root", check=False)).endswith("end\n") and log, 60)
    checks.check("root in a pod finds the one socket there and can write nothing", said.split()[-4:] == ["written", "1", "agent.sock", "end"], said)
    a_writable_volume_is_refused(cluster, checks)
    it_runs_with_little(cluster, checks)
    the_driver_and_the_agent_restart(cluster, checks, wanted)
    the_volume_goes_with_its_pod(cluster, checks, uid)
    cluster.delete("csi-first", "csi-go", "csi-root", "csi-writable")


def it_runs_with_little(cluster, checks):
    name = driver(cluster)["metadata"]["name"]
    pid = cluster.pid(name, "vane")
    status = dict(line.split(":", 1) for line in cluster.node.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    held = {key: int(status[key], 16) for key in ("CapPrm", "CapEff", "CapBnd", "CapInh")}
    checks.check("the driver's process has CAP_SYS_ADMIN and no other capability, though its container is privileged",
                 held == {"CapPrm": CAP_SYS_ADMIN, "CapEff": CAP_SYS_ADMIN, "CapBnd": CAP_SYS_ADMIN, "CapInh": 0}
                 and status["NoNewPrivs"].strip() == "1", held)
    print(f"        the driver's RSS: {int(status['VmRSS'].split()[0]) / 1024:.1f} MiB", flush=True)


def the_driver_and_the_agent_restart(cluster, checks, wanted):
    """Both are waited for together: a kubelet of 1.20 takes up to 10 s to see that a pod's volumes are gone, and until then there is no other pod."""
    node = cluster.node
    checks.check("a pod that is up fetches through the volume", wanted in fetches(cluster, "csi-long").replace("\\", ""))
    old_driver, old_agent = driver(cluster)["metadata"], cluster.agent_pod()["metadata"]
    process = f"/proc/{cluster.pid(old_driver['name'], 'vane')}"
    node.kubectl("-n", "vane", "delete", "pod", old_driver["name"], "--wait=false")
    until("the driver has ended", lambda: node.run("test", "-e", process, check=False).returncode, 30)
    said = fetches(cluster, "csi-long")
    checks.check("and while there is no driver", wanted in said.replace("\\", ""), said)
    node.kubectl("-n", "vane", "delete", "pod", old_agent["name"], "--wait=false")
    until("another pod is the driver", lambda: (found := driver(cluster)) and found["metadata"]["uid"] != old_driver["uid"] and is_ready(found)
          and registered(cluster), 90)
    until("another pod is the agent", lambda: agent_ready(cluster, old_agent["uid"]), 90)
    said = until("it is answered again", lambda: (said := fetches(cluster, "csi-long")) and wanted in said.replace("\\", "") and said, 30)
    checks.check("and again once another pod is the agent, with the same volume", bool(said))


def is_ready(found):
    return found["status"].get("containerStatuses", [{}])[0].get("ready")


def the_volume_goes_with_its_pod(cluster, checks, uid):
    cluster.node.kubectl("-n", SPACE, "delete", "pod", "csi-long", "--grace-period=1", "--wait=false")
    folder = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/vane"
    start = time.monotonic()
    until("its volume is gone", lambda: not mounts(cluster, uid) and cluster.node.run("test", "-e", folder, check=False).returncode, 60)
    checks.check(f"unmounted and removed {time.monotonic() - start:.1f} s after the end of its pod, by a driver that did not mount it", True)


def a_writable_volume_is_refused(cluster, checks):
    def why():
        said = cluster.node.kubectl("-n", SPACE, "get", "events", "--field-selector=involvedObject.name=csi-writable", "-o",
                                    "jsonpath={.items[*].message}", check=False)
        return said if "FailedMount" in said or "rpc error" in said else None

    said = until("the kubelet says why", why, 60)
    checks.check("a volume without readOnly is refused in spiffe-csi's words", "pod.spec.volumes[].csi.readOnly must be set to 'true'" in said, said)


def the_driver_leaves_with_its_manifests(cluster, checks):
    text = cluster.node.run(BIN / "kubectl", "kustomize", MANIFESTS / "csi").stdout
    cluster.node.kubectl("delete", "-f", "-", stdin=text)
    until("the kubelet has forgotten the driver", lambda: not registered(cluster), 60)
    checks.check("deleted, the driver is gone from the node's list", True)
    apply(cluster)
    checks.check("applied again, it is back", registered(cluster))


STORIES = [a_pod_without_host_path_has_its_identity, the_driver_leaves_with_its_manifests]
