package store_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// macOf is an address that no other VM of the tests has.
func macOf(id inventory.VMID) string {
	sum := sha256.Sum256([]byte(id))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}

func aVM(id inventory.VMID, name string) inventory.VM {
	return inventory.VM{
		ID: id,
		Spec: inventory.VMSpec{
			Name: name, UUID: inventory.NewUUID(), CPUs: 2, Memory: inventory.GiB, Machine: "pc-q35-10.0", CPUModel: "Westmere",
			Disks:   []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds-1", Path: "a.qcow2"}, Format: inventory.Qcow2}},
			NICs:    []inventory.NIC{{Name: "nic0", MAC: macOf(id), Network: "lan"}},
			Created: time.Unix(1_700_000_000, 0).UTC(),
		},
		Run: inventory.VMRun{Owner: "host-1", Generation: 1},
	}
}

func TestVMIsFoundByNameAndID(t *testing.T) {
	s, w := start(t)
	a, b := aVM("vm-a", "web-2"), aVM("vm-b", "web-1")
	must(t, w.CreateVM(t.Context(), a))
	must(t, w.CreateVM(t.Context(), b))
	must(t, w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running, Host: "host-1", PID: 42, Usage: inventory.Usage{Resident: 1}}))
	a.Status = inventory.VMStatus{State: inventory.Running, Host: "host-1", PID: 42} // usage is telemetry, not kept
	for _, name := range []string{"web-2", "vm-a"} {
		got, err := s.VM(t.Context(), name)
		must(t, err)
		if !reflect.DeepEqual(got, a) {
			t.Errorf("%s is %+v, not %+v", name, got, a)
		}
	}
	all, err := s.VMs(t.Context())
	must(t, err)
	if len(all) != 2 || all[0].ID != "vm-b" || all[1].ID != "vm-a" {
		t.Errorf("list is %+v", all)
	}
	for _, name := range []string{"web-3", "", "vm-a/spec", "web"} {
		_, err := s.VM(t.Context(), name)
		t.Log(want(t, fault.NotFound, err))
	}
}

func TestNameIsTakenOnceAlsoWhenAllAskAtOnce(t *testing.T) {
	s, w := start(t)
	const creators = 8
	ids := make([]inventory.VMID, creators)
	errs := make([]error, creators)
	var wg sync.WaitGroup
	for i := range creators {
		ids[i] = inventory.NewVMID()
		wg.Go(func() { errs[i] = w.CreateVM(t.Context(), aVM(ids[i], "web-1")) })
	}
	wg.Wait()
	vm, err := s.VM(t.Context(), "web-1")
	must(t, err)
	for i := range creators {
		if ids[i] == vm.ID {
			must(t, errs[i])
			must(t, w.CreateVM(t.Context(), aVM(ids[i], "web-1"))) // its answer was lost: once more
		} else {
			want(t, fault.Exists, errs[i])
		}
	}
	all, err := s.VMs(t.Context())
	must(t, err)
	if len(all) != 1 {
		t.Errorf("%d VMs exist", len(all))
	}
}

func TestDestroyTakesOnlyWhatIsOff(t *testing.T) {
	s, w := start(t)
	vm := aVM("vm-a", "web-1")
	vm.Run.Wanted = inventory.PowerOn
	must(t, w.CreateVM(t.Context(), vm))
	t.Log(want(t, fault.Conflict, w.DeleteVM(t.Context(), "vm-a", nil)))
	change := func(f func(*inventory.VMRun)) {
		t.Helper()
		_, err := w.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error { f(r); return nil })
		must(t, err)
	}
	change(func(r *inventory.VMRun) {
		r.Wanted, r.Heir = inventory.PowerOff, inventory.Heir{Host: "host-2", Generation: 2, Migration: "mig-1"}
	})
	t.Log(want(t, fault.Conflict, w.DeleteVM(t.Context(), "vm-a", nil)))
	change(func(r *inventory.VMRun) { r.Heir = inventory.Heir{} })
	m := inventory.Migration{ID: "mig-1", Spec: inventory.MigrationSpec{VM: "vm-a", VMName: "web-1"}}
	must(t, w.CreateMigration(t.Context(), m))
	t.Log(want(t, fault.Conflict, w.DeleteVM(t.Context(), "vm-a", nil)))
	must(t, w.PutMigrationStatus(t.Context(), "mig-1", inventory.MigrationStatus{Phase: inventory.Failed}))
	mine := errors.New("its disks are busy")
	if err := w.DeleteVM(t.Context(), "vm-a", func(inventory.VM) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}

	// Somebody switches it on between the look and the deed: the deed sees it.
	raced := false
	err := w.DeleteVM(t.Context(), "vm-a", func(inventory.VM) error {
		if !raced {
			raced = true
			change(func(r *inventory.VMRun) { r.Wanted = inventory.PowerOn })
		}
		return nil
	})
	want(t, fault.Conflict, err)
	change(func(r *inventory.VMRun) { r.Wanted = inventory.PowerOff })

	must(t, w.DeleteVM(t.Context(), "vm-a", nil))
	want(t, fault.NotFound, w.DeleteVM(t.Context(), "vm-a", nil))
	want(t, fault.NotFound, w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{})) // a late status revives nothing
	_, err = s.VM(t.Context(), "web-1")
	want(t, fault.NotFound, err)
	must(t, w.CreateVM(t.Context(), aVM("vm-b", "web-1"))) // the name is free again
}

