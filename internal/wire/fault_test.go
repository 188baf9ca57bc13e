package wire_test

import (
	"errors"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
)

func TestFaultsSurviveTheWire(t *testing.T) {
	for kind := fault.NotFound; kind <= fault.Internal; kind++ {
		sent := fault.Wrap("migrate", "vm web-1", fault.New(kind, "because"))
		got := wire.FromFault(wire.Fault(sent))
		if fault.KindOf(got) != kind || got.Error() != sent.Error() {
			t.Errorf("%v %q became %v %q", kind, sent, fault.KindOf(got), got)
		}
		// Passed on by a second host it says the same, without a code in front of it.
		if twice := wire.FromFault(wire.Fault(got)); twice.Error() != sent.Error() || fault.KindOf(twice) != kind {
			t.Errorf("passed on it became %v %q", fault.KindOf(twice), twice)
		}
	}
}

func TestRefusalsKeepEveryReason(t *testing.T) {
	reasons := []string{"no datastore", "no memory"}
	got := wire.FromFault(wire.Fault(fault.Wrap("migrate", "vm a", fault.Refuse(fault.Incompatible, reasons))))
	if !slices.Equal(fault.Reasons(got), reasons) || !fault.Is(got, fault.Incompatible) {
		t.Errorf("%q %v", fault.Reasons(got), fault.KindOf(got))
	}
}

func TestTransportErrorsAreUnavailable(t *testing.T) {
	if err := wire.FromFault(connect.NewError(connect.CodeUnavailable, errors.New("refused"))); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	if err := wire.FromFault(connect.NewError(connect.CodeCanceled, errors.New("gone"))); !fault.Is(err, fault.Canceled) {
		t.Errorf("%v", err)
	}
	if wire.Fault(nil) != nil || wire.FromFault(nil) != nil {
		t.Error("nil is no error")
	}
}
