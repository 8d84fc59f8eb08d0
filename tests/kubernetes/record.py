"""Asks the real node what an agent and a server of ours ask, and writes the answers to recorded/ for the doubles.

Answers are as they came but for: managedFields and other long lists that nobody reads are dropped, tokens stand as TOKEN.
`tests/kubernetes/run record` does it; recorded/README.md says what each file is.
"""
import base64
import json
import pathlib
import re
import subprocess
import time

import images
from node import HERE, IP, NAME, WORK, Failure, until

OUT = HERE / "recorded"
API = f"https://{IP}:6443"
KUBELET = f"https://{IP}:10250"
SHOP = "/api/v1/namespaces/shop"
ISSUER = "https://kubernetes.default.svc.cluster.local"
TOKEN = re.compile(r"[\w-]{20,}\.[\w-]{20,}\.[\w-]{20,}")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Recorder:
    def __init__(self, node):
        self.node, self.count = node, 0

    def ask(self, url, *, token=None, user=None, method="GET", body=None, kind="application/json", seconds=10):
        """(status, text) of one request, as who has the token or the certificate of `user`."""
        command = ["curl", "-s", "--max-time", seconds, "--cacert", WORK / "pki/ca.pem", "-X", method, "-w", "\n%{http_code}", url]
        if token:
            command += ["-H", f"Authorization: Bearer {token}"]
        if user:
            command += ["--cert", WORK / f"pki/{user}.pem", "--key", WORK / f"pki/{user}.key"]
        if body is not None:
            command += ["-H", f"Content-Type: {kind}", "--data-binary", body if isinstance(body, str) else json.dumps(body)]
        text, _, status = self.node.run(*command, check=False).stdout.rpartition("\n")
        return int(status), text

    def write(self, name, value):
        (OUT / name).parent.mkdir(parents=True, exist_ok=True)
        text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (OUT / name).write_text(TOKEN.sub("TOKEN", text))
        self.count += 1

    def answer(self, name, url, **request):
        """Asks and keeps request, status and body."""
        status, text = self.ask(url, **request)
        try:
            body = trimmed(json.loads(text))
        except ValueError:
            body = text
        said = {"method": request.get("method", "GET"), "path": url.split("/", 3)[3].join(["/", ""])}
        if "kind" in request:
            said["content_type"] = request["kind"]
        if request.get("body") is not None:
            said["body"] = request["body"]
        self.write(f"{name}.json", {"request": said, "status": status, "body": body})
        return status, body

    def token(self, account, audience, seconds=600, pod=None):
        spec = {"audiences": [audience], "expirationSeconds": seconds}
        if pod:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        status, text = self.ask(f"{API}{SHOP}/serviceaccounts/{account}/token", user="admin", method="POST", body=body)
        if status != 201:
            raise Failure(text)
        return json.loads(text)["status"]["token"]

    def signed(self, claims):
        """A token as the apiserver would sign it, with claims that it would not give out (one that is over)."""
        text = b64(json.dumps({"alg": "RS256", "kid": self.key_id()}).encode()) + "." + b64(json.dumps(claims).encode())
        done = subprocess.run(["openssl", "dgst", "-sha256", "-sign", WORK / "pki/sa.key"], input=text.encode(), capture_output=True, check=True)
        return text + "." + b64(done.stdout)

    def key_id(self):
        return json.loads(self.ask(f"{API}/openid/v1/jwks", user="admin")[1])["keys"][0]["kid"]

    def review(self, name, token, audience="spire-server", asker=None):
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]}}
        return self.answer(f"tokenreview/{name}", f"{API}/apis/authentication.k8s.io/v1/tokenreviews", token=asker, method="POST", body=body)


def trimmed(value):
    """Without what is long and is read by nobody."""
    if isinstance(value, list):
        return [trimmed(one) for one in value]
    if not isinstance(value, dict):
        return value
    short = {key: trimmed(one) for key, one in value.items() if key not in ("managedFields", "kubectl.kubernetes.io/last-applied-configuration")}
    if "nodeInfo" in short and "images" in short:
        short["images"] = short["images"][:1]
    return short


