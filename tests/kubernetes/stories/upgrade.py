"""Upgrades and losses while pods hold streams and do mutual TLS with each other every 50 ms."""
import json
import time

from cluster import DOMAIN, SPACE, agent_ready, pod
from node import NAME, until

PAIRS = 10


class Greetings:
    """Pairs of pods that do mutual TLS all the time."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.servers = [f"server-{at}" for at in range(PAIRS)]
        self.clients = [f"client-{at}" for at in range(PAIRS)]

    def __enter__(self):
        cluster = self.cluster
        identity = cluster.entry("/upgrade", f"k8s:ns:{SPACE}", "k8s:pod-label:upgrade:yes")
        cluster.run(*(pod(name, "vane-test-pod", "serve", "0.0.0.0:8443", identity, labels={"upgrade": "yes"}) for name in self.servers))
        for name in self.servers:
            until(f"{name} serves", lambda name=name: cluster.lines(name), 120)
        hosts = {name: cluster.get(name)["status"]["podIP"] for name in self.servers}
        cluster.run(*(pod(client, "vane-test-pod", "greet", f"{hosts[server]}:8443", identity, "50", labels={"upgrade": "yes"})
                      for server, client in zip(self.servers, self.clients)))
        self.more()
        return self

    def __exit__(self, *_):
        self.cluster.delete(*self.servers, *self.clients)
        self.cluster.forget("/upgrade")

    def counts(self):
        """Handshakes and failures of each client."""
        last = {name: [line for line in self.cluster.lines(name) if "handshakes" in line][-1:] for name in self.clients}
        return {name: (lines[0]["handshakes"], lines[0]["failures"]) if lines else (0, 0) for name, lines in last.items()}

    def more(self):
        """Waits until every client has done a second's worth of handshakes more."""
        before = self.counts()

        def went_on():
            now = self.counts()
            return all(now[name][0] >= before[name][0] + 20 for name in self.clients)

        until("handshakes go on", went_on, 90)

    def judge(self, checks, what):
        self.more()
        counts = self.counts()
        failed = [line for name in self.clients for line in self.cluster.lines(name) if "failed" in line or "denied" in line]
        checks.check(f"{what}: {sum(done for done, _ in counts.values())} handshakes so far, none failed", not failed, failed[:3])


def serials(cluster):
    """The agents and the serial numbers of their SVIDs: an attestation makes another."""
    return {agent["id"]["path"]: agent["x509svid_serial_number"] for agent in json.loads(cluster.vane("agent", "list", "-o", "json"))["agents"]}


def the_agent_is_replaced_without_a_gap(cluster, checks):
    node = cluster.node
    with Greetings(cluster) as greetings:
        before, start = cluster.agent_pod()["metadata"]["uid"], time.monotonic()
        node.kubectl("-n", "vane", "rollout", "restart", "daemonset/vane-agent")
        node.kubectl("-n", "vane", "rollout", "status", "daemonset/vane-agent", "--timeout=120s", timeout=130)
        until("another pod is the agent", lambda: agent_ready(cluster, before), 60)
        greetings.judge(checks, f"rolling update of the DaemonSet in {time.monotonic() - start:.1f} s")
        name = cluster.agent_pod()["metadata"]["name"]
        start = time.monotonic()
        node.run("kill", "-9", cluster.pid(name, "vane"))
        until("kubelet has started it again", lambda: (found := agent_ready(cluster)) and found["status"]["containerStatuses"][0]["restartCount"], 90)
        greetings.judge(checks, f"kill -9 of the agent, ready again after {time.monotonic() - start:.1f} s")
        the_server_comes_back(cluster, checks, greetings)


def the_server_comes_back(cluster, checks, greetings):
    node = cluster.node
    old, known, start = cluster.get("vane-server-0", "vane")["metadata"]["uid"], set(serials(cluster)), time.monotonic()
    agent = cluster.agent_pod()["metadata"]
    node.kubectl("-n", "vane", "delete", "pod", "vane-server-0", "--wait=false")
    until("the server's pod is back on its claim", lambda: server_ready(cluster, old), 120)
    took = time.monotonic() - start
    until("the agent is connected", lambda: "connected" in cluster.agent("agent", "status", check=False).lower(), 60)
    log = node.kubectl("-n", "vane", "logs", agent["name"])
    greetings.judge(checks, f"server pod deleted and back on its claim after {took:.1f} s")
    checks.check("no agent attested anew, none is lost", set(serials(cluster)) == known and log.count(" attested ") <= 1, (known, log[-1000:]))
    entry = cluster.entry("/after-restart", f"k8s:ns:{SPACE}", "k8s:pod-label:after:restart")
    cluster.run(pod("after-restart", "vane-test-pod", "first", labels={"after": "restart"}))
    checks.check("a new pod is served by the server that came back", cluster.first("after-restart")["ids"] == [entry])
    cluster.delete("after-restart")
    cluster.forget("/after-restart")


