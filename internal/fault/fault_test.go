package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

func TestMessageIsAPathFromWhatToWhy(t *testing.T) {
	cause := fault.New(fault.Incompatible, "cpu lacks %s", "avx2")
	err := fault.Wrap("migrate", "vm web-1", fault.Wrap("", "target host-3", cause))
	if got, want := err.Error(), "migrate vm web-1: target host-3: cpu lacks avx2"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	if fault.KindOf(err) != fault.Incompatible {
		t.Errorf("kind %v was lost on the way", fault.KindOf(err))
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{nil, fault.Unknown},
		{io.EOF, fault.Unknown},
		{context.DeadlineExceeded, fault.Canceled},
		{fault.Wrap("read", "", context.Canceled), fault.Canceled},
		{fault.New(fault.Unavailable, "dial: %w", context.DeadlineExceeded), fault.Unavailable},
		{fmt.Errorf("outside: %w", fault.New(fault.NotFound, "no vm x")), fault.NotFound},
		{fault.Wrap("a", "b", errors.New("plain")), fault.Unknown},
	} {
		if got := fault.KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	for k := fault.Unknown; k <= fault.Internal; k++ {
		if fault.ParseKind(k.String()) != k {
			t.Errorf("kind %v does not survive its name", k)
		}
	}
}

func TestRefusalKeepsEveryReason(t *testing.T) {
	if err := fault.Refuse(fault.Conflict, nil); err != nil {
		t.Fatalf("no reasons, yet %v", err)
	}
	reasons := []string{"target host-2 has no datastore ds1", "cpu model X is unknown there"}
	err := fault.Wrap("migrate", "vm a", fault.Refuse(fault.Incompatible, reasons))
	if !slices.Equal(fault.Reasons(err), reasons) || !fault.Is(err, fault.Incompatible) {
		t.Errorf("reasons %v kind %v", fault.Reasons(err), fault.KindOf(err))
	}
}
