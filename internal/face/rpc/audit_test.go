package rpc

import (
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// consoleConn is the handler's end of a console whose caller asks for web-1.
type consoleConn struct{ connect.StreamingHandlerConn }

func (consoleConn) Spec() connect.Spec { return connect.Spec{Procedure: consoleVM} }

func (consoleConn) Receive(message any) error {
	message.(*godwitv1.ConsoleVMRequest).Vm = "web-1" //nolint:forcetypeassert // a console sends nothing else
	return nil
}

// A call that lasts is written down when it begins, and once more if it fails; a caller that leaves is no failure.
func TestStreamsThatFailAreWrittenDown(t *testing.T) {
	const opened = "call.done VMService/ConsoleVM: opened"
	for _, c := range []struct {
		what string
		gone bool // the caller
		ends error
		want []string
	}{
		{"it ends", false, nil, []string{opened}},
		{"it is refused", false, fault.New(fault.Conflict, "it is off"), []string{opened, "call.failed VMService/ConsoleVM: it is off"}},
		{"the caller leaves", true, errors.New("broken pipe"), []string{opened}},
		{"the caller's time is up", false, fault.New(fault.Canceled, "too late"), []string{opened}},
	} {
		n := &noting{}
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		stream := audits{n.note}.WrapStreamingHandler(faults{}.WrapStreamingHandler(func(_ context.Context, conn connect.StreamingHandlerConn) error {
			if err := conn.Receive(&godwitv1.ConsoleVMRequest{}); err != nil {
				return err
			}
			if c.gone {
				leave()
			}
			return c.ends
		}))
		if err := stream(ctx, consoleConn{}); (err == nil) != (c.ends == nil) {
			t.Errorf("%s: %v", c.what, err)
		}
		var got []string
		for _, e := range n.events {
			if got = append(got, e.Kind+" "+e.Message); e.ObjectName != "web-1" || !e.Audit || (e.Severity == inventory.Warning) != (e.Kind == callFailed) {
				t.Errorf("%s: %+v", c.what, e)
			}
		}
		if len(got) != len(c.want) || got[0] != c.want[0] || got[len(got)-1] != c.want[len(c.want)-1] {
			t.Errorf("%s: %q", c.what, got)
		}
	}
}
