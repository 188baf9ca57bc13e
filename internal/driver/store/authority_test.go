package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A leader fences a host that fell silent, gives its VM away, and the host that comes back can change nothing of it.
func TestFenceAndReassign(t *testing.T) {
	s, leader := start(t)
	lost := writer(t, s, "host-2")
	must(t, lost.CreateVM(t.Context(), inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "a"}, Run: inventory.VMRun{
		Owner: "host-2", Generation: 3, Wanted: inventory.PowerOn,
	}}))
	must(t, lost.Renew(t.Context(), 8*time.Second, inventory.FencedByWatchdog))
	term, err := s.Lead(t.Context(), "host-1", leader.Epoch())
	must(t, err)
	defer term.End()
	seen := renewal(t, s, "host-2")
	if seen.Lease != 8*time.Second || seen.Fencing != inventory.FencedByWatchdog || seen.Fenced || seen.Revision == 0 {
		t.Fatalf("renewal %+v", seen)
	}

	must(t, lost.Renew(t.Context(), 8*time.Second, inventory.FencedByWatchdog))
	want(t, fault.Conflict, term.Fence(t.Context(), "host-2", seen.Revision, "silent")) // it is alive after all
	give := func(r *inventory.VMRun, p *inventory.VMPlace) error {
		r.Owner, r.Generation = "host-1", r.Generation+1
		p.Restart = inventory.Restart{Generation: r.Generation, From: "host-2", Why: "silent"}
		return nil
	}
	_, err = term.Reassign(t.Context(), "vm-a", []inventory.HostID{"host-2"}, give)
	want(t, fault.Conflict, err)

	must(t, term.Fence(t.Context(), "host-2", renewal(t, s, "host-2").Revision, "silent for 9s"))
	if err := lost.Renew(t.Context(), 8*time.Second, ""); !errors.Is(err, store.ErrEpochOver) {
		t.Errorf("a fenced host renewed: %v", err)
	}
	run, err := term.Reassign(t.Context(), "vm-a", []inventory.HostID{"host-2"}, give)
	must(t, err)
	if run.Owner != "host-1" || run.Generation != 4 {
		t.Errorf("run %+v", run)
	}
	now, before, err := s.NextEpoch(t.Context(), "host-2", "boot")
	must(t, err)
	if !before.Fenced || now.Fenced || now.Fences != 1 || now.Epoch <= lost.Epoch() {
		t.Errorf("epoch %+v after %+v", now, before)
	}
	_, err = term.Reassign(t.Context(), "vm-a", []inventory.HostID{"host-2"}, give)
	want(t, fault.Conflict, err)
}

func renewal(t *testing.T, s *store.Store, host inventory.HostID) inventory.Renewal {
	t.Helper()
	all, err := s.Renewals(t.Context())
	must(t, err)
	for _, r := range all {
		if r.Host == host {
			return r
		}
	}
	t.Fatalf("no renewal of %s in %+v", host, all)
	return inventory.Renewal{}
}

// A renewal that is late on its way does not come after one that was sent later: its short lease would take the place of a longer one.
func TestRenewalsKeepTheirOrder(t *testing.T) {
	s, w := start(t)
	must(t, w.Renew(t.Context(), 8*time.Second, ""))
	late := s.As(w.Host(), w.Epoch())
	must(t, late.Renew(t.Context(), 8*time.Second, "")) // it knows what is there, and its next one is on its way while
	must(t, w.Renew(t.Context(), time.Minute, ""))      // this one is done
	if done, err := late.RenewOnce(t.Context(), 8*time.Second); done || err != nil {
		t.Errorf("a late renewal was done: %v, %v", done, err)
	}
	if r := renewal(t, s, w.Host()); r.Lease != time.Minute {
		t.Errorf("the last renewal is %+v", r)
	}
	must(t, w.Renew(t.Context(), 8*time.Second, ""))
}
