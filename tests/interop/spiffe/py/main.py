#!/usr/bin/env python3
"""A SPIFFE workload for tests, made with py-spiffe. Every subcommand prints one JSON line and exits with 1 when something is not as it
should be; tests/interop/clients runs them. SPIFFE_ENDPOINT_SOCKET names the Workload API, TIMEOUT bounds a subcommand (seconds, 10)."""
import json
import os
import queue
import sys
import threading
import time
import warnings

import grpc
from OpenSSL import SSL, crypto
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient, X509Source
from spiffetls import ClientTlsMode, ListenOptions, ServerTlsMode, dial as tls_dial, listen
from spiffetls.tlsconfig.authorize import authorize_id, authorize_member_of
from cryptography import x509 as cx509

warnings.simplefilter("ignore")
TIMEOUT = float(os.environ.get("TIMEOUT", 10))


def new_client():
    return WorkloadApiClient(default_timeout=TIMEOUT)


def new_source():
    return X509Source(timeout_in_seconds=TIMEOUT)


def verify(svid, bundle):
    """The library leaves the chain to TLS, so OpenSSL verifies it here."""
    store = crypto.X509Store()
    for authority in bundle.x509_authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    leaf, *rest = [crypto.X509.from_cryptography(c) for c in svid.cert_chain]
    crypto.X509StoreContext(store, leaf, rest).verify_certificate()


def x509():
    context = new_client().fetch_x509_context()
    bundles = context.x509_bundle_set
    for svid in context.x509_svids:
        verify(svid, bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain))
    first = context.default_svid
    return {"ids": [str(s.spiffe_id) for s in context.x509_svids],
            "chain": len(first.cert_chain), "expires": int(first.leaf.not_valid_after_utc.timestamp()),
            "bundles": sorted(str(b.trust_domain) for b in bundles.bundles)}


def watch(count):
    updates, serials, end = queue.Queue(), [], time.monotonic() + TIMEOUT
    handle = new_client().stream_x509_contexts(updates.put, updates.put)
    while len(serials) < int(count):
        try:
            update = updates.get(timeout=max(0, end - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"{len(serials)} of {count} updates") from None
        if isinstance(update, Exception):
            raise update
        serials.append(str(update.default_svid.leaf.serial_number))
    handle.cancel()
    return {"serials": serials}


def jwt(audience, spiffe_id=None):
    client = new_client()
    svid = client.fetch_jwt_svid({audience}, SpiffeId(spiffe_id) if spiffe_id else None)
    bundle = client.fetch_jwt_bundles().get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    JwtSvid.parse_and_validate(svid.token, bundle, {audience})
    client.validate_jwt_svid(svid.token, audience)
    must_fail("a wrong audience was accepted", lambda: client.validate_jwt_svid(svid.token, "not-" + audience))
    return {"id": str(svid.spiffe_id), "aud": sorted(svid.audience), "expires": int(svid.expiry), "token": svid.token}


def bundles():
    client = new_client()
    return {"x509": {str(b.trust_domain): len(b.x509_authorities) for b in client.fetch_x509_bundles().bundles},
            "jwt": {str(b.trust_domain): len(b.jwt_authorities) for b in client.fetch_jwt_bundles().bundles}}


def mtls():
    server = new_source()
    own = server.get_x509_context().default_svid.spiffe_id
    listener = open_listener("127.0.0.1:0", server, own)
    threading.Thread(target=lambda: [echo(listener) for _ in range(2)], daemon=True).start()
    address = "127.0.0.1:%d" % listener.getsockname()[1]
    out = dial(address, str(own))
    must_fail("a server with another ID was accepted", lambda: dial(address, f"{own}/other"))
    return out


def serve(address):
    server = new_source()
    own = server.get_x509_context().default_svid.spiffe_id
    echo(open_listener(address, server, own))
    return {"id": str(own)}


def dial(address, peer):
    client = new_source()
    conn = tls_dial(address, client, ClientTlsMode.TLS, authorize_fn=authorize_id(SpiffeId(peer)))
    conn.sendall(b"hello\n")
    answer, own = read_line(conn), client.get_x509_context().default_svid.spiffe_id
    conn.shutdown()
    conn.close()
    if answer != f"{own} hello\n":
        raise ValueError(f"unexpected answer {answer!r}")
    return {"peer": peer, "echo": answer.strip()}


def raw(*values):
    """FetchX509Bundles with the given values of the security header, none at all without arguments."""
    with grpc.insecure_channel(os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("tcp://")) as channel:
        call = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509Bundles", lambda b: b, lambda b: b)
        answers = call(b"", timeout=TIMEOUT, metadata=[("workload.spiffe.io", v) for v in values])
        return {"bytes": len(next(answers))}


def open_listener(address, source, own):
    return listen(address, source, ListenOptions(ServerTlsMode.MTLS, authorize_fn=authorize_member_of(own.trust_domain)))


def echo(listener):
    """Answers one line on one connection: the peer's ID, then the line. A handshake that fails is the client's to report."""
    conn, _ = listener.accept()
    try:
        line = read_line(conn)
        names = conn.get_peer_certificate().to_cryptography().extensions.get_extension_for_class(cx509.SubjectAlternativeName).value
        conn.sendall(f"{names.get_values_for_type(cx509.UniformResourceIdentifier)[0]} {line}".encode())
        conn.shutdown()
    except SSL.Error:
        pass
    conn.close()


def read_line(conn):
    line = b""
    while not line.endswith(b"\n"):
        line += conn.recv(4096)
    return line.decode()


def must_fail(message, call):
    try:
        call()
    except Exception:
        return
    raise ValueError(message)


def status_of(error):
    while error is not None and not isinstance(error, grpc.Call):
        error = error.__cause__
    return error.code().name.title().replace("_", "") if error is not None else "Unknown"


COMMANDS = {f.__name__: f for f in (x509, watch, jwt, bundles, mtls, serve, dial, raw)}

if __name__ == "__main__":
    name, code = sys.argv[1], 0
    try:
        out = COMMANDS[name](*sys.argv[2:]) | {"ok": True}
    except Exception as error:  # whatever a library throws is the result of the test
        out, code = {"ok": False, "code": status_of(error), "error": str(error)}, 1
    print(json.dumps({"client": "py-spiffe", "cmd": name} | out), flush=True)
    os._exit(code)  # watch threads of the library must not keep the process alive
