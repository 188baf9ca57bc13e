package agent

import (
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
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
	heir := func(id inventory.MigrationID) inventory.Heir {
		run, err := source.Run(t.Context(), "vm-a")
		ok(t, err)
		return inventory.Heir{Host: "host-2", Generation: run.Generation + 1, Migration: id}
	}
	lost := func(id inventory.MigrationID, want string) {
		t.Helper()
		why, err := source.HeirLost(t.Context(), "vm-a", id)
		if err != nil || want == "" && why != "" || !strings.Contains(why, want) {
			t.Errorf("lost because %q, %v, not %q", why, err, want)
		}
	}

	first := heir("mig-1")
	ok(t, source.SetHeir(t.Context(), "vm-a", first))
	if run, err := source.Run(t.Context(), "vm-a"); err != nil || run.Heir.BootID != "boot-2" {
		t.Errorf("%+v, %v", run.Heir, err)
	}
	ok(t, source.SetHeir(t.Context(), "vm-a", first)) // said again
	lost("mig-1", "")
	host("host-2", "boot-2\n") // its agent was started again, by an older version: the same boot
	lost("mig-1", "")
	target := host("host-2", "boot-3")
	lost("mig-1", "was booted since")
	ok(t, source.ClearHeir(t.Context(), "vm-a", "mig-1"))
	lost("mig-1", "")

	ok(t, source.SetHeir(t.Context(), "vm-a", heir("mig-2")))
	term, err := s.Lead(t.Context(), "host-1", source.agent.writer.Epoch())
	ok(t, err)
	defer term.End()
	ok(t, term.Fence(t.Context(), "host-2", 0, "it was silent"))
	lost("mig-2", "it was silent")
	if err := target.TakeOwner(t.Context(), "vm-a", "mig-2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("a fenced heir became owner: %v", err)
	}
	ok(t, source.ClearHeir(t.Context(), "vm-a", "mig-2"))
	if err := source.SetHeir(t.Context(), "vm-a", heir("mig-3")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a fenced host was named: %v", err)
	}

	target = host("host-2", "boot-3")
	ok(t, source.SetHeir(t.Context(), "vm-a", heir("mig-4")))
	ok(t, target.TakeOwner(t.Context(), "vm-a", "mig-4"))
	ok(t, term.Fence(t.Context(), "host-2", 0, "it was silent again"))
	lost("mig-4", "")
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
