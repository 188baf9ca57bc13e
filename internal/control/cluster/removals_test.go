package cluster_test

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// After a restore the store's list of revoked certificates is older than what the hosts have: it is brought up to the leader's own, and the
// next removal's list is newer than that.
func TestRemovalsGoOnFromTheNewerListOfRevokedCertificates(t *testing.T) {
	s := storetest.Open(t)
	w := writer(t, s, "host-1")
	term := lead(t, s, w)
	writer(t, s, "host-2")
	ca, err := peer.NewCA("test")
	must(t, err)
	own, err := ca.Revoke(nil)
	must(t, err)
	own, err = ca.Revoke(own, inventory.HostCertificate{Serial: "0a", Expires: time.Now().Add(time.Hour)})
	must(t, err)
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	removals := &cluster.Removals{
		Store: s, CA: func(context.Context) (*peer.CA, error) { return ca, nil }, Revoked: func() []byte { return own },
		Event: func(context.Context, inventory.Event) {}, Log: quiet,
	}
	go func() { ended <- removals.Run(ctx, term) }()
	until(t, "the host is out", func() bool {
		_, err := s.Epoch(t.Context(), "host-2")
		return err != nil
	})
	end()
	must(t, <-ended)
	der, _, err := s.Revoked(t.Context())
	must(t, err)
	list, err := x509.ParseRevocationList(der)
	must(t, err)
	if list.Number.Int64() != 4 || len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("the list has number %v and %d certificates", list.Number, len(list.RevokedCertificateEntries))
	}
}
