"""One real Kubernetes 1.20 node: etcd, containerd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
kube-proxy (iptables) and CoreDNS, in PID, mount, network, UTS and IPC namespaces of their own.

A manifest written for any cluster applies as it is. What the node does to /run, /var/lib, /var/log and to links stays in
its namespaces and ends with their first process; what does not (cgroups, sysctls) is undone by `Node.down`, which
compares the machine with what it was. Everything else lies in one folder, $VANE_K8S_WORK (default /var/tmp/vane-kubernetes).
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import machine
import pki

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "interop"))
from world import Failure, until  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
WORK = pathlib.Path(os.environ.get("VANE_K8S_WORK", "/var/tmp/vane-kubernetes"))
CACHE = pathlib.Path(os.environ.get("VANE_CI_CACHE", pathlib.Path.home() / ".cache/vane-ci")) / "kubernetes"
BIN = CACHE / "bin"
NAME, IP = "vane-node", "10.250.0.1"
CGROUPS = ["kubepods", "k8s.io", "vane-story"]
# Bound tokens and their CA bundle in each namespace are what every cluster has had since 1.21.
GATES = "APIPriorityAndFairness=false,BoundServiceAccountTokenVolume=true"
CONTROLLERS = ("serviceaccount,serviceaccount-token,root-ca-cert-publisher,namespace,garbagecollector,podgc,nodelifecycle,"
               "clusterrole-aggregation,deployment,replicaset,daemonset,statefulset,job,endpoint,endpointslice,disruption,"
               "persistentvolume-binder,pvc-protection,pv-protection")

# Overlays keep the machine's own folders as they are; the kubelet's root has to be a real file system and shared, for
# mounts that go both ways. cgroups and sysctls are the machine's.
INSIDE = """
set -e
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /run/vane
for d in var/lib var/log etc opt; do
  mkdir -p $W/upper/$d $W/overlay/$d
  mount -t overlay -o lowerdir=/$d,upperdir=$W/upper/$d,workdir=$W/overlay/$d overlay /$d
