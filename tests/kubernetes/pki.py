"""Certificates and kubeconfigs of one node, made with openssl: apiserver, admin, kubelet, cm, scheduler, proxy, and the
RSA key that signs service-account tokens. All of it is good for two days and lies in the node's workspace."""
import pathlib
import subprocess

SUBJECTS = {
    "apiserver": "/CN=kube-apiserver",
    "admin": "/O=system:masters/CN=admin",
    "kubelet": "/O=system:nodes/CN=system:node:{node}",
    "cm": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}
NAMES = {
    "apiserver": "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,"
                 "DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.96.0.1,IP:{ip}",
    "kubelet": "DNS:{node},IP:127.0.0.1,IP:{ip}",
}
KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:6443", certificate-authority: {dir}/ca.pem}}}}]
users: [{{name: u, user: {{client-certificate: {dir}/{user}.pem, client-key: {dir}/{user}.key}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def make(folder: pathlib.Path, node: str, ip: str):
    """Writes everything to `folder`."""
    folder.mkdir(parents=True)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2, "-subj", "/CN=vane-test-ca",
            "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for user, subject in SUBJECTS.items():
        more = []
        if user in NAMES:
            more = ["-addext", "subjectAltName=" + NAMES[user].format(node=node, ip=ip)]
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2,
                "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-subj", subject.format(node=node),
                "-keyout", folder / f"{user}.key", "-out", folder / f"{user}.pem",
                "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth", *more)
        (folder / f"{user}.conf").write_text(KUBECONFIG.format(dir=folder, user=user))
    openssl("genrsa", "-out", folder / "sa.key", 2048)
    openssl("rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
