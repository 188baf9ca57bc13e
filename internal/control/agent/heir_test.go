package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// A leader that a later one has followed is not listened to any more; a call that is no leader's always is.
func TestTerms(t *testing.T) {
	var heard terms
	for _, c := range []struct {
		term uint64
		ok   bool
	}{{0, true}, {7, true}, {7, true}, {0, true}, {9, true}, {7, false}, {8, false}, {0, true}, {9, true}} {
		err := heard.hear(c.term)
		if (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Conflict) {
			t.Errorf("term %d: %v", c.term, err)
		}
	}
}

// A source names a heir with the boot that its target is in, and learns from the store alone that the heir is dead: because it was booted
// since, because it was fenced. One that has become owner before is not lost, and one that was fenced is not named.
func TestHeirLost(t *testing.T) {
	s := storetest.Open(t)
	host := func(id inventory.HostID, boot string) records {
		if err := s.Admit(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		now, _, err := s.NextEpoch(t.Context(), id, boot)
		ok(t, err)
		return records{&Agent{Config: Config{Host: id, Store: s}, writer: s.As(id, now.Epoch)}}
	}
	source := host("host-1", "boot-1")
	host("host-2", "boot-2")
	ok(t, source.agent.writer.CreateVM(t.Context(), inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "a"}, Run: inventory.VMRun{Owner: "host-1", Generation: 1}}))
	attempt := func(id inventory.MigrationID) handover.Attempt {
		vm, err := s.VM(t.Context(), "vm-a")
		ok(t, err)
		return handover.NewAttempt(inventory.Migration{ID: id, Spec: inventory.MigrationSpec{Source: "host-1", Target: "host-2"}}, vm.Run)
	}
	lost := func(a handover.Attempt, want string) {
		t.Helper()
		run, there, err := source.Source(t.Context(), "vm-a", a)
		ok(t, err)
		why := "not lost"
		for _, e := range a.SourceReads(handover.SourceDone, run, there) {
			why = e.Why
		}
		if !strings.Contains(why, want) {
			t.Errorf("%q, not %q", why, want)
		}
	}

	first := attempt("mig-1")
	ok(t, source.SetHeir(t.Context(), "vm-a", first))
	if run, _, err := source.Source(t.Context(), "vm-a", first); err != nil || run.Heir.BootID != "boot-2" {
		t.Errorf("%+v, %v", run.Heir, err)
	}
	ok(t, source.SetHeir(t.Context(), "vm-a", first)) // said again
	lost(first, "not lost")
	host("host-2", "boot-2\n") // its agent was started again, by an older version: the same boot
	lost(first, "not lost")
	target := host("host-2", "boot-3")
	lost(first, "was booted since")
	ok(t, source.ClearHeir(t.Context(), "vm-a", first))
	lost(first, "not lost")

	second := attempt("mig-2")
	ok(t, source.SetHeir(t.Context(), "vm-a", second))
	term, err := s.Lead(t.Context(), "host-1", source.agent.writer.Epoch())
	ok(t, err)
	defer term.End()
	ok(t, term.Fence(t.Context(), "host-2", 0, "it was silent"))
	lost(second, "it was silent")
	// That its epoch is over says nothing about the record: its next agent may still be heir.
	if err := target.TakeOwner(t.Context(), "vm-a", second); !errors.Is(err, store.ErrEpochOver) || errors.Is(err, handover.ErrRefused) {
		t.Errorf("a fenced heir became owner: %v", err)
	}
	ok(t, source.ClearHeir(t.Context(), "vm-a", second))
	if err := source.SetHeir(t.Context(), "vm-a", attempt("mig-3")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a fenced host was named: %v", err)
	}

	target = host("host-2", "boot-3")
	if err := target.TakeOwner(t.Context(), "vm-a", second); !errors.Is(err, handover.ErrRefused) {
		t.Errorf("an heir of an attempt that is over became owner: %v", err)
	}
	fourth := attempt("mig-4")
	ok(t, source.SetHeir(t.Context(), "vm-a", fourth))
	ok(t, target.TakeOwner(t.Context(), "vm-a", fourth))
	ok(t, target.TakeOwner(t.Context(), "vm-a", fourth)) // said again
	if err := source.ClearHeir(t.Context(), "vm-a", fourth); !errors.Is(err, handover.ErrRefused) {
		t.Errorf("a source that is not owner any more ended the attempt: %v", err)
	}
	ok(t, term.Fence(t.Context(), "host-2", 0, "it was silent again"))
	lost(fourth, "not lost")
}

// A target that waits for a release finds it in the migration's record, and that the leader has given the VM away meanwhile.
func TestATargetReadsTheStore(t *testing.T) {
	s := storetest.Open(t)
	hosts := map[inventory.HostID]records{}
	for _, id := range []inventory.HostID{"host-1", "host-2", "host-3"} {
		ok(t, s.Admit(t.Context(), id))
		now, _, err := s.NextEpoch(t.Context(), id, "boot of "+string(id))
		ok(t, err)
		hosts[id] = records{&Agent{Config: Config{Host: id, Store: s}, writer: s.As(id, now.Epoch)}}
	}
	source, target := hosts["host-1"], hosts["host-2"]
	ok(t, source.agent.writer.CreateVM(t.Context(), inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "a"}, Run: inventory.VMRun{Owner: "host-1", Generation: 1}}))
	m := inventory.Migration{ID: "mig-1", Spec: inventory.MigrationSpec{VM: "vm-a", VMName: "a", Source: "host-1", Target: "host-2"}}
	ok(t, source.agent.writer.CreateMigration(t.Context(), m))
	a := handover.NewAttempt(m, inventory.VMRun{Owner: "host-1", Generation: 1})
	reads := func(want handover.TargetEventKind) {
		t.Helper()
		run, status, err := target.Target(t.Context(), "vm-a", a)
		ok(t, err)
		if e := a.TargetReads(handover.TargetLoadedUp, run, status); e.Kind != want {
			t.Errorf("%+v of %+v and %+v, not %q", e, run, status, want)
		}
	}
	ok(t, source.SetHeir(t.Context(), "vm-a", a))
	reads("")
	ok(t, source.Status(t.Context(), "mig-1", inventory.MigrationStatus{Phase: inventory.Released, Released: true}))
	reads(handover.TargetReleased)
	// Both are fenced, and the VM is started on a third host. The target comes back, with its loaded QEMU.
	term, err := s.Lead(t.Context(), "host-3", hosts["host-3"].agent.writer.Epoch())
	ok(t, err)
	defer term.End()
	ok(t, term.Fence(t.Context(), "host-1", 0, "it was silent"))
	ok(t, term.Fence(t.Context(), "host-2", 0, "it was silent"))
	_, err = term.Reassign(t.Context(), "vm-a", []inventory.HostID{"host-1", "host-2"}, func(run *inventory.VMRun, _ *inventory.VMPlace) error {
		run.Owner, run.Generation, run.Heir = "host-3", 3, inventory.Heir{}
		return nil
	})
	ok(t, err)
	reads(handover.TargetOwnerRefused)
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
