// A SPIFFE workload for tests, made with java-spiffe. Every subcommand prints one JSON line and exits with 1 when something is not as it
// should be; tests/interop/clients runs them. SPIFFE_ENDPOINT_SOCKET names the Workload API, TIMEOUT bounds a subcommand (seconds, 10).
import com.google.gson.Gson;
import io.grpc.Status;
import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.provider.SpiffeProvider;
import io.spiffe.provider.SpiffeProviderConstants;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509KeyManager;
import javax.net.ssl.X509TrustManager;

public final class Main {
  static final int SECONDS = Integer.parseInt(System.getenv().getOrDefault("TIMEOUT", "10"));
  static final Logger ROOT = Logger.getLogger("");

  public static void main(String[] args) {
    ROOT.setLevel(Level.OFF); // the libraries log to standard error what the JSON line says, too
    var out = new LinkedHashMap<String, Object>();
    out.put("client", "java-spiffe");
    out.put("cmd", args.length > 0 ? args[0] : "");
    try {
      out.putAll(CompletableFuture.supplyAsync(() -> run(args)).get(SECONDS, TimeUnit.SECONDS));
      out.put("ok", true);
    } catch (Exception e) {
      out.put("ok", false);
      out.put("code", statusOf(e));
      out.put("error", root(e).toString());
    }
    System.out.println(new Gson().toJson(out));
    Runtime.getRuntime().halt(out.get("ok").equals(true) ? 0 : 1); // the libraries' threads must not keep the process alive
  }