def claims(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def pods_of_kubelet(record, reader):
    node = record.node
    node.apply((HERE / "manifests/shapes.yaml").read_text().replace("IMAGE_ID", busybox_digest(node)))
    seen = {}

    # How the list looks while kubelet starts them (no container IDs yet), and when all is there.
    def settled():
        status, text = record.ask(f"{KUBELET}/pods", user="admin")
        pods = [pod for pod in json.loads(text)["items"] if pod["metadata"]["namespace"] == "shop"]
        known = sum(len(pod["status"].get("containerStatuses", [])) for pod in pods)
        running = sum("running" in one["state"] for pod in pods for one in pod["status"].get("containerStatuses", []))
        if known and 0 < running < 5 and "partly" not in seen:
            seen["partly"] = text
        crashed = [pod for pod in pods if pod["metadata"]["name"] == "crashing" and pod["status"].get("containerStatuses", [{}])[0].get("restartCount", 0) >= 2]
        return len(pods) >= 8 and running >= 7 and crashed

    until("the shapes run", settled, 180)
    for name, text in seen.items():
        record.write(f"kubelet/pods_{name}.json", {"request": {"method": "GET", "path": "/pods"}, "status": 200, "body": trimmed(json.loads(text))})
    record.answer("kubelet/pods", f"{KUBELET}/pods", token=reader)
    record.answer("kubelet/pods_unauthorized", f"{KUBELET}/pods")
    record.answer("kubelet/pods_forbidden", f"{KUBELET}/pods", token=record.token("web", ISSUER))
    status, text = record.ask(f"http://{IP}:10255/pods")
    record.write("kubelet/readonly_port.json", {"request": {"method": "GET", "path": "/pods"}, "status": status,
                                               "body": f"the same list, {len(json.loads(text)['items'])} pods"})


def busybox_digest(node):
    """The digest that the runtime gave the image; it can be named by it once the image has that reference."""
    lines = node.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "image", "ls").stdout.splitlines()
    digest = next(line.split()[2] for line in lines if line.startswith(images.BUSYBOX + " "))
    node.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "image", "tag", images.BUSYBOX, f"docker.io/local/busybox@{digest}", check=False)
    return digest


def reader_token(record):
    """A service account that may read the kubelet's list, as the agent's may."""
    record.node.apply("""
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: record-kubelet}
rules: [{apiGroups: [""], resources: [nodes/proxy], verbs: [get]}, {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: record-kubelet}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: record-kubelet}
subjects: [{kind: ServiceAccount, name: default, namespace: shop}]
""")
    return record.token("default", ISSUER)


def reviews(record):
    node = record.node
    daemon = node.json("-n", "shop", "get", "pod", "-l", "app=daemon")["items"][0]["metadata"]["name"]
    asker = record.token("reviewer", ISSUER)
    projected = node.kubectl("-n", "shop", "exec", daemon, "--", "cat", "/var/run/secrets/tokens/vane-agent")
    record.write("tokenreview/claims.json", claims(projected))
    record.review("good", projected, asker=asker)
    record.review("other_audience", projected, "someone-else", asker=asker)
    record.review("no_pod", record.token("web", "spire-server"), asker=asker)
    over = claims(projected) | {"exp": int(time.time()) - 60, "iat": int(time.time()) - 660, "nbf": int(time.time()) - 660}
    record.review("expired", record.signed(over), asker=asker)
    record.review("malformed", "not.a.token", asker=asker)
    record.review("bad_signature", projected[:-8] + "AAAAAAAA", asker=asker)
    record.review("asker_forbidden", projected, asker=record.token("web", ISSUER))
    record.review("asker_unauthorized", projected, asker=projected)
    bare = record.token("web", "spire-server", pod="bare") if account_of(node, "bare") == "web" else None
    token = bare or record.token("default", "spire-server", pod="bare")
    pod = node.json("-n", "shop", "get", "pod", daemon)
    record.answer("apiserver/pod", f"{API}{SHOP}/pods/{daemon}", token=asker)
    record.answer("apiserver/pod_not_found", f"{API}{SHOP}/pods/absent", token=asker)
    record.answer("apiserver/pod_forbidden", f"{API}{SHOP}/pods/{daemon}", token=record.token("web", ISSUER))
    record.answer("apiserver/node", f"{API}/api/v1/nodes/{pod['spec']['nodeName']}", token=asker)
    record.answer("apiserver/node_not_found", f"{API}/api/v1/nodes/absent", token=asker)
    record.answer("apiserver/unauthorized", f"{API}/api/v1/nodes/{NAME}", token="garbage")
    node.kubectl("-n", "shop", "delete", "pod", "bare", "--wait=true")
    record.review("deleted_pod", token, asker=asker)
    node.kubectl("-n", "shop", "create", "serviceaccount", "leaving")
    leaving = record.token("leaving", "spire-server")
    node.kubectl("-n", "shop", "delete", "serviceaccount", "leaving")
    record.review("deleted_account", leaving, asker=asker)


def account_of(node, pod):
    return node.json("-n", "shop", "get", "pod", pod)["spec"]["serviceAccountName"]


