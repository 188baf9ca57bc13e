package gate

import (
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: the cluster is on an etcd of the user's, and that stands still while a VM moves. Neither end knows whether it may go on: the migration is
// given up, the VM stands at its source, and runs on there when the store answers. The next migration works.
func TestStoreStandsStillInMigration(t *testing.T) {
	t.Parallel()
	access, etcd := foreignEtcd(t)
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 2, Init: access})}
	source, target := f.Hosts[0], f.Hosts[1]
	f.board(t, source)
	before := f.info(t)
	away := []int{etcd}
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
