"""Vane on the node: deploy/kubernetes applied, entries made by `kubectl exec`, pods that ask for identities."""
import json
import os
import pathlib
import time

import images
from node import HERE, NAME, WORK, Failure, Node, until

DOMAIN = "example.org"
MANIFESTS = HERE.parent.parent / "deploy/kubernetes"
SPACE = "apps"
SOCKET = {"name": "vane", "hostPath": {"path": "/run/vane/workload", "type": "Directory"}}


class Cluster:
    """One node with our server and agent on it."""

    def __init__(self, node: Node):
        self.node = node

    def volume(self):
        """What the server's claim is bound to; fsGroup does not reach a hostPath, so its owner is the server's user."""
        folder = WORK / f"pv/{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        os.chown(folder, 65532, 65532)
        name = f"vane-data-{folder.name}"
        self.node.apply(json.dumps({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
                     "claimRef": {"namespace": "vane", "name": "data-vane-server-0"}, "hostPath": {"path": str(folder)}}}))
        return name

    def overlay(self, server="", agent="", k8s="", patch=""):
        """deploy/kubernetes/base with the image that the tests made, lines more in some sections or in the place of theirs, and a patch."""
        folder = WORK / "overlay"
        folder.mkdir(exist_ok=True)
        for name, more in [("server", server), ("agent", agent)]:
            set_here = tuple(f"{line.split(' = ')[0]} = " for line in more.splitlines())
            text = (MANIFESTS / f"base/{name}.toml").read_text()
            text = "".join(line for line in text.splitlines(keepends=True) if not set_here or not line.startswith(set_here))
            text = text.replace(f"[{name}]\n", f"[{name}]\n{more}\n", 1).replace('type = "k8s"\n', f'type = "k8s"\n{k8s}\n')
            (folder / f"{name}.toml").write_text(text)
        (folder / "patch.yaml").write_text(patch)
        repository, tag = images.VANE.rsplit(":", 1)
        (folder / "kustomization.yaml").write_text(json.dumps({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "vane",
            "bases": [os.path.relpath(MANIFESTS / name, folder) for name in ("base", "csi")], "patchesStrategicMerge": ["patch.yaml"] if patch else [], "images": [{"name": "vane", "newName": repository, "newTag": tag}],
            "configMapGenerator": [{"name": f"vane-{name}", "behavior": "merge", "files": [f"{name}.toml"]} for name in ("server", "agent")]}))
        return folder

    def apply(self, **lines):
        """`kubectl apply -k` of it. SVIDs live a minute, so that they turn while the stories are told."""
        return self.node.kubectl("apply", "-k", self.overlay(**({"server": 'default_x509_svid_ttl = "1m"'} | lines)))

    def exec(self, pod, *command, check=True, namespace="vane", stdin=None):
        return self.node.kubectl("-n", namespace, "exec", *(["-i"] if stdin else []), pod, "--", *command, check=check, stdin=stdin)

    def vane(self, *args, check=True):
        """The CLI in the server's pod, as an operator calls it."""
        return self.exec("vane-server-0", "vane", *args, check=check)

    def agent_pod(self):
        """The agent's pod that is not going away; None when there is none."""
        pods = [pod for pod in self.node.json("-n", "vane", "get", "pod", "-l", "app.kubernetes.io/name=vane-agent")["items"]
                if "deletionTimestamp" not in pod["metadata"]]
        return pods[0] if pods else None

    def agent(self, *args, check=True):
        """The CLI in the agent's pod."""
        return self.exec(self.agent_pod()["metadata"]["name"], "vane", *args, check=check)

    def agent_id(self):
        """The ID of this node's agent as the server lists it."""
        uid = self.node.json("get", "node", NAME)["metadata"]["uid"]
        return f"spiffe://{DOMAIN}/spire/agent/k8s_psat/demo/{uid}"

    def entry(self, path, *selectors, more=()):
        """An entry below this node's agent, made anew; its SPIFFE ID."""
        spiffe_id = f"spiffe://{DOMAIN}{path}"
        words = [word for one in selectors for word in ("--selector", one)]
        self.forget(path)
        self.vane("entry", "create", "--spiffe-id", spiffe_id, "--parent-id", self.agent_id(), *words, *more)
        return spiffe_id

    def forget(self, path):
        """Deletes the entries of a path."""
        shown = json.loads(self.vane("entry", "list", "--spiffe-id", f"spiffe://{DOMAIN}{path}", "-o", "json"))
        for entry in shown["entries"]:
            self.vane("entry", "delete", "--entry-id", entry["id"])

    def space(self, name=SPACE, labels=None):
        """A namespace with its default account."""
        self.node.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}))
        until("the namespace has its account", lambda: self.node.kubectl("-n", name, "get", "serviceaccount", "default", check=False))
        return name

    def account(self, name, space=SPACE):
        self.node.apply(json.dumps({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": space}}))
        return name

    def run(self, *pods):
        """Makes the pods at once."""
        self.node.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(pods)}))

    def ready(self, *names, space=SPACE, seconds=60):
        self.node.kubectl("-n", space, "wait", "--for=condition=Ready", *(f"pod/{name}" for name in names), f"--timeout={seconds}s",
                          timeout=seconds + 10)

    def get(self, name, space=SPACE):
        return self.node.json("-n", space, "get", "pod", name)

    def lines(self, name, space=SPACE, container=None):
        """What the pod's workload said, one JSON value a line."""
        args = ["-c", container] if container else []
        said = self.node.kubectl("-n", space, "logs", name, *args, check=False).splitlines()
        return [json.loads(line) for line in said if line.startswith("{")]

    def first(self, name, seconds=60, space=SPACE):
        """The pod's first SVID: {"ms", "tries", "ids"}."""
        return until(f"{name} has its SVID", lambda: next((line for line in self.lines(name, space) if "ms" in line), None), seconds)

    def delete(self, *names, space=SPACE):
        self.node.kubectl("-n", space, "delete", "pod", *names, "--grace-period=0", "--force", "--ignore-not-found", timeout=300)

    def pid(self, pod, space=SPACE):
        """The first process of the pod's first container, as the node counts, and as this machine does."""
        container = self.get(pod, space)["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
        for line in self.node.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "task", "ls").stdout.splitlines()[1:]:
            if line.startswith(container):
                return int(line.split()[1])
        raise Failure(f"{pod} has no process")

    def show(self):
        """What there is, for the one who looks for the cause of a failure."""
        print(self.node.kubectl("get", "pod", "-A", "-o", "wide", check=False))
        for name in ["vane-server-0", "daemonset/vane-agent"]:
            print(f"--- {name}\n" + self.node.kubectl("-n", "vane", "logs", name, "--tail=15", check=False), flush=True)

    def rss_mib(self, pod, space="vane"):
        status = self.node.run("cat", f"/proc/{self.pid(pod, space)}/status").stdout
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def pod(name, *command, space=SPACE, account="default", labels=None, image=images.WORKLOAD, **more):
    """A pod with the Workload API's socket from the node."""
    container = {"name": "main", "image": image, "imagePullPolicy": "Never", "command": list(command),
                 "env": [{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///run/vane/agent.sock"}],
                 "volumeMounts": [{"name": "vane", "mountPath": "/run/vane", "readOnly": True}]}
    container |= more.pop("container", {})
    spec = {"serviceAccountName": account, "terminationGracePeriodSeconds": 0, "enableServiceLinks": False, "restartPolicy": "Never",
            "containers": [container], "volumes": [SOCKET]} | more
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": space, "labels": labels or {}}, "spec": spec}


def agent_ready(cluster, other_than=None):
    """The agent's pod once it is ready and not the one with this UID."""
    found = cluster.agent_pod()
    if not found or found["metadata"]["uid"] == other_than:
        return None
    status = found["status"].get("containerStatuses", [{}])[0]
    return found if status.get("ready") else None


def programs():
    """Where the static programs lie: $VANE_STATIC, else the release build of this tree's target folder."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target"))
    return pathlib.Path(os.environ.get("VANE_STATIC", target / "x86_64-unknown-linux-gnu/release"))
