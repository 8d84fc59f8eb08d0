"""From an empty cluster to identities that hold: apply, the first SVID, mutual TLS, who is who."""
import json
import os
import time

import images
from cluster import DOMAIN, MANIFESTS, SPACE, pod
from node import WORK, Failure, until


def from_apply_to_the_first_svid(cluster, checks):
    node, start, took = cluster.node, time.monotonic(), {}

    def mark(what):
        took[what] = round(time.monotonic() - start, 1)
        print(f"        {took[what]:5} s  {what}", flush=True)

    cluster.apply()
    mark("kubectl apply -k")
    ready = lambda name: node.kubectl("-n", "vane", "get", "pod", "-l", f"app.kubernetes.io/name={name}", check=False)  # noqa: E731
    until("the server is ready", lambda: " 1/1 " in ready("vane-server"), 90)
    mark("vane-server-0 is ready")
    bundle = until("the bundle is published", lambda: node.kubectl("-n", "vane", "get", "configmap", "vane-bundle", "-o", "json", check=False), 30)
    mark("the server has published its bundle")
    checks.check("the ConfigMap holds the bundle", "BEGIN CERTIFICATE" in bundle or "spiffe" in bundle, bundle[:300])
    until("the agent is ready", lambda: " 1/1 " in ready("vane-agent"), 120)
    mark("vane-agent is ready: its node is attested")
    agents = json.loads(cluster.vane("agent", "list", "-o", "json"))["agents"]
    found = [f"spiffe://{agent['id']['trust_domain']}{agent['id']['path']}" for agent in agents]
    checks.check("the agent's name is its node's UID", found == [cluster.agent_id()], found)
    cluster.space(labels={"team": "green"})
    cluster.account("first")
    wanted = cluster.entry("/first", f"k8s:ns:{SPACE}", "k8s:sa:first")
    mark("the entry is made")
    cluster.run(pod("first", "vane-test-pod", "first", account="first"))
    got = cluster.first("first")
    mark("a pod has its first SVID")
    checks.check("it is the one of its entry", got["ids"] == [wanted], got)
    print(node.kubectl("get", "pod", "-A"), flush=True)
    cluster.delete("first")


def exec_needs_no_flags(cluster, checks):
    said = cluster.vane("entry", "list")
    checks.check("kubectl exec vane-server-0 -- vane entry list", f"spiffe://{DOMAIN}/first" in said, said)
    said = cluster.agent("agent", "status")
    checks.check("kubectl exec ds/vane-agent -- vane agent status", "connected" in said.lower() or "ok" in said.lower(), said)


def probes_mean_something(cluster, checks):
    node = cluster.node
    agent = cluster.agent_pod()
    for path, port, where in [("live", 9443, agent), ("ready", 9443, agent), ("live", 9442, cluster.get("vane-server-0", "vane")),
                              ("ready", 9442, cluster.get("vane-server-0", "vane"))]:
        address = where["status"]["podIP"]
        said = node.run("curl", "-s", "--max-time", 5, "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}:{port}/{path}", check=False).stdout
        checks.check(f"/{path} of {where['metadata']['name']} answers on the pod's address", said == "200", said)


def it_runs_with_little(cluster, checks):
    """What the manifests promise about rights, read from the running processes."""
    node = cluster.node
    for name, uid, capabilities in [("vane-server-0", "65532", 0), (cluster.agent_pod()["metadata"]["name"], "0", 1 << 19)]:
        pid = cluster.pid(name, "vane")
        status = dict(line.split(":", 1) for line in node.run("cat", f"/proc/{pid}/status").stdout.splitlines())
        has = {key: status[key].split()[0] for key in ("Uid", "CapBnd", "CapPrm", "NoNewPrivs", "Seccomp")}
        wanted = {"Uid": uid, "CapBnd": f"{capabilities:016x}", "CapPrm": f"{capabilities:016x}", "NoNewPrivs": "1", "Seccomp": "2"}
        checks.check(f"{name}: user {uid}, capabilities {capabilities:x} at most, no new privileges, a seccomp filter", has == wanted, has)
        mounts = [line.split() for line in node.run("cat", f"/proc/{pid}/mountinfo").stdout.splitlines()]
        root = next(fields[5] for fields in mounts if fields[4] == "/")
        checks.check(f"{name}: the root file system is read-only", "ro" in root.split(","), root)
        print(f"        {name}: RSS {cluster.rss_mib(name):.1f} MiB", flush=True)


