package task

import "context"

// Caller is who a call comes from.
type Caller struct {
	Name    string // as tasks and events show it: "root", "host host-2"; empty: nobody, Godwit itself
	Request string // idempotency key of the call, if it had one
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
