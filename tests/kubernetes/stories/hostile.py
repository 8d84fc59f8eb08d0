"""A pod that lies about itself: cgroups with the names of others, files mounted over /proc and /sys.

It has root, CAP_SYS_ADMIN and a writable cgroup of its own, which is more than a pod should have and less than the node:
who may write the node's own cgroup tree can start processes in any pod, and is that pod. Pids that are used again are
in reuse.py.
"""
import json

import images
from cluster import SPACE, pod

# Moves the shell into DIR below its own cgroup, in every hierarchy that it has.
MOVE = """for h in /sys/fs/cgroup/*; do
  mount -o remount,bind,rw $h 2>/dev/null || mount -o remount,rw $h 2>/dev/null
  busybox mkdir -p $h/$DIR 2>/dev/null || continue
  [ -e $h/$DIR/cpuset.cpus ] && for d in $(busybox dirname $DIR) $DIR; do
    p=""; IFS=/; for part in $d; do q=$p; p=$p/$part
      for f in cpuset.cpus cpuset.mems; do cat $h$q/$f > $h$p/$f 2>/dev/null; done; done; IFS=" "
  done
  echo $$ > $h/$DIR/cgroup.procs && moved=$((moved+1))
done
echo "moved in $moved hierarchies"; cat /proc/self/cgroup | busybox tail -2
"""
FETCH = "\nvane svid fetch -o json 2>&1\n"


def lies(victim, container, other):
    """What the pod does, by name, before it asks for its SVID."""
    nested = f"kubepods/besteffort/pod{victim}/{container}"
    return {
        "below its own cgroup, the whole path of another pod's container": f"DIR={nested}" + "\n" + MOVE,
        "a cgroup named as another container": f"DIR={container}\n" + MOVE,
        "a cgroup named as another pod": f"DIR=pod{victim}\n" + MOVE,
        "a cgroup with a made-up container id": f"DIR={other}\n" + MOVE,
        "names of systemd's driver":
            f"DIR=kubepods.slice/kubepods-pod{victim.replace('-', '_')}.slice/cri-containerd-{container}.scope" + "\n" + MOVE,
        "another file over /proc/self/cgroup and /proc/1/cgroup":
            f"echo 0::/kubepods/besteffort/pod{victim}/{container} > /tmp/c; mount -o bind /tmp/c /proc/1/cgroup; mount -o bind /tmp/c /proc/$$/cgroup; echo mounted",
        "a tmpfs over /sys/fs/cgroup": "mount -t tmpfs none /sys/fs/cgroup && echo mounted",
        "a tmpfs over /proc with a cgroup file":
            f"mount -t tmpfs none /proc; busybox mkdir -p /proc/self /proc/1; echo 0::/kubepods/besteffort/pod{victim}/{container} > /proc/self/cgroup; echo mounted",
    }


def it_gets_nothing_but_its_own(cluster, checks):
    for account in ("victim", "mallory"):
        cluster.account(account)
    theirs, own = (cluster.entry(f"/{name}", f"k8s:ns:{SPACE}", f"k8s:sa:{name}") for name in ("victim", "mallory"))
    by_container = cluster.entry("/mallory/container", "k8s:sa:mallory", "k8s:container-name:main")
    cluster.run(pod("victim", "vane-test-pod", "first", account="victim"))
    cluster.first("victim")
    shown = cluster.get("victim")
    victim, container = shown["metadata"]["uid"], shown["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    for at, (name, script) in enumerate(lies(victim, container, "f" * 64).items()):
        one = f"mallory-{at}"
        cluster.run(pod(one, "sleep", "1000", account="mallory", image=images.WORKLOAD,
                        container={"securityContext": {"runAsUser": 0, "capabilities": {"add": ["SYS_ADMIN"]}}}))
        cluster.ready(one)
        honest = cluster.exec(one, "vane", "svid", "fetch", "-o", "json", check=False, namespace=SPACE)
        said = cluster.exec(one, "sh", "-c", script + FETCH, check=False, namespace=SPACE) or "(an error)"
        checks.check(f"{name}: not the other's identity", theirs not in json.dumps(said) and "/victim" not in said, said)
        got = sorted(path for path in (own, by_container) if f'"{path}"' in said.replace("\\", ""))
        did = next((line for line in said.splitlines() if line.startswith(("moved", "mounted"))), "nothing")
        print(f"        it {did}; before {'its own' if '/mallory' in honest else 'none'}, then {got or 'none'}", flush=True)
        cluster.delete(one)
    cluster.delete("victim")
    for path in ("/victim", "/mallory", "/mallory/container"):
        cluster.forget(path)


STORIES = [it_gets_nothing_but_its_own]
