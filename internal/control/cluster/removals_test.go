package cluster_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
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

// The leader that takes a host out is killed after its n-th transaction, without hearing of it, for every n that there is. The next leader ends
// the work: the host is out, its certificate is revoked once, and what it was gateway of has another.
func TestRemovalWhoseLeaderIsKilledAtEachStep(t *testing.T) {
	s := storetest.Open(t)
	w := writer(t, s, "host-1")
	ca, err := peer.NewCA("test")
	must(t, err)
	killed := 0
	for n := 0; ; n++ {
		host := inventory.HostID(fmt.Sprintf("host-x%d", n))
		other := writer(t, s, host)
		must(t, other.NoteCertificate(t.Context(), inventory.HostCertificate{Serial: fmt.Sprintf("%02x", n+1), Expires: time.Now().Add(time.Hour)}))
		network := inventory.NetworkID(fmt.Sprintf("net-%d", n))
		must(t, w.CreateNetwork(t.Context(), inventory.Network{ID: network, Spec: inventory.NetworkSpec{Gateway: host}}))
		must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: host, Since: time.Now()}))
		out := func() bool {
			_, err := s.Epoch(t.Context(), host)
			return fault.Is(err, fault.NotFound)
		}
		dead := removeUntil(t, s, w, ca, n, out)
		if dead {
			killed++
			removeUntil(t, s, w, ca, math.MaxInt, out)
		}
		der, _, err := s.Revoked(t.Context())
		must(t, err)
		list, err := x509.ParseRevocationList(der)
		must(t, err)
		if len(list.RevokedCertificateEntries) != n+1 {
			t.Errorf("step %d: %d certificates are revoked", n, len(list.RevokedCertificateEntries))
		}
		networks, err := s.Networks(t.Context())
		must(t, err)
		for _, one := range networks {
			if one.ID == network && one.Spec.Gateway != "host-1" {
				t.Errorf("step %d: the gateway of %s is %s", n, one.ID, one.Spec.Gateway)
			}
		}
		if err := other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 1}); !fault.Is(err, fault.Conflict) {
			t.Errorf("step %d: its agent wrote: %v", n, err)
		}
		if !dead {
			break
		}
	}
	if killed < 4 { // before the first, and after: gateway, end of the epoch, removal
		t.Errorf("only %d steps were seen", killed)
	}
}

// removeUntil leads with the loop alone until the host is out, or the leader has been killed at its n-th step, which it reports.
func removeUntil(t *testing.T, s *store.Store, w *store.Writer, ca *peer.CA, n int, out func() bool) (dead bool) {
	t.Helper()
	term := lead(t, s, w)
	defer term.End()
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	killAt(ctx, kill, term, n)
	var told atomic.Bool // the leader has heard of the removal itself
	loop := &cluster.Removals{
		Store: s, CA: func(context.Context) (*peer.CA, error) { return ca, nil }, Revoked: func() []byte { return nil },
		Event: func(_ context.Context, e inventory.Event) { told.Store(told.Load() || e.Kind == "host.removed") }, Log: quiet,
	}
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx, term) }()
	until(t, "the host is out or the leader is dead", func() bool {
		return ctx.Err() != nil || told.Load() || n == math.MaxInt && out()
	})
	dead = ctx.Err() != nil
	kill()
	must(t, <-ended)
	return dead
}

// The host that leads is to leave: it lets another one lead, which takes it out, and its agent does not come back by a start.
func TestTheLeaderLeaves(t *testing.T) {
	s := storetest.Open(t)
	first, second := writer(t, s, "host-1"), writer(t, s, "host-2")
	ca, err := peer.NewCA("test")
	must(t, err)
	ctx, end := context.WithCancel(t.Context())
	terms := make(chan inventory.HostID, 16)
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	leads := func(w *store.Writer) {
		running.Go(func() {
			_ = cluster.Run(ctx, cluster.Config{Host: w.Host(), Epoch: w.Epoch(), Store: s, Log: quiet, Loops: func(term *store.Term) []cluster.Loop {
				terms <- term.Writer().Host()
				return []cluster.Loop{&cluster.Removals{
					Store: s, CA: func(context.Context) (*peer.CA, error) { return ca, nil }, Revoked: func() []byte { return nil },
					Event: func(context.Context, inventory.Event) {}, Log: quiet,
				}}
			}}) // it ends with its epoch
		})
	}
	leads(first)
	if led := <-terms; led != "host-1" {
		t.Fatalf("%s leads", led)
	}
	leads(second)
	must(t, second.PlanRemoval(t.Context(), inventory.Removal{Host: "host-1", Since: time.Now()}))
	until(t, "the host is out", func() bool {
		_, err := s.Epoch(t.Context(), "host-1")
		return fault.Is(err, fault.NotFound)
	})
	if led := <-terms; led != "host-2" || len(terms) > 0 {
		t.Errorf("%s led next, and others %d times", led, len(terms))
	}
	if _, _, err := s.NextEpoch(t.Context(), "host-1", "boot"); !fault.Is(err, fault.NotFound) {
		t.Errorf("its agent starts: %v", err)
	}
}
