package wire

import (
	"errors"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// Code returns the Connect code of a fault's kind.
func Code(kind fault.Kind) connect.Code {
	switch kind {
	case fault.NotFound:
		return connect.CodeNotFound
	case fault.Exists:
		return connect.CodeAlreadyExists
	case fault.Invalid:
		return connect.CodeInvalidArgument
	case fault.Denied:
		return connect.CodePermissionDenied
	case fault.Conflict, fault.Incompatible:
		return connect.CodeFailedPrecondition
	case fault.NoResources:
		return connect.CodeResourceExhausted
	case fault.Unavailable:
		return connect.CodeUnavailable
	case fault.Canceled:
		return connect.CodeCanceled
	case fault.Unknown, fault.Internal:
	}
	return connect.CodeInternal
}

// Fault turns an error into what goes over the wire: the message, a code, and a Fault detail with kind and, for a
// refusal, every reason. It returns nil for nil.
func Fault(err error) error {
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	out := connect.NewError(Code(kind), errors.New(err.Error())) // the text: a cause that is a connect.Error adds its code
	detail := &godwitv1.Fault{Kind: kind.String()}
	if refusal, ok := errors.AsType[*fault.RefusalError](err); ok {
		detail.Reasons = refusal.Reasons
	}
	if d, derr := connect.NewErrorDetail(detail); derr == nil {
		out.AddDetail(d)
	}
	return out
}

// FromFault is the way back. What the transport itself reports becomes fault.Unavailable, or fault.Canceled when the
// caller's context ended; an error that never was on the wire is returned as it is.
func FromFault(err error) error {
	var got *connect.Error
	if err == nil || !errors.As(err, &got) {
		return err
	}
	for _, d := range got.Details() {
		value, derr := d.Value()
		if derr != nil {
			continue // a detail of a newer version
		}
		if f, ok := value.(*godwitv1.Fault); ok {
			kind := fault.ParseKind(f.GetKind())
			if len(f.GetReasons()) > 0 {
				return fault.Refuse(kind, f.GetReasons())
			}
			return fault.New(kind, "%s", got.Message())
		}
	}
	if code := got.Code(); code == connect.CodeCanceled || code == connect.CodeDeadlineExceeded {
		return fault.New(fault.Canceled, "%s", got.Message())
	}
	return fault.New(fault.Unavailable, "%w", got.Unwrap())
}
