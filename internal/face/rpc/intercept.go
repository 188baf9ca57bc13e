package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
)

// faults encodes what handlers return. An error that came from another host's API keeps its detail, since handlers read
// it back into a fault first.
type faults struct{}

// WrapUnary implements connect.Interceptor.
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, encode(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		if why := context.Cause(ctx); fault.Is(why, fault.Denied) {
			err = why // the gate has ended it (keepJudging)
		}
		return encode(err)
	}
}

func encode(err error) error { return wire.Fault(plain(err)) }

// plain reads an error of another host's API back into a fault.
func plain(err error) error {
	if _, ok := errors.AsType[*connect.Error](err); ok {
		return wire.FromFault(err)
	}
	return err
}