func TestEveryUpdateCountsWhenManyWriteAtOnce(t *testing.T) {
	s, w := start(t)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	const writers = 4
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range 5 {
				if _, err := w.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error { r.Generation++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	vm, err := s.VM(t.Context(), "vm-a")
	must(t, err)
	if vm.Run.Generation != 1+5*writers {
		t.Errorf("generation %d", vm.Run.Generation)
	}
	_, err = w.UpdateRun(t.Context(), "vm-x", func(*inventory.VMRun) error { return nil })
	want(t, fault.NotFound, err)
	mine := errors.New("no")
	if _, err := w.UpdateRun(t.Context(), "vm-a", func(*inventory.VMRun) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
}

func TestUpdateGivesUpAfterItsBound(t *testing.T) {
	_, w := start(t)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	tries := 0
	_, err := w.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error {
		tries++
		if _, err := w.UpdateRun(t.Context(), "vm-a", func(o *inventory.VMRun) error { o.Generation++; return nil }); err != nil {
			t.Error(err)
		}
		r.Owner = "host-9"
		return nil
	})
	t.Log(want(t, fault.Conflict, err), "after", tries)
}

func TestStatusIsTheOwners(t *testing.T) {
	s, w1 := start(t)
	w2 := writer(t, s, "host-2")
	must(t, w1.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	must(t, w1.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running}))
	t.Log(want(t, fault.Conflict, w2.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Crashed})))
	_, err := w2.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error { r.Owner = "host-2"; return nil })
	must(t, err)
	must(t, w2.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running, Host: "host-2"}))
	want(t, fault.Conflict, w1.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Stopped}))
}

func TestOldEpochChangesNothing(t *testing.T) {
	s, old := start(t)
	must(t, old.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	fresh := writer(t, s, "host-1")
	if fresh.Epoch() != old.Epoch()+1 {
		t.Errorf("epochs %d and %d", old.Epoch(), fresh.Epoch())
	}
	status := func(w *store.Writer) error {
		return w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running})
	}
	must(t, status(fresh))
	before, err := s.Dump(t.Context())
	must(t, err)
	run := func(*inventory.VMRun) error { return nil }
	on := func(r *inventory.VMRun) error { r.Wanted = inventory.PowerOn; return nil }
	_, runErr := old.UpdateRun(t.Context(), "vm-a", on)
	for what, err := range map[string]error{
		"status":    old.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Crashed}),
		"create":    old.CreateVM(t.Context(), aVM("vm-b", "web-2")),
		"delete":    old.DeleteVM(t.Context(), "vm-a", nil),
		"run":       runErr,
		"host":      old.PutHostSpec(t.Context(), inventory.HostSpec{CPUs: 4}),
		"network":   old.PutNetwork(t.Context(), inventory.Network{ID: "lan"}),
		"token":     old.CreateToken(t.Context(), store.Token{ID: "t", SecretHash: []byte("h"), Expires: time.Now().Add(time.Hour)}),
		"migration": old.CreateMigration(t.Context(), inventory.Migration{ID: "mig-1", Spec: inventory.MigrationSpec{VM: "vm-a"}}),
	} {
		want(t, fault.Conflict, err)
		if !errors.Is(err, store.ErrEpochOver) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = s.As("host-9", 1).UpdateRun(t.Context(), "vm-a", on)
	if !errors.Is(err, store.ErrEpochOver) {
		t.Errorf("a host that nobody knows: %v", err)
	}
	_, err = old.UpdateRun(t.Context(), "vm-a", run)
	must(t, err) // nothing to write, nothing refused
	after, err := s.Dump(t.Context())
	must(t, err)
	if string(before) != string(after) {
		t.Errorf("the store changed:\n%s\n%s", before, after)
	}
	epoch, err := s.Epoch(t.Context(), "host-1")
	must(t, err)
	if epoch.Epoch != 2 || epoch.BootID != "boot-host-1" {
		t.Errorf("epoch %d of boot %q", epoch.Epoch, epoch.BootID)
	}
}
