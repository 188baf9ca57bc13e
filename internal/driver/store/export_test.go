package store

import (
	"context"
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