def watches(record, reader):
    """List, then what a watch of this node's pods says while pods come, change and go."""
    node = record.node
    of_node = f"fieldSelector=spec.nodeName%3D{NAME}"
    status, text = record.ask(f"{API}/api/v1/pods?{of_node}&limit=2", token=reader)
    page = json.loads(text)
    record.write("apiserver/pod_list_page.json", {"request": {"method": "GET", "path": f"/api/v1/pods?{of_node}&limit=2"}, "status": status, "body": trimmed(page)})
    revision = json.loads(record.ask(f"{API}/api/v1/pods?{of_node}", token=reader)[1])["metadata"]["resourceVersion"]
    out = open(WORK / "watch", "w")
    url = f"{API}/api/v1/pods?watch=1&{of_node}&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds=75"
    watch = subprocess.Popen(node.inside("curl", "-sN", "--cacert", WORK / "pki/ca.pem", "-H", f"Authorization: Bearer {reader}", url), stdout=out)
    node.kubectl("-n", "shop", "run", "fleeting", "--image=docker.io/local/busybox:1", "--image-pull-policy=Never", "--grace-period=0",
                 "--command", "--", "/bin/sleep", "1000")
    node.kubectl("-n", "shop", "wait", "--for=condition=Ready", "pod/fleeting", "--timeout=60s")
    node.kubectl("-n", "shop", "label", "pod", "fleeting", "colour=blue")
    node.kubectl("-n", "shop", "delete", "pod", "fleeting", "--grace-period=0", "--force")
    watch.wait(100)
    lines = [json.loads(line) for line in (WORK / "watch").read_text().splitlines()]
    lines = [line for line in lines if line["type"] in ("BOOKMARK", "ERROR") or line["object"]["metadata"]["name"] == "fleeting"]
    record.write("apiserver/pod_watch.jsonl", "".join(json.dumps(trimmed(line)) + "\n" for line in lines))
    # More events than the apiserver keeps for watchers: an old revision is gone.
    for turn in range(150):
        record.ask(f"{API}{SHOP}/pods/db-0", user="admin", method="PATCH", kind="application/merge-patch+json",
                   body={"metadata": {"annotations": {"turn": str(turn)}}})
    status, text = record.ask(f"{API}/api/v1/pods?watch=1&{of_node}&resourceVersion={revision}&timeoutSeconds=2", token=reader)
    record.write("apiserver/pod_watch_gone.json", {"status": status, "lines": [trimmed(json.loads(line)) for line in text.splitlines()][:1]})


def config_maps(record):
    node, url = record.node, f"{API}{SHOP}/configmaps"
    asker = dict(user="admin")
    merge = "application/merge-patch+json"
    patch = {"data": {"bundle.crt": "one\n"}}
    record.answer("configmap/patch_not_found", f"{url}/absent", method="PATCH", kind=merge, body=patch, **asker)
    record.answer("configmap/create", url, method="POST", body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bundle"}}, **asker)
    record.answer("configmap/create_again", url, method="POST", body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bundle"}}, **asker)
    record.answer("configmap/patch", f"{url}/bundle", method="PATCH", kind=merge, body=patch, **asker)
    record.answer("configmap/patch_same", f"{url}/bundle", method="PATCH", kind=merge, body=patch, **asker)
    stale = patch | {"metadata": {"resourceVersion": "1"}}
    record.answer("configmap/patch_conflict", f"{url}/bundle", method="PATCH", kind=merge, body=stale, **asker)
    record.answer("configmap/get", f"{url}/bundle", **asker)
    web = record.token("web", ISSUER)
    record.answer("configmap/patch_forbidden", f"{url}/bundle", method="PATCH", kind=merge, body=patch, token=web)
    apply = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bundle}\ndata: {\"bundle.crt\": \"two\\n\"}\n"
    record.answer("configmap/apply", f"{url}/bundle?fieldManager=vane&force=true", method="PATCH", kind="application/apply-patch+yaml", body=apply, **asker)


def cgroups(record):
    """The files that say which container a process is of, as the node sees them and as the container does."""
    node, out = record.node, {}
    for pod in node.json("-n", "shop", "get", "pod")["items"]:
        for status in pod["status"].get("containerStatuses", []) + pod["status"].get("initContainerStatuses", []):
            if "running" not in status["state"]:
                continue
            container = status["containerID"].rpartition("/")[2]
            pid = first_process(node, container)
            files = {name: node.run("cat", f"/proc/{pid}/{name}").stdout for name in ("cgroup", "mountinfo")}
            inside = node.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "task", "exec", "--exec-id", "record", container,
                              "/bin/cat", "/proc/self/cgroup", check=False).stdout
            key = f"{pod['metadata'].get('generateName', pod['metadata']['name']).rstrip('-')}_{status['name']}"
            out[key] = {"pod_uid": pod["metadata"]["uid"], "qos": pod["status"]["qosClass"], "container_id": container,
                        "cgroup": files["cgroup"].splitlines(), "cgroup_inside": inside.splitlines(),
                        "mountinfo": [line for line in files["mountinfo"].splitlines() if "cgroup" in line or "kubelet" in line]}
    record.write("cgroup/containerd_cgroupfs_hybrid.json", out)


def first_process(node, container):
    for line in node.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "task", "ls").stdout.splitlines()[1:]:
        if line.startswith(container):
            return int(line.split()[1])
    raise Failure(f"no task {container}")


def all_of_it(node):
    record = Recorder(node)
    node.kubectl("delete", "namespace", "shop", "--ignore-not-found", timeout=180)
    node.kubectl("create", "namespace", "shop")
    until("the namespace has its account", lambda: node.kubectl("-n", "shop", "get", "serviceaccount", "default", check=False))
    reader = reader_token(record)
    for part in [lambda: pods_of_kubelet(record, reader), lambda: cgroups(record), lambda: reviews(record),
                 lambda: watches(record, reader), lambda: config_maps(record)]:
        part()
    node.kubectl("delete", "namespace", "shop", timeout=180)
    print(f"{record.count} answers recorded in {pathlib.Path(OUT).relative_to(HERE.parent.parent)}")
