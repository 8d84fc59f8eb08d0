"""A Vane server and agent as real processes, for the tests with foreign software.

Programs come from $VANE_BIN, else from $CARGO_TARGET_DIR/dist. Everything lives in one temporary folder; only
processes started here are ended, by pid.
"""
import contextlib
import json
import os
import pathlib
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BIN = pathlib.Path(os.environ.get("VANE_BIN", TARGET / "dist"))
CLIENTS = pathlib.Path(os.environ.get("VANE_CLIENTS", pathlib.Path(tempfile.gettempdir()) / "vane-clients"))
DOMAIN = "example.org"


class Failure(Exception):
    """Something did not become true in time, or a program failed."""


def until(what, condition, seconds=20):
    """The first true value of condition(); looks every 10 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise Failure(f"not within {seconds} s: {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    """Whether something listens on 127.0.0.1:port, without connecting to it."""
    wanted = f"0100007F:{port:04X}"
    anywhere = f"00000000:{port:04X}"
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and local in (wanted, anywhere):
            return True
    six = pathlib.Path("/proc/net/tcp6")
    return six.exists() and any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in six.read_text().splitlines()[1:])


class World:
    """One server, one agent, and the CLI bound to them."""

    def __init__(self, x509_ttl="20s", ca_ttl="10m"):
        self.stack = contextlib.ExitStack()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="vane-"))
        self.stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
        os.chmod(self.dir, 0o755)
        self.admin, self.workload = self.dir / "server.sock", self.dir / "agent.sock"
        self.x509_ttl, self.ca_ttl = x509_ttl, ca_ttl

    def __enter__(self):
        with contextlib.ExitStack() as on_failure:
            on_failure.push(self.stack)
            self.start_server()
            self.start_agent()
            self.stack = on_failure.pop_all()
        return self

    def __exit__(self, *failure):
        if failure[0]:
            for log in sorted(self.dir.glob("*.log")):
                print(f"--- end of {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
        self.stack.__exit__(*failure)

    def start(self, name, *args):
        """Starts a program and waits for its ready line, which it returns as a dictionary."""
        log = open(self.dir / f"{name}.log", "a")
        process = subprocess.Popen([BIN / name, *args], stdout=subprocess.PIPE, stderr=log, text=True)
        self.stack.callback(stop, process)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(30):
                raise Failure(f"{name} was not ready within 30 s")
        line = process.stdout.readline()
        if not line.startswith("ready "):
            process.wait(5)
            raise Failure(f"{name} ended with {process.returncode}: {pathlib.Path(log.name).read_text()[-2000:]}")
        return dict(word.split("=", 1) for word in line.split()[1:])

    def start_server(self):
        (self.dir / "server.toml").write_text(f"""
[server]
trust_domain = "{DOMAIN}"
bind_address = "127.0.0.1"
bind_port = 0
socket_path = "{self.admin}"
data_dir = "{self.dir}/server"
ca_ttl = "{self.ca_ttl}"
default_x509_svid_ttl = "{self.x509_ttl}"

[telemetry]
enabled = false
""")
        ready = self.start("vane-server", "run", "-c", self.dir / "server.toml")
        self.port = int(ready["server_address"].rsplit(":", 1)[1])

    def start_agent(self):
        (self.dir / "bundle.pem").write_text(self.vane("bundle", "show"))
        token = json.loads(self.vane("token", "create", "-o", "json"))["value"]
        (self.dir / "agent.toml").write_text(f"""
[agent]
trust_domain = "{DOMAIN}"
server_address = "127.0.0.1"
server_port = {self.port}
socket_path = "{self.workload}"
data_dir = "{self.dir}/agent"
trust_bundle_path = "{self.dir}/bundle.pem"
join_token = "{token}"
""")
        self.agent_id = self.start("vane-agent", "run", "-c", self.dir / "agent.toml")["agent_id"]

    def vane(self, *args, check=True):
        """What the CLI printed."""
        env = os.environ | {"VANE_SERVER_SOCKET": str(self.admin), "SPIFFE_ENDPOINT_SOCKET": f"unix://{self.workload}"}
        done = subprocess.run([BIN / "vane", *map(str, args)], env=env, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise Failure(f"vane {' '.join(map(str, args))}: {done.stdout}{done.stderr}")
        return done.stdout

    def entry(self, path, *more, uid=None):
        """An entry for this user's processes, or those of uid."""
        spiffe_id = f"spiffe://{DOMAIN}{path}"
        self.vane("entry", "create", "--spiffe-id", spiffe_id, "--parent-id", self.agent_id,
                  "--selector", f"unix:uid:{os.getuid() if uid is None else uid}", *more)
        return spiffe_id


def stop(process):
    """Ends a process that was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Checks:
    """Counts what passed and what did not, and prints the line that ends a stage."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, condition, detail=""):
        if condition:
            self.passed += 1
            print(f"ok      {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}: {detail}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed or not self.passed else 0)
