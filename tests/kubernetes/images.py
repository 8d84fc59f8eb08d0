"""The images of the tests, made without a registry: `pause`, `busybox`, and (with ours built) `vane` and `workload`."""
import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import subprocess

from node import CACHE, HERE

ROOT = HERE.parent.parent
VANE, BUSYBOX, PAUSE, WORKLOAD, WEB = (f"docker.io/local/{name}:1" for name in ("vane", "busybox", "pause", "workload", "web"))
APPLETS = ["sh", "sleep", "cat", "id", "ls", "echo", "wget", "nslookup", "mount", "mkdir", "kill", "ps", "true", "touch", "ln", "httpd", "nc"]
PASSWD = "root:x:0:0:root:/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"


def archive_tool():
    path = str(ROOT / "deploy/docker/archive")
    loader = importlib.machinery.SourceFileLoader("archive", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("archive", loader))
    loader.exec_module(module)
    return module


ARCHIVE = archive_tool()


def with_libraries(program):
    """The program and the libraries that it is linked with, as paths on this machine."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return [program, *(word for line in said.splitlines() for word in line.split() if word.startswith("/"))]


def busybox(name, command, more=(), dynamic=()):
    """A busybox image with `more` programs (paths on this machine) in /bin, and `dynamic` ones in place; its archive's path."""
    layer = ARCHIVE.Layer()
    layer.put("bin/busybox", pathlib.Path(shutil.which("busybox")).read_bytes(), 0o755)
    for applet in APPLETS:
        layer.put(f"bin/{applet}", link="busybox")
    layer.put("etc/passwd", PASSWD.encode())
    for program in more:
        layer.put(f"bin/{pathlib.Path(program).name}", pathlib.Path(program).read_bytes(), 0o755)
    for path in sorted({path for program in dynamic for path in with_libraries(shutil.which(program))}):
        layer.put(path.lstrip("/"), pathlib.Path(path).read_bytes(), 0o755)
    for folder in ["proc", "dev", "sys"]:
        layer.put(folder)
    layer.put("tmp", mode=0o1777)
    out = CACHE / f"{name.rsplit('/', 1)[1].split(':')[0]}.tar"
    out.parent.mkdir(parents=True, exist_ok=True)
    ARCHIVE.write(out, name, layer.bytes(), {"Cmd": command, "Env": ["PATH=/bin:/usr/bin:/usr/sbin"]})
    return out


def basic():
    """What a node needs before anything of ours is there."""
    return [busybox(BUSYBOX, ["sleep", "1000000"]), busybox(PAUSE, ["sleep", "1000000"])]


def web():
    """nginx and curl, as they are on this machine, in the place of the images that the example names."""
    return busybox(WEB, ["sleep", "1000000"], dynamic=["nginx", "curl"])


def vane(folder):
    """The image of deploy/docker from the static programs in `folder`."""
    out = CACHE / "vane.tar"
    subprocess.run([ROOT / "deploy/docker/archive", out, VANE, folder], check=True)
    return out


def workload(folder):
    """Pods that ask: busybox, the CLI and the test's own workloads, among them one made with go-spiffe."""
    out = CACHE / "clients"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-o", out / "gospiffe", "."], cwd=ROOT / "tests/interop/spiffe/go", check=True,
                   env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"})
    programs = [folder / name for name in ("vane", "vane-test-pod", "vane-test-greedy")]
    return busybox(WORKLOAD, ["sleep", "1000000"], [*programs, out / "gospiffe"])
