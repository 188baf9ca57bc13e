// Package rpc is the face that CLI, UI and other hosts speak to: Connect (gRPC, gRPC-Web and JSON over HTTP) from the
// definition in api/godwit/v1.
//
// It translates and routes, and holds no state. A call about a VM is passed on to the host that owns it, once: a host
// that gets a passed-on call for a VM it does not own answers fault.Conflict, since the VM moved meanwhile.
//
// A gate stands before all of it (gate.go): it finds out who calls (identity.go), counts the call against the caller's limits, and judges it by
// the table of roles (roles.go); what is not in that table, nobody may call. Callers on the unix socket are users of this machine
// (driver/peer says who), callers over TLS are hosts of the cluster, users with a token, or strangers, who may only join. A host that passes
// a call on says for whom, and the call is judged at both ends. The caller's name goes with the call to tasks and events, and what
// changes something is written down (audit.go).
package rpc

import (
	"context"
	"math"
	"net/http"

	"connectrpc.com/connect"

	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// compressMin is the size from which answers are compressed. Progress of a migration is smaller and comes often, and its
// compression would take more processor time than all the rest of sending it.
const compressMin = 4 << 10

// forwarded marks a call that another host has passed on.
const forwarded = "Godwit-Forwarded-By"

// Handler returns the API of the agent to one side of callers, each within its limits. Local says that callers come over the
// unix socket: hand-overs and joins are then left out, as they are between hosts.
func Handler(a *agent.Agent, local bool, callers Callers) http.Handler {
	mux := http.NewServeMux()
	compressed := compressMin
	if local {
		compressed = math.MaxInt32 // never: it has no way to go that would be shorter
	}
	options := []connect.HandlerOption{
		connect.WithInterceptors(audits{a.Keeper().Event}, faults{}, calls{a.Keeper()}), connect.WithReadMaxBytes(callers.Limits.RequestBytes), connect.WithCompressMinBytes(compressed),
	}
	mux.Handle(godwitv1connect.NewHostServiceHandler(&hosts{a}, options...))
	mux.Handle(godwitv1connect.NewVMServiceHandler(&vms{a}, options...))
	mux.Handle(godwitv1connect.NewImageServiceHandler(&images{a}, options...))
	mux.Handle(godwitv1connect.NewMigrationServiceHandler(&migrations{a}, options...))
	mux.Handle(godwitv1connect.NewTaskServiceHandler(&tasks{a}, options...))
	mux.Handle(godwitv1connect.NewEventServiceHandler(&events{a}, options...))
	mux.Handle(godwitv1connect.NewUserServiceHandler(&users{a}, options...))
	mux.Handle(godwitv1connect.NewClusterServiceHandler(&clusters{a}, options...))
	mux.Handle(godwitv1connect.NewFencingServiceHandler(&fencing{a}, options...))
	mux.Handle(godwitv1connect.NewMemberServiceHandler(&members{a}, options...))
	if !local {
		mux.Handle(godwitv1connect.NewCertificateServiceHandler(&certificates{a}, options...))
		mux.Handle(godwitv1connect.NewHandoverServiceHandler(&handovers{a}, options...))
		mux.Handle(godwitv1connect.NewMoveServiceHandler(&movings{a}, options...))
		mux.Handle(godwitv1connect.NewJoinServiceHandler(&joins{a}, options...))
		mux.Handle(godwitv1connect.NewLeaveServiceHandler(&joins{a}, options...))
	}
	return newGate(mux, callers, a.Keeper().Event)
}

// route finds the VM and, when another host owns it, that host's API.
func route(ctx context.Context, a *agent.Agent, header http.Header, nameOrID string) (inventory.VM, godwitv1connect.VMServiceClient, error) {
	vm, err := a.VM(ctx, nameOrID)
	if err != nil {
		return inventory.VM{}, nil, err
	}
	if vm.Run.Owner == a.Host() {
		return vm, nil, nil
	}
	base, client, err := away(ctx, a, header, vm.Run.Owner)
	if err != nil {
		return inventory.VM{}, nil, fault.Wrap("vm", vm.Spec.Name, err)
	}
	return vm, godwitv1connect.NewVMServiceClient(client, base, markForwarded(a)), nil
}

// owned answers a call about a VM: by do when this host owns it, else by passing the call on to the host that does.
func owned[Req, Resp any, Named interface {
	*Req
	GetVm() string
}](
	ctx context.Context, a *agent.Agent, req *connect.Request[Req],
	pass func(godwitv1connect.VMServiceClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
	do func(inventory.VM) (*Resp, error),
) (*connect.Response[Resp], error) {
	vm, remote, err := route(ctx, a, req.Header(), Named(req.Msg).GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return pass(remote, ctx, connect.NewRequest(req.Msg))
	}
	resp, err := do(vm)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// away returns how to reach another host's API, unless the call was passed on already.
func away(ctx context.Context, a *agent.Agent, header http.Header, host inventory.HostID) (base string, client *http.Client, err error) {
	if by := header.Get(forwarded); by != "" {
		return "", nil, fault.New(fault.Conflict, "it moved to %s meanwhile: try again", host)
	}
	client, base, err = a.Reach(ctx, host)
	return base, client, err
}

// markForwarded marks calls of a client as passed on, and reads their faults back.
func markForwarded(a *agent.Agent) connect.ClientOption {
	return connect.WithInterceptors(mark{by: string(a.Host())})
}

type mark struct{ by string }

// on marks a call's header, and passes on who calls and with which key.
func (m mark) on(ctx context.Context, header http.Header) {
	header.Set(forwarded, m.by)
	who := task.CallerOf(ctx)
	if who.Name != "" {
		header.Set(original, who.Name)
		header.Set(originalRole, who.Role.String())
	}
	if who.User != "" {
		header.Set(originalUser, who.User)
	}
	if who.Request != "" {
		header.Set(KeyHeader, who.Request)
	}
}

// WrapUnary implements connect.Interceptor.
func (m mark) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		m.on(ctx, req.Header())
		resp, err := next(ctx, req)
		return resp, wire.FromFault(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (m mark) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		m.on(ctx, conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (m mark) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}
