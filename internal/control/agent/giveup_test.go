package agent

import (
	"log/slog"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A host that has no room for a VM which the leader gave to it says so in the run record, and spends the generation with that, also for an agent
// that is started later. For other trouble, and for a VM that is off or another's, it says nothing.
func TestGiveUp(t *testing.T) {
	s := storetest.Open(t)
	if err := s.Admit(t.Context(), "host-1"); err != nil {
		t.Fatal(err)
	}
	now, _, err := s.NextEpoch(t.Context(), "host-1", "boot-1")
	ok(t, err)
	a := &Agent{Config: Config{Host: "host-1", Store: s}, writer: s.As("host-1", now.Epoch)}
	full := fault.Refuse(fault.Incompatible, []string{"host-1 has 1 MiB of memory free"})
	for id, c := range map[inventory.VMID]struct {
		owner  inventory.HostID
		wanted inventory.Power
		why    error
		want   inventory.Generation
	}{
		"vm-full":    {"host-1", inventory.PowerOn, full, 7},
		"vm-trouble": {"host-1", inventory.PowerOn, fault.New(fault.Internal, "QEMU has ended"), 0},
		"vm-off":     {"host-1", inventory.PowerOff, full, 0},
		"vm-gone":    {"host-2", inventory.PowerOn, full, 0},
	} {
		ok(t, a.writer.CreateVM(t.Context(), inventory.VM{
			ID: id, Spec: inventory.VMSpec{Name: string(id)}, Run: inventory.VMRun{Owner: c.owner, Generation: 7, Wanted: c.wanted},
		}))
		v := &vm{agent: a, id: id, log: slog.New(slog.DiscardHandler)}
		v.giveUp(t.Context(), newRevival("host-3 is dead", 7), c.why)
		stored, err := s.VM(t.Context(), string(id))
		ok(t, err)
		if stored.Run.GivenUp != c.want || stored.Run.Generation != 7 {
			t.Errorf("%s: %+v", id, stored.Run)
		}
		stored.Place.Restart = inventory.Restart{Generation: 7, From: "host-3", Why: "host-3 is dead"}
		r, mine := a.reassigned(stored)
		if mine != (c.owner == "host-1" && c.wanted == inventory.PowerOn) || mine && (r.generation == 0) != (c.want == 7) {
			t.Errorf("%s: %+v, %t", id, r, mine)
		}
	}
}