done
mkdir -p $W/kubelet /var/lib/kubelet
mount --bind $W/kubelet /var/lib/kubelet
mount --make-rshared /
ip link set lo up
ip link add node0 type bridge
ip addr add $IP/24 dev node0
ip link set node0 up
ip route add default dev node0
sysctl -q net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
: > $W/inside
trap : TERM CHLD
while :; do sleep 100000 & wait $! || :; done
"""

CONTAINERD = """version = 2
root = "{work}/containerd"
state = "/run/containerd-state"
oom_score = 0
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/local/pause:1"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{work}/cni"
"""
CNI = {"cniVersion": "0.4.0", "name": "vane", "plugins": [{
    "type": "bridge", "bridge": "pods0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/23"}]], "dataDir": "/run/cni-addresses",
             "routes": [{"dst": "0.0.0.0/0"}]}}]}
KUBELET = """apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
port: 10250
readOnlyPort: 10255
cgroupDriver: cgroupfs
failSwapOn: false
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.pem}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/kubelet.pem
tlsPrivateKeyFile: {pki}/kubelet.key
clusterDomain: cluster.local
clusterDNS: [{ip}]
oomScoreAdj: 0
makeIPTablesUtilChains: false
enforceNodeAllocatable: []
evictionHard: {{nodefs.available: "1%", imagefs.available: "1%", memory.available: "50Mi"}}
resolvConf: /dev/null
syncFrequency: {sync}
nodeStatusUpdateFrequency: 2s
maxPods: 300
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
"""
COREDNS = "cluster.local:53 {{\n  bind {ip}\n  errors\n  kubernetes {{\n    kubeconfig {pki}/admin.conf\n    noendpoints\n    ttl 1\n  }}\n}}\n"


def programs():
    """Each program of the node with its arguments, in the order of their start."""
    p = WORK / "pki"
    return {
        "etcd": ["etcd", "--data-dir", WORK / "etcd", "--listen-client-urls=http://127.0.0.1:2379",
                 "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
                 "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=default=http://127.0.0.1:2380",
                 "--unsafe-no-fsync", "--logger=zap", "--log-level=warn"],
        "containerd": ["containerd", "-c", WORK / "containerd.toml"],
        # Audiences of others are for TokenReview alone: a token made for spire-server must not open the API.
        "apiserver": [BIN / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0",
                      f"--advertise-address={IP}", "--secure-port=6443", f"--tls-cert-file={p}/apiserver.pem",
                      f"--tls-private-key-file={p}/apiserver.key", f"--client-ca-file={p}/ca.pem",
                      f"--kubelet-certificate-authority={p}/ca.pem", f"--kubelet-client-certificate={p}/admin.pem",
                      f"--kubelet-client-key={p}/admin.key", "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                      f"--service-account-signing-key-file={p}/sa.key", f"--service-account-key-file={p}/sa.pub",
                      "--service-cluster-ip-range=10.96.0.0/24", "--authorization-mode=Node,RBAC",
                      "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
                      "--kubelet-preferred-address-types=InternalIP", f"--feature-gates={GATES}", "--v=1"],
        "cm": [BIN / "kube-controller-manager", f"--kubeconfig={p}/cm.conf", f"--service-account-private-key-file={p}/sa.key",
               f"--root-ca-file={p}/ca.pem", "--use-service-account-credentials", "--leader-elect=false",
               "--bind-address=127.0.0.1", f"--controllers={CONTROLLERS}", f"--feature-gates={GATES}",
               "--kube-api-qps=100", "--kube-api-burst=200"],
        "scheduler": [BIN / "kube-scheduler", f"--kubeconfig={p}/scheduler.conf", "--leader-elect=false",
                      "--bind-address=127.0.0.1", "--port=0", "--kube-api-qps=100", "--kube-api-burst=200"],
        "kubelet": [BIN / "kubelet", f"--config={WORK}/kubelet.yaml", f"--kubeconfig={p}/kubelet.conf",
                    f"--hostname-override={NAME}", f"--node-ip={IP}", "--container-runtime=remote",
                    "--container-runtime-endpoint=unix:///run/containerd.sock", "--root-dir=/var/lib/kubelet",
                    f"--cert-dir={WORK}/kubelet-pki", "--pod-infra-container-image=docker.io/local/pause:1",
                    f"--volume-plugin-dir={WORK}/volume-plugins", "--cgroup-root=/", f"--feature-gates={GATES}", "--v=1"],
        # conntrack's limits belong to the whole machine: 0 leaves them alone
        "proxy": [BIN / "kube-proxy", f"--kubeconfig={p}/proxy.conf", "--proxy-mode=iptables", "--cluster-cidr=10.244.0.0/23",
                  f"--hostname-override={NAME}", "--conntrack-max-per-core=0", "--conntrack-min=0",
                  "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
                  "--iptables-min-sync-period=0s", "--bind-address=127.0.0.1", "--healthz-bind-address=127.0.0.1:10256"],
        "coredns": [BIN / "coredns", "-conf", WORK / "Corefile"],
    }


class Node:
    """The node of this machine; up() makes it, every process finds it again by its files."""

    ip, name = IP, NAME

    def up(self, images, sync="10s"):
        """Starts everything; `images` are archives for the runtime. `sync`: how often kubelet looks again."""
        if WORK.exists():
            self.down(quiet=True)
        WORK.mkdir(parents=True)
        self.note("before", {"facts": sorted(machine.facts()), "sysctls": machine.sysctls()})
        start = time.monotonic()
        pki.make(WORK / "pki", NAME, IP)
        for folder in ["log", "run", "cni", "pv"]:
            (WORK / folder).mkdir()
        (WORK / "containerd.toml").write_text(CONTAINERD.format(work=WORK))
        (WORK / "cni/10-bridge.conflist").write_text(json.dumps(CNI))
        (WORK / "kubelet.yaml").write_text(KUBELET.format(pki=WORK / "pki", ip=IP, sync=sync))
        (WORK / "Corefile").write_text(COREDNS.format(pki=WORK / "pki", ip=IP))
        self.namespaces()
        took = {}

        def mark(what):
            took[what] = round(time.monotonic() - start, 1)

        for name in ["etcd", "containerd", "apiserver"]:
            self.start(name)
        until("the apiserver is ready", lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok", 90)
        mark("apiserver ready")
        for image in images:
            self.load(image)
        for name in ["cm", "scheduler", "kubelet", "proxy", "coredns"]:
            self.start(name)
        until("the node is ready", lambda: " Ready" in self.kubectl("get", "node", NAME, check=False), 120)
        mark("node ready")
        until("the node takes pods", lambda: not self.json("get", "node", NAME)["spec"].get("taints")
              and self.kubectl("get", "serviceaccount", "default", check=False), 60)
        mark("takes pods")
        print("node: " + ", ".join(f"{what} after {seconds} s" for what, seconds in took.items()), flush=True)

    def namespaces(self):
        script = WORK / "init"
        script.write_text(INSIDE)
        env = {"PATH": os.environ["PATH"], "W": str(WORK), "IP": IP}
        log = open(WORK / "log/init", "w")
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--propagation", "private",
             "bash", script], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def first():
            if process.poll() is not None:
                raise Failure(f"the namespaces: {(WORK / 'log/init').read_text()}")
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            return children and (WORK / "inside").exists() and int(children[0])

        pid = until("the namespaces are there", first)
        self.note("init", {"pid": pid, "unshare": process.pid, "started": started(pid)})

    def note(self, name, value=None):
        """Keeps a fact for the other processes that work on this node, or reads it."""
        path = WORK / f"{name}.json"
        if value is not None:
            path.write_text(json.dumps(value))
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def pid(self):
        """The first process of the namespaces; None when there is none."""
        init = self.note("init")
        return init["pid"] if init and started(init["pid"]) == init["started"] else None

    def inside(self, *command, namespaces=("--mount", "--net", "--pid", "--ipc", "--uts")):
        """The command as one that runs on the node."""
        if not self.pid:
            raise Failure("there is no node: tests/kubernetes/run up")
        return ["nsenter", "--target", str(self.pid), *namespaces, *map(str, command)]

    def run(self, *command, check=True, text=True, **more):
        """Runs it on the node, as seen from there."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=text, **more)
        if check and done.returncode:
            raise Failure(f"{command}: {done.stdout}{done.stderr}")
        return done

    def start(self, name):
        """Starts one program of the node; its pid, as the node counts, is in run/NAME.pid."""
        command = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', WORK / f"run/{name}.pid", *programs()[name]]
        log = open(WORK / f"log/{name}", "a")
        subprocess.Popen(self.inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                         env={"PATH": os.environ["PATH"]})

    def stop(self, name, how="KILL"):
        """Ends one program of the node, by its pid."""
        pid = (WORK / f"run/{name}.pid").read_text().strip()
        self.run("kill", f"-{how}", pid)
        until(f"{name} has ended", lambda: self.run("test", "-e", f"/proc/{pid}", check=False).returncode)

    def load(self, archive):
        """Gives an image to the runtime."""
        self.run("ctr", "-a", "/run/containerd.sock", "-n", "k8s.io", "image", "import", archive, timeout=120)

    def kubectl(self, *args, check=True, stdin=None, timeout=120):
        """What kubectl printed, as the administrator."""
        command = [BIN / "kubectl", f"--kubeconfig={WORK}/pki/admin.conf", *args]
        done = subprocess.run(self.inside(*command, namespaces=("--net",)), input=stdin, capture_output=True, text=True, timeout=timeout,
                              env={"PATH": os.environ["PATH"], "HOME": str(WORK)})
        if check and done.returncode:
            raise Failure(f"kubectl {' '.join(map(str, args))}: {done.stdout}{done.stderr}")
        return done.stdout if check or not done.returncode else ""

    def json(self, *args):
        return json.loads(self.kubectl(*args, "-o", "json"))

    def apply(self, text):
        return self.kubectl("apply", "-f", "-", stdin=text)

    def path(self, path):
        """A path of the node as the host sees it."""
        return pathlib.Path(f"/proc/{self.pid}/root{path}")

    def down(self, quiet=False):
        """Ends every process of the namespaces, removes what they leave, and compares. True when nothing is left."""
        start = time.monotonic()
        before, init = self.note("before"), self.note("init")
        if init and self.pid:
            os.kill(self.pid, signal.SIGKILL)
            until("the namespaces have ended", lambda: not started(init["pid"]) and not started(init["unshare"]), 30)
        until("the cgroups are empty", lambda: not machine.remove_cgroups(CGROUPS), 20)
        if before:
            machine.put_back(before["sysctls"])
        until("the workspace is gone", removed, 20)
        left = sorted(set(machine.facts()) - set(before["facts"])) if before else []
        # Processes and cgroups of others end as they like.
        gone = sorted(set(before["facts"]) - set(machine.facts())) if before else []
        gone = [fact for fact in gone if not fact.startswith(("process ", "cgroup "))]
        if not quiet:
            print(f"node: down in {time.monotonic() - start:.1f} s, " + (
                "nothing left behind" if not left and not gone else f"left behind: {left}, gone: {gone}"), flush=True)
        return not left and not gone


def removed():
    shutil.rmtree(WORK, ignore_errors=True)
    return not WORK.exists()


def started(pid):
    """When the process began, in ticks; None when it is not there (or is dead and not reaped)."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
