package store_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The story: two VMs with one MAC address would knock each other off the LAN. Of all who ask for one at once, for a new VM or a new NIC, one
// gets it; it is free again when the VM or the NIC is gone, and not before.
func TestAMACAddressIsOneVMs(t *testing.T) {
	s, w := start(t)
	const mac = "52:54:00:00:00:77"
	with := func(id inventory.VMID, name string) inventory.VM {
		vm := aVM(id, name)
		vm.Spec.NICs[0].MAC = mac
		return vm
	}
	names := []string{"web-1", "web-2", "web-3", "web-4"}
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = w.CreateVM(t.Context(), with(inventory.VMID("vm-"+name), name)) })
	}
	all.Wait()
	owner, err := s.MACOwner(t.Context(), mac)
	must(t, err)
	for i, err := range errs {
		if id := inventory.VMID("vm-" + names[i]); id == owner {
			must(t, err)
			must(t, w.CreateVM(t.Context(), with(id, names[i]))) // its answer was lost
		} else if !errors.Is(err, store.ErrMACTaken) || !fault.Is(err, fault.Exists) {
			t.Errorf("%s: %v", names[i], err)
		} else {
			t.Log(err)
			_, err := s.VM(t.Context(), names[i])
			want(t, fault.NotFound, err)
		}
	}

	other := aVM("vm-other", "other")
	must(t, w.CreateVM(t.Context(), other))
	plug := func(vm *inventory.VM) error {
		vm.Spec.NICs = append(vm.Spec.NICs, inventory.NIC{Name: "nic1", MAC: mac, Network: "lan"})
		return nil
	}
	if _, err := w.UpdateVM(t.Context(), "vm-other", nil, plug); !errors.Is(err, store.ErrMACTaken) {
		t.Errorf("a NIC with a taken address: %v", err)
	}
	must(t, w.DeleteVM(t.Context(), owner, nil))
	_, err = w.UpdateVM(t.Context(), "vm-other", nil, plug)
	must(t, err)
	if now, err := s.MACOwner(t.Context(), mac); err != nil || now != "vm-other" {
		t.Errorf("the address is %q's (%v)", now, err)
	}
	_, err = w.UpdateVM(t.Context(), "vm-other", nil, func(vm *inventory.VM) error {
		vm.Spec.NICs = vm.Spec.NICs[:1]
		return nil
	})
	must(t, err)
	must(t, w.CreateVM(t.Context(), with("vm-late", "late")))
	if now, err := s.MACOwner(t.Context(), other.Spec.NICs[0].MAC); err != nil || now != "vm-other" {
		t.Errorf("the address that stayed is %q's (%v)", now, err)
	}
}
