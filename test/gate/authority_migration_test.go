package gate

import (
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: while a VM moves from one host to another, a third one, which has the store, stands still. Neither end knows whether it may go on: the
// migration is given up, the VM stands at its source, and runs on there when the store answers. The next migration works.
func TestStoreStandsStillInMigration(t *testing.T) {
	t.Parallel()
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 3})}
	source, target := f.Hosts[1], f.Hosts[2]
	f.board(t, source)
	before := f.info(t)
	away := restart{Host: f.Hosts[0]}.pids(t, everyone...)
	id := f.strike(t, source, target, inventory.PreCopy, func(t *testing.T, _ *flight, _, _ *lab.Host) func() error {
		t.Helper()
		return func() error { f.stopAll(t, away); return nil }
	})
	if stood := f.standstill(t, storeAway); stood.IsZero() {
		t.Error("the guest runs without authority")
	}
	if left := target.QEMUs(f.vm); len(left) > 0 {
		t.Errorf("the target has no authority, and has processes %v of a VM that it was to get", left)
	}
	f.goOn(t, away)
	f.allUp(t)
	m := f.end(t, source, id)
	if phase := m.GetStatus().GetPhase(); phase != inventory.Failed.String() {
		t.Errorf("the migration ended as %s (%s)", phase, m.GetStatus().GetReason())
	}
	t.Logf("%s: %s; longest gap %v", m.GetStatus().GetPhase(), m.GetStatus().GetReason(), f.probes.Seen().Gap().Round(time.Millisecond))
	f.forgive(t)
	f.sameProcess(t, before)
	f.healthy(t, source)
	f.move(t, source, target)
	f.healthy(t, target)
}
