"""What a run must leave on the machine as it was: facts, one a line, read before and after.

Only what a Kubernetes node can leave is looked at. sysctls are the one thing that has to be put back by hand: kubelet
sets three for the whole machine. Everything else goes with the namespaces of node.py, or is a cgroup that it removes.
"""
import os
import pathlib
import re
import subprocess

CGROUPS = pathlib.Path("/sys/fs/cgroup")
PATHS = ["/var/log/pods", "/var/log/containers", "/var/lib/kubelet", "/var/lib/cni", "/etc/cni", "/run/containerd",
         "/run/vane", "/run/spire", "/var/lib/vane", "/var/run/secrets", "/run/xtables.lock"]
# Counters, and what belongs to links and processes of others.
MOVING = re.compile(r"^(fs\.(dentry|file-nr|inode|aio-nr|quota)|kernel\.(random|pty|ns_last_pid|perf_event_max_sample"
                    r"|sched_domain)|net\.netfilter\.nf_conntrack_count|net\..*\.(neigh|conf)\.)")
OURS = re.compile(r"^(kube|etcd|containerd|coredns)")


def sysctls():
    """Every sysctl that stays as it is while nobody sets it."""
    lines = subprocess.run(["sysctl", "-a"], capture_output=True, text=True).stdout.splitlines()
    pairs = (line.split(" = ", 1) for line in lines if " = " in line)
    return {name: value for name, value in pairs if not MOVING.match(name)}


def facts():
    """The state of the machine as a set of lines."""
    found = {f"sysctl {name} = {value}" for name, value in sysctls().items()}
    found |= {f"mount {line.split()[4]}" for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()}
    # Those of other tests, which may run beside this, come and go.
    found |= {f"cgroup {path}" for path, _, _ in os.walk(CGROUPS) if "/vane-" not in path and path.count("/") > 3}
    found |= {f"link {path.name}" for path in pathlib.Path("/sys/class/net").iterdir()}
    found |= {f"netns {path.name}" for path in entries("/run/netns")}
    found |= {f"path {path}" for folder in PATHS for path in [folder, *entries(folder)] if os.path.exists(path)}
    return found | {f"process {name}" for name in processes()}


def entries(folder):
    path = pathlib.Path(folder)
    return list(path.iterdir()) if path.is_dir() else []


def processes():
    """Names and pids of processes that a node consists of, in this or a deeper PID namespace."""
    for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
        try:
            name = path.read_text().strip()
        except OSError:
            continue
        if OURS.match(name):
            yield f"{name} {path.parent.name}"


def put_back(before):
    """Sets sysctls that differ from `before` (what sysctls() said); those that cannot be set stay and are shown."""
    now = sysctls()
    for name, value in before.items():
        if now.get(name) != value and re.match(r"(vm|kernel|net)\.", name):
            subprocess.run(["sysctl", "-q", "-w", f"{name}={value}"], capture_output=True)


def remove_cgroups(names):
    """Removes the empty cgroup trees with these names from every hierarchy; what stays, is returned."""
    roots = [CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())]
    for root in roots:
        for name in names:
            for path, _, _ in os.walk(root / name, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    pass
    return [root / name for root in roots for name in names if (root / name).exists()]
