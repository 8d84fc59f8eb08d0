package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// child is this program again: its input ends it, each line of its output says that it has done something.
type child struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(part string, files ...*os.File) (*child, error) {
	c := &child{Cmd: exec.Command("/proc/self/exe", part)}
	c.Stderr, c.ExtraFiles = os.Stderr, files
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.in, c.out = in, bufio.NewReader(out)
	return c, c.Start()
}

// end ends the child and reaps it: its number is free then.
func (c *child) end() {
	c.in.Close()
	c.Wait()
}

// connector connects the socket that it inherited, says so, and waits for the end of its input: the kernel holds it for the peer of
// whoever uses that socket.
func connector(context.Context, []string) (result, error) {
	address, _ := workloadapi.GetDefaultAddress()
	if err := syscall.Connect(3, &syscall.SockaddrUnix{Name: strings.TrimPrefix(address, "unix://")}); err != nil {
		return nil, err
	}
	fmt.Println("connected")
	io.Copy(io.Discard, os.Stdin)
	return nil, nil
}

// asker is there; it asks for its identity over a connection of its own for each line of its input.
func asker(ctx context.Context, _ []string) (result, error) {
	fmt.Println("here")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		ids, err := ask(ctx, nil)
		json.NewEncoder(os.Stdout).Encode(said(ids, err))
	}
	return nil, nil
}

func said(ids []string, err error) result {
	if err != nil {
		return result{"refused": status.Code(err).String() + ": " + status.Convert(err).Message()}
	}
	return result{"ids": ids}
}

// ask fetches X.509-SVIDs once, over the connected socket when there is one.
func ask(ctx context.Context, socket *os.File) ([]string, error) {
	options := []grpc.DialOption{grpc.WithDisableRetry()}
	if socket != nil {
		used := false
		options = append(options, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used {
				return nil, errors.New("the connection is over")
			}
			used = true
			return net.FileConn(socket)
		}))
	}
	conn, err := plain(options...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, one := range answer.Svids {
		ids = append(ids, one.SpiffeId)
	}
	return ids, nil
}

// hand is what one puppet holds between two orders: a connected socket, who connected it, and a process that asks.
type hand struct {
	socket *os.File
	by     *child
	asks   *child
}

func (h *hand) connect() error {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	h.socket = os.NewFile(uintptr(fd), "socket")
	if h.by, err = start("connector", h.socket); err != nil {
		return err
	}
	_, err = h.by.out.ReadString('\n')
	return err
}

func (h *hand) obey(ctx context.Context, order []string) (result, error) {
	var err error
	switch order[0] {
	case "connect": // a child connects a socket of ours
		return result{"connected": true}, h.connect()
	case "end": // and ends
		h.by.end()
		return result{"ended": true}, nil
	case "ask": // we ask over it
		ids, err := ask(ctx, h.socket)
		h.socket.Close()
		return said(ids, err), nil
	case "spawn": // a child that asks for itself
		if h.asks, err = start("asker"); err != nil {
			return nil, err
		}
		_, err = h.asks.out.ReadString('\n')
		return result{"spawned": true}, err
	case "serve": // is told to
		fmt.Fprintln(h.asks.in)
		line, err := h.asks.out.ReadString('\n')
		return result{"answer": json.RawMessage(line)}, err
	case "reap":
		h.asks.end()
		return result{"reaped": true}, nil
	case "storm":
		count, err := strconv.Atoi(order[1])
		if err != nil {
			return nil, err
		}
		return storm(ctx, count)
	}
	return nil, fmt.Errorf("no order %q", order[0])
}

// storm asks over connections of children that have ended, and now and then over one of its own; it counts what came.
func storm(ctx context.Context, count int) (result, error) {
	refused, ended, living := 0, map[string]int{}, map[string]int{}
	for try := range count {
		h := hand{}
		if err := h.connect(); err != nil {
			return nil, err
		}
		h.by.end()
		ids, err := ask(ctx, h.socket)
		h.socket.Close()
		if err != nil {
			refused++
		}
		for _, id := range ids {
			ended[id]++
		}
		if try%10 == 0 {
			ids, err := ask(ctx, nil)
			if err != nil {
				ids = []string{status.Code(err).String()}
			}
			for _, id := range ids {
				living[id]++
			}
		}
	}
	return result{"tries": count, "refused": refused, "ended": ended, "living": living}, nil
}

// puppet listens at a path and does what it is told, a line an order, a JSON line an answer.
func puppet(ctx context.Context, args []string) (result, error) {
	listener, err := net.Listen("unix", args[0])
	if err != nil {
		return nil, err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return nil, err
		}
		h := hand{}
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			answer, err := h.obey(ctx, strings.Fields(lines.Text()))
			if err != nil {
				answer = result{"error": err.Error()}
			}
			json.NewEncoder(conn).Encode(answer)
		}
		conn.Close()
	}
}
