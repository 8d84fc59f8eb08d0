"""A pid that another pod's process has by the time that the agent looks.

Two pods, in turn, let a child connect to the agent's socket and end, and use the connection themselves, while a process of the
other pod has the child's number: the node's root sees to that here (ns_last_pid). A pod has luck for it, or with
CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE clone3, which takes a number for every namespace that the pod's lies in. Half the time
the agent is stopped meanwhile, so that the number belongs to the other when it accepts.
"""
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading

from cluster import SPACE, pod
from node import until

REUSES = 100
CONTROLS = 10
STORM = 1000
# The window of numbers that are used again and again begins here.
AGAIN = 28000


def family(pid):
    """A process's numbers: the machine's, the node's, the pod's."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return [int(number) for number in next(line for line in status.splitlines() if line.startswith("NSpid")).split()[1:]]


def on_this_machine(cluster, name, space=SPACE):
    """The machine's number of the first process of a pod, and its container's ID."""
    container = cluster.get(name, space)["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    wanted = cluster.pid(name, space)
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if container in (path / "cgroup").read_text() and family(path.name)[1] == wanted:
                return int(path.name), container
        except (OSError, IndexError):
            continue
    raise KeyError(name)


class Puppet:
    """A pod whose process does what it is told (tests/interop/spiffe/go/puppet.go)."""

    def __init__(self, cluster, name):
        self.name, self.identity = name, cluster.entry(f"/{name}", f"k8s:ns:{SPACE}", f"k8s:sa:{cluster.account(name)}")
        more = {"container": {"env": [{"name": "SPIFFE_ENDPOINT_SOCKET", "value": "unix:///run/vane/agent.sock"}, {"name": "TIMEOUT", "value": "3600"}]}}
        cluster.run(pod(name, "gospiffe", "puppet", "/tmp/orders", account=name, **more))
        cluster.ready(name)
        self.pid, self.container = on_this_machine(cluster, name)
        self.orders = socket.socket(socket.AF_UNIX)
        path = f"/proc/{self.pid}/root/tmp/orders"
        until(f"{name} takes orders", lambda: os.path.exists(path))
        self.orders.connect(path)
        self.answers = self.orders.makefile("r")

    def tell(self, order):
        self.orders.sendall(f"{order}\n".encode())
        answer = json.loads(self.answers.readline())
        if "error" in answer:
            raise ValueError(f"{self.name}: {order}: {answer['error']}")
        return answer

    def child(self):
        """The numbers of its youngest child."""
        children = [int(pid) for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
        return max((family(pid) for pid in children), key=lambda numbers: pathlib.Path(f"/proc/{numbers[0]}").stat().st_ctime_ns)


class Numbers:
    """Says which number the next process on the node gets, unless another one is quicker."""

    def __init__(self, node):
        script = "while read n; do echo $n > /proc/sys/kernel/ns_last_pid; echo ok; done"
        self.writer = subprocess.Popen(node.inside("sh", "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def next(self, number):
        self.writer.stdin.write(f"{number - 1}\n")
        self.writer.stdin.flush()
        self.writer.stdout.readline()

    def __exit__(self, *_):
        self.writer.stdin.close()
        self.writer.wait()

    def take(self, puppet, number):
        """Whether a child of the puppet has the number; it has a child anyway."""
        for _ in range(30):
            self.next(number)
            puppet.tell("spawn")
            child = puppet.child()
            if child[1] == number:
                # What the agent would read if it asked for this number.
                return puppet.container in pathlib.Path(f"/proc/{child[0]}/cgroup").read_text()
            puppet.tell("reap")
        puppet.tell("spawn")
        return False


def one_reuse(numbers, agent, user, other, is_stopped):
    """`user` asks over a connection whose connector's number is of `other` now: the answer, what `other` is told, and whether it was so."""
    try:
        if is_stopped:
            os.kill(agent, signal.SIGSTOP)
        user.tell("connect")
        number = user.child()[1]
        user.tell("end")
        was_reused = numbers.take(other, number)
    finally:
        os.kill(agent, signal.SIGCONT)
    said, others = user.tell("ask"), other.tell("serve")["answer"]
    other.tell("reap")
    return said, others, was_reused


def a_pid_of_another_pod_gives_nothing(cluster, checks):
    mallory, victim = Puppet(cluster, "reuser"), Puppet(cluster, "reused")
    agent, _ = on_this_machine(cluster, cluster.agent_pod()["metadata"]["name"], "vane")
    while_who_connected_lives(checks, mallory)
    with Numbers(cluster.node) as numbers:
        each_number_once(checks, numbers, agent, mallory, victim)
        many_numbers_at_once(cluster, checks, numbers, mallory, victim)
    cluster.delete("reuser", "reused", "late")
    for name in ("reuser", "reused", "late"):
        cluster.forget(f"/{name}")


def while_who_connected_lives(checks, puppet):
    """The same but for the end, so that a refusal below is for the end."""
    said = []
    for _ in range(CONTROLS):
        puppet.tell("connect")
        said.append(puppet.tell("ask"))
        puppet.tell("end")
    checks.check(f"a parent over its living child's connection: {CONTROLS} times the pod's identity",
                 said == [{"ids": [puppet.identity]}] * CONTROLS, said[:3])


def each_number_once(checks, numbers, agent, mallory, victim):
    asked, reused, refused, served, wrong = 0, 0, 0, 0, []
    while reused < REUSES and asked < 3 * REUSES:
        user, other = (mallory, victim) if asked % 2 else (victim, mallory)
        said, others, was_reused = one_reuse(numbers, agent, user, other, is_stopped=asked // 2 % 2)
        asked += 1
        reused += was_reused
        if "refused" in said:
            refused += 1
        else:
            wrong.append((user.name, said))
        if others.get("ids") == [other.identity]:
            served += 1
        else:
            wrong.append((other.name, others))
    checks.check(f"{reused} of {asked} connections of ended processes, whose number was another pod's: {refused} refused", refused == asked and reused >= REUSES, wrong[:3])
    checks.check(f"the processes that had the numbers got their own identity: {served} of {asked}", served == asked, wrong[:3])


def many_numbers_at_once(cluster, checks, numbers, mallory, victim):
    """Both pods at full speed, while all new processes of the node use the same few numbers."""
    late = cluster.entry("/late", f"k8s:ns:{SPACE}", "k8s:pod-label:late:yes")
    is_over = threading.Event()

    def again():
        while not is_over.wait(0.002):
            numbers.next(AGAIN)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        turning = pool.submit(again)
        try:
            storms = {puppet: pool.submit(puppet.tell, f"storm {STORM}") for puppet in (mallory, victim)}
            cluster.run(pod("late", "vane-test-pod", "first", labels={"late": "yes"}))
            first = cluster.first("late")
            is_meanwhile = not any(storm.done() for storm in storms.values())
            said = {puppet: storm.result() for puppet, storm in storms.items()}
        finally:
            is_over.set()
            turning.result()
    for puppet, counts in said.items():
        checks.check(f"{puppet.name}: {counts['tries']} connections of ended processes, {counts['refused']} refused, over few numbers",
                     counts["refused"] == counts["tries"] == STORM and not counts["ended"], counts)
        checks.check(f"{puppet.name}: {STORM // 10} of living ones, all with its own identity", counts["living"] == {puppet.identity: STORM // 10}, counts)
    checks.check(f"a new pod has its first SVID meanwhile, in {first['ms']:.0f} ms", is_meanwhile and first["ids"] == [late] and first["ms"] < 1000, first)


STORIES = [a_pid_of_another_pod_gives_nothing]
