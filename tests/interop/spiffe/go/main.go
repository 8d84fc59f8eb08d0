// A SPIFFE workload for tests, made with go-spiffe. Every subcommand prints one JSON line and exits with 1 when something is not as it
// should be; tests/interop/clients runs them. SPIFFE_ENDPOINT_SOCKET names the Workload API, TIMEOUT bounds a subcommand (seconds, 10).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type result map[string]any

var commands = map[string]func(context.Context, []string) (result, error){
	"x509": x509, "watch": watch, "jwt": jwt, "bundles": bundles, "wit": wit, "mtls": mtls, "serve": serve, "dial": dial, "raw": raw,
	"puppet": puppet, "connector": connector, "asker": asker,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gospiffe x509 | watch N | jwt AUDIENCE [ID] | bundles | wit | mtls | serve ADDRESS | dial ADDRESS ID | raw [HEADER...] | puppet SOCKET")
		os.Exit(2)
	}
	seconds, err := strconv.Atoi(os.Getenv("TIMEOUT"))
	if err != nil {
		seconds = 10
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds)*time.Second)
	defer cancel()
	out, err := commands[os.Args[1]](ctx, os.Args[2:])
	if out == nil {
		out = result{}
	}
	out["client"], out["cmd"], out["ok"] = "go-spiffe", os.Args[1], err == nil
	if err != nil {
		out["code"], out["error"] = status.Code(err).String(), err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(out)
	if err != nil {
		os.Exit(1)
	}
}

// x509 fetches the X.509 context once and verifies each chain against the bundle of its trust domain.
func x509(ctx context.Context, _ []string) (result, error) {
	x, err := workloadapi.FetchX509Context(ctx)
	if err != nil {
		return nil, err
	}
	var ids, hints, domains []string
	for _, svid := range x.SVIDs {
		if _, _, err := x509svid.Verify(svid.Certificates, x.Bundles); err != nil {
			return nil, err
		}
		ids, hints = append(ids, svid.ID.String()), append(hints, svid.Hint)
	}
	for _, bundle := range x.Bundles.Bundles() {
		domains = append(domains, bundle.TrustDomain().Name())
	}
	slices.Sort(domains)
	leaf := x.DefaultSVID().Certificates
	return result{"ids": ids, "hints": hints, "chain": len(leaf), "expires": leaf[0].NotAfter.Unix(), "bundles": domains}, nil
}

// watcher hands on the serial number of each update's first leaf; errors are left to the library, which tries again.
type watcher chan string

func (w watcher) OnX509ContextUpdate(x *workloadapi.X509Context) {
	w <- x.DefaultSVID().Certificates[0].SerialNumber.String()
}
func (w watcher) OnX509ContextWatchError(error) {}

func watch(ctx context.Context, args []string) (result, error) {
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	updates := make(watcher, want)
	go workloadapi.WatchX509Context(ctx, updates)
	var serials []string
	for len(serials) < want {
		select {
		case serial := <-updates:
			serials = append(serials, serial)
		case <-ctx.Done():
			return result{"serials": serials}, fmt.Errorf("%d of %d updates", len(serials), want)
		}
	}
	return result{"serials": serials}, nil
}

// jwt fetches a JWT-SVID, validates it here with the JWT bundles and a second time through the Workload API.
func jwt(ctx context.Context, args []string) (result, error) {
	params := jwtsvid.Params{Audience: args[0]}
	if len(args) > 1 {
		params.Subject = spiffeid.RequireFromString(args[1])
	}
	svid, err := workloadapi.FetchJWTSVID(ctx, params)
	if err != nil {
		return nil, err
	}
	set, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), set, args[:1]); err != nil {
		return nil, err
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), args[0]); err != nil {
		return nil, err
	}
	if _, err := workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "not-"+args[0]); err == nil {
		return nil, errors.New("a wrong audience was accepted")
	}
	return result{"id": svid.ID.String(), "aud": svid.Audience, "expires": svid.Expiry.Unix(), "hint": svid.Hint, "token": svid.Marshal()}, nil
}

func bundles(ctx context.Context, _ []string) (result, error) {
	x, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		return nil, err
	}
	j, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return nil, err
	}
	certificates, keys := map[string]int{}, map[string]int{}
	for _, b := range x.Bundles() {
		certificates[b.TrustDomain().Name()] = len(b.X509Authorities())
	}
	for _, b := range j.Bundles() {
		keys[b.TrustDomain().Name()] = len(b.JWTAuthorities())
	}
	return result{"x509": certificates, "jwt": keys}, nil
}

// wit asks for WIT-SVIDs (incubating); a Workload API that does not offer them answers Unimplemented.
func wit(ctx context.Context, _ []string) (result, error) {
	svids, err := workloadapi.FetchWITSVIDs(ctx, "")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, svid := range svids {
		ids = append(ids, svid.ID.String())
	}
	return result{"ids": ids}, nil
}

// mtls runs an echo server and a client with a source each: the right ID gets through, another one is refused.
func mtls(ctx context.Context, _ []string) (result, error) {
	server, id, err := source(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeMemberOf(id.TrustDomain()), server))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	go func() {
		for echo(listener) == nil {
		}
	}()
	address := listener.Addr().String()
	out, err := dial(ctx, []string{address, id.String()})
	if err != nil {
		return nil, err
	}
	if _, err := dial(ctx, []string{address, id.String() + "/other"}); err == nil {
		return nil, errors.New("a server with another ID was accepted")
	}
	return out, nil
}

// serve answers one connection of another program's dial.
func serve(ctx context.Context, args []string) (result, error) {
	server, id, err := source(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", args[0], spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeMemberOf(id.TrustDomain()), server))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	context.AfterFunc(ctx, func() { listener.Close() })
	return result{"id": id.String()}, echo(listener)
}

// dial sends a line to an echo server that must have the given ID; the answer starts with our own ID, as the server saw it.
func dial(ctx context.Context, args []string) (result, error) {
	client, id, err := source(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	peer, err := spiffeid.FromString(args[1])
	if err != nil {
		return nil, err
	}
	conn, err := spiffetls.DialWithMode(ctx, "tcp", args[0], spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(peer), client))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fmt.Fprintln(conn, "hello")
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return nil, err
	}
	if answer != id.String()+" hello\n" {
		return nil, fmt.Errorf("unexpected answer %q", answer)
	}
	return result{"peer": peer.String(), "echo": strings.TrimSpace(answer)}, nil
}

// plain is a connection to the agent without what the library does for its users.
func plain(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	address, _ := workloadapi.GetDefaultAddress()
	target, err := workloadapi.TargetFromAddress(address)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}

// raw calls FetchX509Bundles with the given values of the security header, none at all without arguments.
func raw(ctx context.Context, args []string) (result, error) {
	conn, err := plain()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for _, value := range args {
		ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", value)
	}
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
	if err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return result{"bundles": len(answer.Bundles)}, nil
}

func source(ctx context.Context) (*workloadapi.X509Source, spiffeid.ID, error) {
	s, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, spiffeid.ID{}, err
	}
	svid, err := s.GetX509SVID()
	if err != nil {
		s.Close()
		return nil, spiffeid.ID{}, err
	}
	return s, svid.ID, nil
}

// echo answers one line on one connection: the peer's ID, then the line. A handshake that fails is the client's to report.
func echo(listener net.Listener) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return nil
	}
	peer, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "%s %s", peer, line)
	return err
}
