package store

import (
	"context"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// RenewOnce is a renewal as it is on its way: it compares what its writer knew when it was sent, and nobody waits to try it again.
func (w *Writer) RenewOnce(ctx context.Context, lease time.Duration) (bool, error) {
	value, err := renewals.pack(inventory.Renewal{Lease: lease})
	if err != nil {
		return false, err
	}
	return w.renew(ctx, value)
}

// LeadUntil leads as Lead does, and dies without a word when ctx ends.
func LeadUntil(ctx context.Context, s *Store, host inventory.HostID, epoch uint64) (*Term, error) {
	t, err := s.Lead(ctx, host, epoch)
	if err == nil {
		context.AfterFunc(ctx, t.end)
	}
	return t, err
}

// HasStanding reports whether the leader has said something of the host.
func HasStanding(t *testing.T, s *Store, host inventory.HostID) bool {
	t.Helper()
	_, revision, err := load(t.Context(), s, keyHost(host, partStanding), hostStandings)
	if err != nil {
		t.Fatal(err)
	}
	return revision != 0
}