def two_do_mtls_and_a_third_is_refused(cluster, checks):
    for account in ("greeter", "guest", "stranger"):
        cluster.account(account)
    server, guest, _ = (cluster.entry(f"/{name}", f"k8s:ns:{SPACE}", f"k8s:sa:{name}") for name in ("greeter", "guest", "stranger"))
    cluster.run(pod("greeter", "vane-test-pod", "serve", "0.0.0.0:8443", guest, account="greeter"))
    until("it serves", lambda: cluster.lines("greeter"), 60)
    address = f"{cluster.get('greeter')['status']['podIP']}:8443"
    cluster.run(*(pod(name, "vane-test-pod", "once", address, server, account=name) for name in ("guest", "stranger")))
    said = {name: until(f"{name} is answered", lambda name=name: cluster.lines(name), 60)[-1] for name in ("guest", "stranger")}
    checks.check("two pods of two accounts do mutual TLS", said["guest"] == {"greeted": server}, said["guest"])
    refused = until("the server has said why", lambda: [line for line in cluster.lines("greeter") if "refused" in line])
    checks.check("a third pod is refused", "refused" in said["stranger"] and refused, (said, refused))
    cluster.delete("greeter", "guest", "stranger")


def identities_by_what_a_pod_is(cluster, checks):
    cluster.account("billing")
    cluster.run(pod("digest-probe", "sleep", "1000"))
    cluster.ready("digest-probe")
    digest = cluster.get("digest-probe")["status"]["containerStatuses"][0]["imageID"]
    cluster.delete("digest-probe")
    by = {
        "account": cluster.entry("/by/account", f"k8s:ns:{SPACE}", "k8s:sa:billing"),
        "label": cluster.entry("/by/label", f"k8s:ns:{SPACE}", "k8s:pod-label:tier:front"),
        "digest": cluster.entry("/by/digest", f"k8s:container-image:{digest}", "k8s:pod-label:pinned:yes"),
    }
    cluster.run(pod("account", "vane-test-pod", "first", account="billing"),
                pod("label", "vane-test-pod", "first", labels={"tier": "front"}),
                pod("digest", "vane-test-pod", "first", labels={"pinned": "yes"}),
                pod("nobody", "vane-test-pod", "first", labels={"tier": "back"}))
    for name, wanted in by.items():
        try:
            got = cluster.first(name, 30)["ids"]
        except Failure as failure:
            got = failure
        checks.check(f"an identity by {name}", got == [wanted], got)
    checks.check("a pod that no entry matches has none", not [line for line in cluster.lines("nobody") if "ids" in line], cluster.lines("nobody"))
    before = time.monotonic()
    cluster.node.kubectl("-n", SPACE, "label", "pod", "nobody", "tier=front", "--overwrite")
    got = cluster.first("nobody", 90)["ids"]
    checks.check(f"and gets one {time.monotonic() - before:.1f} s after its label changed", got == [by["label"]], got)
    cluster.delete("account", "label", "digest", "nobody")


def go_spiffe_over_a_host_path(cluster, checks):
    """Over the CSI volume: csi.py."""
    wanted = cluster.entry("/go", f"k8s:ns:{SPACE}", "k8s:pod-label:go:yes")
    cluster.run(pod("go-host-path", "gospiffe", "x509", labels={"go": "yes"}))
    said = until("go-spiffe is answered", lambda: cluster.lines("go-host-path"), 60)[-1]
    checks.check("go-spiffe in a pod, over a hostPath", said.get("ok") and wanted in json.dumps(said), said)
    cluster.delete("go-host-path")


def the_example_of_two_services(cluster, checks):
    node, folder = cluster.node, WORK / "example"
    folder.mkdir(exist_ok=True)
    names = {"vane": images.VANE, "nginx": images.WEB, "curlimages/curl": images.WEB}
    (folder / "kustomization.yaml").write_text(json.dumps({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "bases": [os.path.relpath(MANIFESTS / "examples/mtls", folder)],
        "images": [{"name": name, "newName": image.rsplit(":", 1)[0], "newTag": "1"} for name, image in names.items()]}))
    for name, more in [("greeter", ("--dns", "greeter.greetings.svc")), ("guest", ())]:
        cluster.entry(f"/greetings/{name}", "k8s:ns:greetings", f"k8s:sa:{name}", more=more)
    node.kubectl("apply", "-k", folder)
    guest = lambda: node.kubectl("-n", "greetings", "logs", "deployment/guest", "-c", "curl", check=False)  # noqa: E731
    said = until("curl is greeted by nginx", lambda: "hello, " in guest() and guest(), 90)
    checks.check("examples/mtls: curl and nginx do mutual TLS by Service name", "hello, " in said, said)
    bare = node.kubectl("-n", "greetings", "exec", "deployment/guest", "-c", "curl", "--", "curl", "-sS", "--cacert", "/svid/bundle.pem",
                        "https://greeter.greetings.svc", check=False)
    checks.check("examples/mtls: without an SVID nginx says no", "hello" not in bare, bare)
    node.kubectl("delete", "-k", folder, "--wait=false")
    # Its pods would take the thirty seconds that they have.
    node.kubectl("-n", "greetings", "delete", "pod", "--all", "--grace-period=0", "--force")
    node.kubectl("wait", "--for=delete", "namespace/greetings", "--timeout=60s", check=False)


STORIES = [from_apply_to_the_first_svid, exec_needs_no_flags, probes_mean_something, it_runs_with_little,
           two_do_mtls_and_a_third_is_refused, identities_by_what_a_pod_is, go_spiffe_over_a_host_path,
           the_example_of_two_services]
