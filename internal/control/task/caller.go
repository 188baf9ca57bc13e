package task

import (
	"context"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Caller is who a call comes from.
type Caller struct {
	Name    string           // as tasks and events show it: "root", "alice@host-2", "host host-2"; empty: nobody, Godwit itself
	User    string           // the user of the cluster that it is; empty for root of a host, a host, or nobody
	Role    inventory.Role   // how much it may; Viewer for a host that calls for itself, NoRole for nobody
	From    string           // where the call came from: "socket", an address, "host host-2"
	Via     inventory.HostID // the host that has passed the call on; empty: none has
	Request string           // idempotency key of the call, if it had one
}

type callerKey struct{}

// WithCaller returns a context that carries who calls. Faces do that, once for each call.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns who calls, the zero Caller when nobody does.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
