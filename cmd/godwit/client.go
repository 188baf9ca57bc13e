package main

import (
	"context"
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

// client speaks to one agent over its unix socket.
type client struct {
	hosts      godwitv1connect.HostServiceClient
	vms        godwitv1connect.VMServiceClient
	migrations godwitv1connect.MigrationServiceClient
	tasks      godwitv1connect.TaskServiceClient
	events     godwitv1connect.EventServiceClient
	requests   *requests
	images     godwitv1connect.ImageServiceClient
}

func newClient(cmd *cobra.Command) (*client, error) {
	socket, err := cmd.Flags().GetString("socket")
	if err != nil {
		return nil, err
	}
	// HTTP/2 without TLS: the console needs both directions at once, and the socket's peer credentials say who calls.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}
	const base = "http://agent"
	requests, err := newRequests(cmd, web, base)
	if err != nil {
		return nil, err
	}
	options := []connect.ClientOption{connect.WithInterceptors(requests, faults{socket: socket})}
	return &client{
		hosts:      godwitv1connect.NewHostServiceClient(web, base, options...),
		vms:        godwitv1connect.NewVMServiceClient(web, base, options...),
		migrations: godwitv1connect.NewMigrationServiceClient(web, base, options...),
		tasks:      godwitv1connect.NewTaskServiceClient(web, base, options...),
		events:     godwitv1connect.NewEventServiceClient(web, base, options...),
		requests:   requests,
		images:     godwitv1connect.NewImageServiceClient(web, base, options...),
	}, nil
}

// faults turns errors of the wire back into faults, so that kinds and reasons survive the way.
type faults struct{ socket string }

// WrapUnary implements connect.Interceptor.
func (f faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
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
	if refused(err) {
		if errors.Is(err, fs.ErrPermission) {
			return fault.New(fault.Denied, "this user may not use the agent's socket %s: be root, or in the group that socket-group names in the configuration", f.socket)
		}
		return fault.New(fault.Unavailable, "no agent answers at %s: start one with \"godwit run\", or name its socket with --socket", f.socket)
	}
	return wire.FromFault(err)
}

// refused reports whether nobody listens at the socket: the call was not sent.
func refused(err error) bool {
	op, is := errors.AsType[*net.OpError](err)
	return is && op.Op == "dial"
}

// errConnection is on the path of an error of the transport: the agent's answer was not heard.
var errConnection = errors.New("the connection to the agent was lost")
