"""deploy/kubernetes as text: what both kustomizes make of it, and what this apiserver takes.

policy/v1 is unknown to Kubernetes 1.20: it is read as v1beta1 here, which has the same fields. Pod Security admission is, too:
the rules of its `restricted` profile are checked by hand.
"""
import json
import shutil

from cluster import MANIFESTS
from node import BIN


def rendered(cluster, folder, kubectl=BIN / "kubectl"):
    done = cluster.node.run(kubectl, "kustomize", folder)
    return done.stdout


def overlays_are_taken(cluster, checks):
    node = cluster.node
    node.kubectl("create", "namespace", "vane", check=False)
    for overlay in ["base", "csi", "overlays/dev", "overlays/production"]:
        text = rendered(cluster, MANIFESTS / overlay).replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")
        said = node.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
        checks.check(f"{overlay}: taken by the apiserver", "daemonset.apps/vane-" in said, said)
        newer = shutil.which("kubectl")
        if newer and "kustomizeVersion" in node.run(newer, "version", "--client", "-o", "json", check=False).stdout:
            kinds = [line for line in text.splitlines() if line.startswith("kind:")]
            other = [line for line in rendered(cluster, MANIFESTS / overlay, newer).splitlines() if line.startswith("kind:")]
            checks.check(f"{overlay}: a newer kustomize makes the same objects of it", sorted(kinds) == sorted(other), other)
    node.kubectl("delete", "namespace", "vane", timeout=120)


def the_servers_pod_keeps_restricted(cluster, checks):
    text = rendered(cluster, MANIFESTS / "base")
    server = next(part for part in text.split("\n---\n") if "\nkind: StatefulSet" in "\n" + part)
    made = json.loads(cluster.node.kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", stdin=server))
    spec = made["spec"]["template"]["spec"]
    pod, container = spec["securityContext"], spec["containers"][0]["securityContext"]
    checks.check("the server's pod keeps the profile `restricted`", pod["runAsNonRoot"] and pod["seccompProfile"]["type"] == "RuntimeDefault"
                 and container["capabilities"] == {"drop": ["ALL"]} and container["allowPrivilegeEscalation"] is False
                 and not any(spec.get(key) for key in ("hostPID", "hostNetwork", "hostIPC"))
                 and all(set(volume) - {"name"} <= {"configMap", "emptyDir", "projected", "secret"} for volume in spec["volumes"]), spec)


STORIES = [overlays_are_taken, the_servers_pod_keeps_restricted]