def the_claim_is_lost(cluster, checks):
    """What deploy/kubernetes/README.md says of it: agents serve what they hold, and come back by the ConfigMap; entries are gone."""
    node, labels = cluster.node, {"claim": "lost"}
    identity = cluster.entry("/claim", f"k8s:ns:{SPACE}", "k8s:pod-label:claim:lost")
    cluster.run(pod("holder", "vane-test-pod", "first", labels=labels))
    cluster.first("holder")
    bundle = lambda: node.json("-n", "vane", "get", "configmap", "vane-bundle")["data"]  # noqa: E731
    old, uid = bundle(), cluster.get("vane-server-0", "vane")["metadata"]["uid"]
    node.kubectl("-n", "vane", "delete", "persistentvolumeclaim", "data-vane-server-0", "--wait=false")
    node.kubectl("-n", "vane", "delete", "pod", "vane-server-0")
    cluster.volume()
    until("a server is there on an empty volume", lambda: server_ready(cluster, uid), 120)
    until("it has published its own bundle", lambda: bundle() != old, 30)
    checks.check("its registry is empty", "No entries" in cluster.vane("entry", "list"))
    said = cluster.exec("holder", "vane", "svid", "fetch", check=False, namespace=SPACE)
    checks.check("agents go on with what they hold", identity in said, said)
    print("        the agent says: " + cluster.agent("agent", "status", check=False).replace("\n", " | ")[:400], flush=True)
    start = time.monotonic()
    until("the agent has attested to the new server", lambda: cluster.agent_id().split(DOMAIN, 1)[1] in serials(cluster), 240)
    print(f"        the agent trusts the new bundle and has attested {time.monotonic() - start:.0f} s later, by itself", flush=True)
    lines = len(cluster.lines("holder"))
    cluster.entry("/claim", f"k8s:ns:{SPACE}", "k8s:pod-label:claim:lost")
    until("the open stream has the new one", lambda: [line for line in cluster.lines("holder")[lines:] if line.get("ids") == [identity]], 60)
    checks.check("with the entry made again the open stream has its new SVID", True)
    cluster.delete("holder")
    cluster.forget("/claim")


def the_node_is_made_again(cluster, checks):
    node, old = cluster.node, cluster.agent_id()
    node.kubectl("delete", "node", NAME)
    node.stop("kubelet")
    for folder in ["/var/lib/vane", "/run/vane/agent"]:
        node.run("sh", "-c", f"rm -rf {folder}/*")
    node.start("kubelet")
    until("the node is back under its name", lambda: " Ready" in node.kubectl("get", "node", NAME, check=False), 90)
    before = cluster.agent_pod()
    if before:
        cluster.delete(before["metadata"]["name"], space="vane")
    until("its agent is ready", lambda: agent_ready(cluster, before and before["metadata"]["uid"]), 120)
    new = cluster.agent_id()
    listed = {agent["id"]["path"]: agent for agent in json.loads(cluster.vane("agent", "list", "-o", "json"))["agents"]}
    paths = [one.split(DOMAIN, 1)[1] for one in (old, new)]
    checks.check("another UID of the node is another agent", old != new and paths[1] in listed, list(listed))
    ends = int(listed[paths[0]]["x509svid_expires_at"])
    checks.check(f"nobody renews the old agent: its SVID ends in {ends - time.time():.0f} s", ends - time.time() <= 60, listed[paths[0]])
    the_old_agent_leaves_the_list(cluster, checks, ends, *paths)


def the_old_agent_leaves_the_list(cluster, checks, ends, old, new):
    """After a second instead of the hour of deploy/kubernetes: the server looks when it starts, and every ten minutes."""
    until("its SVID has ended", lambda: time.time() > ends + 2, 70)
    checks.check("an agent whose SVID has ended is on the list", old in serials(cluster))
    before = cluster.get("vane-server-0", "vane")["metadata"]["uid"]
    cluster.apply(server='default_x509_svid_ttl = "1m"\nprune_attested_nodes_expired_for = "1s"')
    until("the server has read that", lambda: server_ready(cluster, before), 120)
    start = time.monotonic()
    until("the old agent is off the list", lambda: old not in serials(cluster), 30)
    checks.check(f"with prune_attested_nodes_expired_for = 1s it is off the list {time.monotonic() - start:.1f} s after the start of the server, the new one is not",
                 set(serials(cluster)) == {new}, serials(cluster))
    log = cluster.node.kubectl("-n", "vane", "logs", "vane-server-0")
    checks.check("and the server says so", "deleted expired agents" in log, log[-1000:])


def server_ready(cluster, other_than):
    shown = cluster.node.kubectl("-n", "vane", "get", "pod", "vane-server-0", "-o", "json", check=False)
    if not shown or json.loads(shown)["metadata"]["uid"] == other_than:
        return False
    return json.loads(shown)["status"].get("containerStatuses", [{}])[0].get("ready")


STORIES = [the_agent_is_replaced_without_a_gap, the_node_is_made_again, the_claim_is_lost]