  static Map<String, ?> run(String[] args) {
    try {
      return switch (args.length > 0 ? args[0] : "") {
        case "x509" -> x509();
        case "watch" -> watch(Integer.parseInt(args[1]));
        case "jwt" -> jwt(args[1], args.length > 2 ? SpiffeId.parse(args[2]) : null);
        case "bundles" -> bundles();
        case "provider" -> provider();
        case "mtls" -> mtls();
        case "serve" -> serve(args[1]);
        case "dial" -> dial(args[1], args[2]);
        default -> throw new IllegalArgumentException("x509 | watch N | jwt AUDIENCE [ID] | bundles | provider | mtls | serve ADDRESS | dial ADDRESS ID");
      };
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
  }

  static Map<String, ?> x509() throws Exception {
    X509Context context = client().fetchX509Context();
    X509BundleSet bundles = context.getX509BundleSet();
    var ids = new ArrayList<String>();
    var hints = new ArrayList<String>();
    for (X509Svid svid : context.getX509Svids()) {
      X509SvidValidator.verifyChain(svid.getChain(), bundles);
      ids.add(svid.getSpiffeId().toString());
      hints.add(svid.getHint());
    }
    var domains = new TreeSet<String>();
    bundles.getBundles().keySet().forEach(domain -> domains.add(domain.getName()));
    X509Svid first = context.getDefaultSvid();
    long expires = first.getLeaf().getNotAfter().getTime() / 1000;
    return Map.of("ids", ids, "hints", hints, "chain", first.getChain().size(), "expires", expires, "bundles", domains);
  }

  static Map<String, ?> watch(int count) throws Exception {
    var updates = new LinkedBlockingQueue<Object>();
    client().watchX509Context(new Watcher<>() {
      @Override public void onUpdate(X509Context context) {
        updates.add(context.getDefaultSvid().getLeaf().getSerialNumber().toString());
      }

      @Override public void onError(Throwable error) {
        updates.add(error);
      }
    });
    var serials = new ArrayList<Object>();
    while (serials.size() < count) {
      Object update = updates.take();
      if (update instanceof Throwable error) throw new IllegalStateException(error);
      serials.add(update);
    }
    return Map.of("serials", serials);
  }

  /** Fetches a JWT-SVID, validates it here with the JWT bundles and a second time through the Workload API. */
  static Map<String, ?> jwt(String audience, SpiffeId id) throws Exception {
    WorkloadApiClient client = client();
    JwtSvid svid = id == null ? client.fetchJwtSvid(audience) : client.fetchJwtSvid(id, audience);
    JwtSvid.parseAndValidate(svid.getToken(), client.fetchJwtBundles(), Set.of(audience));
    client.validateJwtSvid(svid.getToken(), audience);
    mustFail("a wrong audience was accepted", () -> client.validateJwtSvid(svid.getToken(), "not-" + audience));
    long expires = svid.getExpiry().getTime() / 1000;
    String hint = svid.getHint() == null ? "" : svid.getHint();
    return Map.of("id", svid.getSpiffeId().toString(), "aud", svid.getAudience(), "expires", expires, "hint", hint, "token", svid.getToken());
  }

  static Map<String, ?> bundles() throws Exception {
    var certificates = new TreeMap<String, Integer>();
    var keys = new TreeMap<String, Integer>();
    client().fetchX509Bundles().getBundles().forEach((domain, b) -> certificates.put(domain.getName(), b.getX509Authorities().size()));
    client().fetchJwtBundles().getBundles().forEach((domain, b) -> keys.put(domain.getName(), b.getJwtAuthorities().size()));
    return Map.of("x509", certificates, "jwt", keys);
  }

  /** The managers of the security provider, as a Java program gets them that only has "Spiffe" in its security properties. */
  static Map<String, ?> provider() throws Exception {
    SpiffeProvider.install();
    Security.setProperty(SpiffeProviderConstants.SSL_SPIFFE_ACCEPT_ALL_PROPERTY, "true");
    var keys = KeyManagerFactory.getInstance(SpiffeProviderConstants.ALGORITHM);
    var trust = TrustManagerFactory.getInstance(SpiffeProviderConstants.ALGORITHM);
    keys.init(null, null);
    trust.init((KeyStore) null);
    var key = (X509KeyManager) keys.getKeyManagers()[0];
    X509Certificate[] chain = key.getCertificateChain(SpiffeProviderConstants.DEFAULT_ALIAS);
    ((X509TrustManager) trust.getTrustManagers()[0]).checkServerTrusted(chain, "UNKNOWN");
    String algorithm = key.getPrivateKey(SpiffeProviderConstants.DEFAULT_ALIAS).getAlgorithm();
    return Map.of("id", idOf(chain[0]), "chain", chain.length, "key", algorithm);
  }

  /** An echo server and a client with a source each: the right ID gets through, another one is refused. */
  static Map<String, ?> mtls() throws Exception {
    DefaultX509Source source = source();
    String id = source.getX509Svid().getSpiffeId().toString();
    SSLServerSocket listener = listener(source, "127.0.0.1", 0);
    CompletableFuture.runAsync(() -> {
      while (true) echo(listener, source);
    });
    String address = "127.0.0.1:" + listener.getLocalPort();
    var out = dial(address, id);
    mustFail("a server with another ID was accepted", () -> dial(address, id + "/other"));
    return out;
  }

  static Map<String, ?> serve(String address) throws Exception {
    DefaultX509Source source = source();
    echo(listener(source, address.split(":")[0], Integer.parseInt(address.split(":")[1])), source);
    return Map.of("id", source.getX509Svid().getSpiffeId().toString());
  }

  static Map<String, ?> dial(String address, String id) throws Exception {
    DefaultX509Source source = source();
    SSLContext context = SpiffeSslContextFactory.getSslContext(
        SslContextOptions.builder()
            .sslProtocol("TLSv1.3") // the library's default is TLSv1.2, which keeps a client from speaking 1.3
            .x509Source(source)
            .acceptedSpiffeIdsSupplier(() -> Set.of(SpiffeId.parse(id)))
            .build());
    String[] parts = address.split(":");
    try (var socket = (SSLSocket) context.getSocketFactory().createSocket(parts[0], Integer.parseInt(parts[1]))) {
      socket.getOutputStream().write("hello\n".getBytes(StandardCharsets.UTF_8));
      String answer = readLine(socket);
      String own = source.getX509Svid().getSpiffeId().toString();
      if (!(own + " hello").equals(answer)) throw new IOException("unexpected answer " + answer);
      return Map.of("peer", idOf((X509Certificate) socket.getSession().getPeerCertificates()[0]), "echo", answer);
    }
  }

  static SSLServerSocket listener(DefaultX509Source source, String host, int port) throws Exception {
    SSLContext context = SpiffeSslContextFactory.getSslContext(
        SslContextOptions.builder().sslProtocol("TLSv1.3").x509Source(source).acceptAnySpiffeId().build());
    var listener = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(port, 5, InetAddress.getByName(host));
    listener.setNeedClientAuth(true);
    return listener;
  }

  /** Answers one line on one connection: the peer's ID, then the line. A handshake that fails is the client's to report. */
  static void echo(SSLServerSocket listener, DefaultX509Source source) {
    try (var socket = (SSLSocket) listener.accept()) {
      String line = readLine(socket);
      SpiffeId peer = SpiffeId.parse(idOf((X509Certificate) socket.getSession().getPeerCertificates()[0]));
      if (peer.memberOf(source.getX509Svid().getSpiffeId().getTrustDomain())) {
        socket.getOutputStream().write((peer + " " + line + "\n").getBytes(StandardCharsets.UTF_8));
      }
    } catch (Exception ignored) {
      // see above
    }
  }

  static String readLine(SSLSocket socket) throws IOException {
    return new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8)).readLine();
  }

  static String idOf(X509Certificate leaf) throws Exception {
    for (List<?> name : leaf.getSubjectAlternativeNames()) {
      if (name.get(0).equals(6)) return (String) name.get(1);
    }
    throw new IllegalArgumentException("a leaf without URI");
  }

  static WorkloadApiClient client() throws Exception {
    return DefaultWorkloadApiClient.newClient();
  }

  static DefaultX509Source source() throws Exception {
    return DefaultX509Source.newSource(DefaultX509Source.X509SourceOptions.builder().initTimeout(Duration.ofSeconds(SECONDS)).build());
  }

  interface Call {
    void run() throws Exception;
  }

  static void mustFail(String message, Call call) {
    try {
      call.run();
    } catch (Exception expected) {
      return;
    }
    throw new IllegalStateException(message);
  }

  static String statusOf(Throwable e) {
    Status status = Status.fromThrowable(e);
    var name = new StringBuilder();
    for (String part : status.getCode().name().split("_")) name.append(part.charAt(0)).append(part.substring(1).toLowerCase());
    return name.toString();
  }

  static Throwable root(Throwable e) {
    return e.getCause() == null ? e : root(e.getCause());
  }
}
