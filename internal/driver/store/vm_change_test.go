package store_test

import (
	"errors"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The story: a VM that is off goes to another host and another datastore in one step. Nobody sees half of it, and nobody does it who
// lost the right to: the owner of before, a host whose agent was started again, or anybody while the VM migrates.
func TestSpecAndOwnerChangeTogether(t *testing.T) {
	s, w1 := start(t)
	w2 := writer(t, s, "host-2")
	must(t, w1.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	move := func(vm *inventory.VM) error {
		vm.Spec.Disks[0].File.Datastore = "ds-2"
		vm.Run.Owner = "host-2"
		vm.Run.Generation++
		return nil
	}
	_, err := w2.UpdateVM(t.Context(), "vm-a", nil, move)
	t.Log(want(t, fault.Conflict, err))
	_, err = w1.UpdateVM(t.Context(), "vm-a", map[inventory.HostID]uint64{"host-2": w2.Epoch() - 1}, move)
	t.Log(want(t, fault.Conflict, err))
	_, err = w1.UpdateVM(t.Context(), "vm-x", nil, move)
	want(t, fault.NotFound, err)

	m := inventory.Migration{ID: "mig-1", Spec: inventory.MigrationSpec{VM: "vm-a", VMName: "web-1"}}
	must(t, w1.CreateMigration(t.Context(), m))
	_, err = w1.UpdateVM(t.Context(), "vm-a", nil, move)
	t.Log(want(t, fault.Conflict, err))
	must(t, w1.PutMigrationStatus(t.Context(), "mig-1", inventory.MigrationStatus{Phase: inventory.Failed}))

	// The target's agent is started again between the look and the deed: the deed sees it.
	guards := map[inventory.HostID]uint64{"host-2": w2.Epoch()}
	_, err = w1.UpdateVM(t.Context(), "vm-a", guards, func(vm *inventory.VM) error {
		w2 = writer(t, s, "host-2")
		return move(vm)
	})
	t.Log(want(t, fault.Conflict, err))
	before, err := s.VM(t.Context(), "vm-a")
	must(t, err)
	if before.Run.Owner != "host-1" || before.Spec.Disks[0].File.Datastore != "ds-1" {
		t.Errorf("it moved all the same: %+v", before)
	}

	moved, err := w1.UpdateVM(t.Context(), "vm-a", map[inventory.HostID]uint64{"host-2": w2.Epoch()}, move)
	must(t, err)
	after, err := s.VM(t.Context(), "vm-a")
	must(t, err)
	if after.Run != moved.Run || after.Run.Owner != "host-2" || after.Run.Generation != 2 || after.Spec.Disks[0].File.Datastore != "ds-2" {
		t.Errorf("it is %+v", after)
	}
	_, err = w1.UpdateVM(t.Context(), "vm-a", nil, move)
	want(t, fault.Conflict, err)
	mine := errors.New("no")
	if _, err := w2.UpdateVM(t.Context(), "vm-a", nil, func(*inventory.VM) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	old := w2
	writer(t, s, "host-2")
	_, err = old.UpdateVM(t.Context(), "vm-a", nil, func(vm *inventory.VM) error { vm.Spec.CPUs = 4; return nil })
	if !errors.Is(err, store.ErrEpochOver) {
		t.Errorf("an old epoch: %v", err)
	}
}
