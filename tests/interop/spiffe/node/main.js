// A SPIFFE workload for tests, made with grpc-js and Node's own TLS (no SPIFFE library was found on npm). Every subcommand prints one JSON
// line and exits with 1 when something is not as it should be; tests/interop/clients runs them. SPIFFE_ENDPOINT_SOCKET names the Workload
// API, TIMEOUT bounds a subcommand (seconds, 10).
'use strict';
const crypto = require('node:crypto');
const tls = require('node:tls');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(loader.loadSync(`${__dirname}/workload.proto`, { keepCase: true }));
const seconds = Number(process.env.TIMEOUT || 10);
const deadline = () => ({ deadline: Date.now() + seconds * 1000 });
const header = metadata('true');
let shared;

function api() {
  shared ??= new SpiffeWorkloadAPI(process.env.SPIFFE_ENDPOINT_SOCKET.replace(/^tcp:\/\//, ''), grpc.credentials.createInsecure());
  return shared;
}

function metadata(...values) {
  const m = new grpc.Metadata();
  for (const v of values) m.add('workload.spiffe.io', v);
  return m;
}

const unary = (method, request) => new Promise((resolve, reject) =>
  api()[method](request, header, deadline(), (error, answer) => (error ? reject(error) : resolve(answer))));

// The first COUNT messages of a stream.
const stream = (method, count = 1, headers = header) => new Promise((resolve, reject) => {
  const messages = [];
  const call = api()[method]({}, headers, deadline());
  call.on('data', (message) => {
    if (messages.push(message) === count) { call.cancel(); resolve(messages); }
  });
  call.on('error', reject);
  call.on('end', () => reject(new Error(`${messages.length} of ${count} messages`)));
});

// Concatenated DER certificates, each of which is one SEQUENCE with a length of two bytes.
function certificates(der) {
  const out = [];
  for (let at = 0; at < der.length;) {
    if (der.readUInt16BE(at) !== 0x3082) throw new Error('not a certificate');
    const end = at + 4 + der.readUInt16BE(at + 2);
    out.push(new crypto.X509Certificate(der.subarray(at, end)));
    at = end;
  }
  return out;
}

// The one URI among the names (in Node's text form), undefined when there are none or several.
function uriOf(names) {
  const uris = (names || '').split(', ').filter((name) => name.startsWith('URI:'));
  return uris.length === 1 ? uris[0].slice(4) : undefined;
}
const idOf = (certificate) => uriOf(certificate.subjectAltName);
const domainOf = (id) => id.split('/')[2];

function verify(svid) {
  const roots = certificates(svid.bundle);
  const chain = certificates(svid.x509_svid);
  if (idOf(chain[0]) !== svid.spiffe_id) throw new Error(`the leaf says ${chain[0].subjectAltName}`);
  if (!chain[0].checkPrivateKey(keyOf(svid))) throw new Error('the key does not fit the leaf');
  chain.forEach((certificate, i) => {
    const issuers = i + 1 < chain.length ? [chain[i + 1]] : roots;
    if (!issuers.some((issuer) => certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey))) throw new Error('a broken chain');
  });
  return chain;
}

const keyOf = (svid) => crypto.createPrivateKey({ key: svid.x509_svid_key, format: 'der', type: 'pkcs8' });

async function x509() {
  const [{ svids, federated_bundles: federated }] = await stream('FetchX509SVID');
  const chains = svids.map(verify);
  const domains = new Set([...svids.map((s) => domainOf(s.spiffe_id)), ...Object.keys(federated || {}).map(domainOf)]);
  return { ids: svids.map((s) => s.spiffe_id), hints: svids.map((s) => s.hint), chain: chains[0].length,
    expires: Date.parse(chains[0][0].validTo) / 1000, bundles: [...domains].sort() };
}

async function watch(count) {
  const updates = await stream('FetchX509SVID', Number(count));
  return { serials: updates.map((u) => BigInt(`0x${verify(u.svids[0])[0].serialNumber}`).toString()) };
}

// Fetches a JWT-SVID, validates it here with the JWT bundles and a second time through the Workload API.
async function jwt(audience, id) {
  const { svids: [svid] } = await unary('FetchJWTSVID', { audience: [audience], spiffe_id: id || '' });
  const [{ bundles: sets }] = await stream('FetchJWTBundles');
  const [head, body, signature] = svid.svid.split('.');
  const { alg, kid } = JSON.parse(Buffer.from(head, 'base64url'));
  const claims = JSON.parse(Buffer.from(body, 'base64url'));
  const jwk = JSON.parse(sets[`spiffe://${domainOf(svid.spiffe_id)}`]).keys.find((k) => k.kid === kid);
  const key = { key: crypto.createPublicKey({ key: jwk, format: 'jwk' }), dsaEncoding: 'ieee-p1363' };
  if (alg.startsWith('PS')) key.padding = crypto.constants.RSA_PKCS1_PSS_PADDING;
  if (!crypto.verify(`sha${alg.slice(2)}`, `${head}.${body}`, key, Buffer.from(signature, 'base64url'))) throw new Error('a bad signature');
  await unary('ValidateJWTSVID', { audience, svid: svid.svid });
  const wrong = await unary('ValidateJWTSVID', { audience: `not-${audience}`, svid: svid.svid }).then(() => true, () => false);
  if (wrong) throw new Error('a wrong audience was accepted');
  return { id: claims.sub, aud: [claims.aud].flat(), expires: claims.exp, hint: svid.hint, token: svid.svid };
}

async function bundles() {
  const [{ bundles: certs }] = await stream('FetchX509Bundles');
  const [{ bundles: sets }] = await stream('FetchJWTBundles');
  const count = (map, size) => Object.fromEntries(Object.entries(map).map(([id, value]) => [domainOf(id), size(value)]));
  return { x509: count(certs, (der) => certificates(der).length), jwt: count(sets, (json) => JSON.parse(json).keys.length) };
}

const identity = async () => (await stream('FetchX509SVID'))[0].svids[0];
const material = (svid) => ({ cert: certificates(svid.x509_svid).join(''), key: keyOf(svid).export({ format: 'pem', type: 'pkcs8' }),
  ca: certificates(svid.bundle).map(String), minVersion: 'TLSv1.2' });

async function listen(port, host, connections) {
  const svid = await identity();
  const server = tls.createServer({ ...material(svid), requestCert: true, rejectUnauthorized: true });
  const done = new Promise((resolve) => server.on('secureConnection', (socket) => {
    const peer = idOf(socket.getPeerX509Certificate());
    if (domainOf(peer || '//') !== domainOf(svid.spiffe_id)) { socket.destroy(); return; }
    socket.on('error', () => {});
    socket.once('data', (line) => socket.end(`${peer} ${line}`));
    if (--connections === 0) socket.on('close', resolve);
  }));
  await new Promise((resolve, reject) => server.on('error', reject).listen(port, host, resolve));
  return { server, svid, done };
}

// An echo server and a client with an identity each: the right ID gets through, another one is refused.
async function mtls() {
  const { server, svid } = await listen(0, '127.0.0.1', 2);
  const address = `127.0.0.1:${server.address().port}`;
  const out = await dial(address, svid.spiffe_id);
  const other = await dial(address, `${svid.spiffe_id}/other`).then(() => true, () => false);
  if (other) throw new Error('a server with another ID was accepted');
  return out;
}

async function serve(address) {
  const [host, port] = address.split(':');
  const { svid, done } = await listen(Number(port), host, 1);
  await done;
  return { id: svid.spiffe_id };
}

async function dial(address, id) {
  const [host, port] = address.split(':');
  const svid = await identity();
  const answer = await new Promise((resolve, reject) => {
    const checkServerIdentity = (_, certificate) =>
      (uriOf(certificate.subjectaltname) === id ? undefined : new Error(`the server is ${certificate.subjectaltname}`));
    const socket = tls.connect({ ...material(svid), host, port: Number(port), checkServerIdentity }, () => socket.write('hello\n'));
    let text = '';
    socket.on('data', (data) => { text += data; }).on('end', () => resolve(text)).on('error', reject);
  });
  if (answer !== `${svid.spiffe_id} hello\n`) throw new Error(`unexpected answer ${JSON.stringify(answer)}`);
  return { peer: id, echo: answer.trim() };
}

// FetchX509Bundles with the given values of the security header, none at all without arguments.
async function raw(...values) {
  const [answer] = await stream('FetchX509Bundles', 1, metadata(...values));
  return { bundles: Object.keys(answer.bundles).length };
}

const commands = { x509, watch, jwt, bundles, mtls, serve, dial, raw };
const [name, ...args] = process.argv.slice(2);
const timer = new Promise((_, reject) => { setTimeout(() => reject(new Error('timed out')), seconds * 1000); });

Promise.race([Promise.resolve().then(() => commands[name](...args)), timer])
  .then((out) => ({ ...out, ok: true }), (error) => ({ ok: false, code: codeOf(error), error: String(error.message || error) }))
  .then((out) => { console.log(JSON.stringify({ client: 'grpc-js', cmd: name, ...out })); process.exit(out.ok ? 0 : 1); });

function codeOf(error) {
  const code = grpc.status[error.code] || 'UNKNOWN';
  return code.toLowerCase().replace(/(^|_)./g, (s) => s.at(-1).toUpperCase());
}
