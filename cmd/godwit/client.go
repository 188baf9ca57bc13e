package main

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
)

const defaultSocket = "/run/godwit/agent.sock"

// dialTimeout bounds how long a command waits for the agent's socket; the agent answers it at once or not at all.
const dialTimeout = 5 * time.Second

// client speaks to one agent: over its unix socket, or with a user's token over TLS.
type client struct {
	hosts      godwitv1connect.HostServiceClient
	vms        godwitv1connect.VMServiceClient
	migrations godwitv1connect.MigrationServiceClient
	tasks      godwitv1connect.TaskServiceClient
	events     godwitv1connect.EventServiceClient
	cluster    godwitv1connect.ClusterServiceClient
	requests   *requests
	images     godwitv1connect.ImageServiceClient
	users      godwitv1connect.UserServiceClient
	fencing    godwitv1connect.FencingServiceClient
	members    godwitv1connect.MemberServiceClient
}

func newClient(cmd *cobra.Command) (*client, error) {
	to, err := doorOf(cmd)
	if err != nil {
		return nil, err
	}
	if to.server != "" {
		l, err := to.login(cmd)
		if err != nil {
			return nil, err
		}
		return clientOver(cmd, l.client(), "https://"+l.Server)
	}
	// HTTP/2 without TLS: the console needs both directions at once, and the socket's peer credentials say who calls.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return clientOver(cmd, &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			return dialer.DialContext(ctx, "unix", to.socket)
		},
	}}, "http://agent")
}

func clientOver(cmd *cobra.Command, web *http.Client, base string) (*client, error) {
	requests, err := newRequests(cmd, web, base)
	if err != nil {
		return nil, err
	}
	options := []connect.ClientOption{connect.WithInterceptors(requests, faultsOf(cmd))}
	return &client{
		hosts:      godwitv1connect.NewHostServiceClient(web, base, options...),
		vms:        godwitv1connect.NewVMServiceClient(web, base, options...),
		migrations: godwitv1connect.NewMigrationServiceClient(web, base, options...),
		tasks:      godwitv1connect.NewTaskServiceClient(web, base, options...),
		events:     godwitv1connect.NewEventServiceClient(web, base, options...),
		cluster:    godwitv1connect.NewClusterServiceClient(web, base, options...),
		requests:   requests,
		images:     godwitv1connect.NewImageServiceClient(web, base, options...),
		users:      godwitv1connect.NewUserServiceClient(web, base, options...),
		fencing:    godwitv1connect.NewFencingServiceClient(web, base, options...),
		members:    godwitv1connect.NewMemberServiceClient(web, base, options...),
	}, nil
}

// door is where a command finds an agent.
type door struct {
	socket string
	server string // host:port; counts when it is not empty
}

// doorOf reads --socket and --server. What the command line says counts before what the environment says.
func doorOf(cmd *cobra.Command) (door, error) {
	flags := cmd.Flags()
	var d door
	var err error
	if d.socket, err = flags.GetString("socket"); err != nil {
		return d, err
	}
	if d.server, err = flags.GetString("server"); err != nil || d.server == "" {
		return d, err
	}
	typed := func(name string) bool {
		f := flags.Lookup(name)
		return f.Changed && len(f.Annotations[variableKey]) == 0
	}
	switch {
	case typed("socket") && typed("server"):
		return d, usageError{fault.New(fault.Invalid, "--socket and --server name two agents: take one of them")}
	case typed("socket"):
		d.server = ""
		return d, nil
	}
	d.server, err = serverAddress(d.server)
	return d, err
}

// faultsOf returns what reads the errors of a command's calls.
func faultsOf(cmd *cobra.Command) faults {
	d, err := doorOf(cmd)
	if err != nil { // newClient has said so
		return faults{}
	}
	return faults{d}
}

// faults turns errors of the wire back into faults, so that kinds and reasons survive the way.
type faults struct{ to door }

// WrapUnary implements connect.Interceptor.
func (f faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err := untrusted(err); err != nil {
			return resp, err
		}
		if broke, is := errors.AsType[*connect.Error](err); is && !connect.IsWireError(err) && !refused(err) && ctx.Err() == nil {
			return resp, fault.New(fault.Unavailable, "%w: %w", errConnection, broke.Unwrap())
		}
		return resp, f.read(err)
	}
}

// WrapStreamingClient implements connect.Interceptor. Errors of streams are read where they are received.
func (f faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (f faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (f faults) read(err error) error {
	if err := untrusted(err); err != nil {
		return err
	}
	switch {
	case !refused(err):
		return wire.FromFault(err)
	case f.to.server != "":
		return fault.New(fault.Unavailable, "no agent answers at %s: check the address, that godwit runs there, and that the network reaches it", f.to.server)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "this user may not use the agent's socket %s: be root, or in the group that socket-group names in the configuration", f.to.socket)
	}
	return fault.New(fault.Unavailable, "no agent answers at %s: start one with \"godwit run\", or name its socket with --socket", f.to.socket)
}

// untrusted returns why the other end of a TLS connection was not spoken to, nil when it was.
func untrusted(err error) error {
	if _, is := errors.AsType[*connect.Error](err); !is || connect.IsWireError(err) {
		return nil
	}
	if other, is := errors.AsType[*fault.Error](err); is && other.Kind == fault.Denied {
		return other
	}
	if bad, is := errors.AsType[x509.UnknownAuthorityError](err); is {
		return fault.New(fault.Denied, "the server is no host of its cluster: %w: check the address", bad)
	}
	if bad, is := errors.AsType[x509.CertificateInvalidError](err); is {
		return fault.New(fault.Denied, "the server's certificate: %w: check this machine's clock", bad)
	}
	return nil
}

// refused reports whether nobody listens at the socket: the call was not sent.
func refused(err error) bool {
	op, is := errors.AsType[*net.OpError](err)
	return is && op.Op == "dial"
}

// errConnection is on the path of an error of the transport: the agent's answer was not heard.
var errConnection = errors.New("the connection to the agent was lost")
