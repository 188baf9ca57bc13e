package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// firmware returns the host's UEFI firmware for a VM that starts from it.
func (a *Agent) firmware(spec inventory.VMSpec) (qemu.Firmware, error) {
	if !spec.Boot.UEFI {
		return qemu.Firmware{}, nil
	}
	return qemu.FindFirmware()
}

// makeVars gives a VM with UEFI its own variables, beside its first disk, or on the host's first datastore when it has none. A file of that name
// that a destroyed VM left, with its disks, is taken as it is. The returned undo removes what was made; it is never nil.
func (a *Agent) makeVars(ctx context.Context, spec *inventory.VMSpec) (undo func() error, err error) {
	undo = func() error { return nil }
	if !spec.Boot.UEFI {
		return undo, nil
	}
	firmware, err := qemu.FindFirmware()
	if err != nil {
		return undo, err
	}
	at := ""
	if len(spec.Disks) > 0 {
		at = string(spec.Disks[0].File.Datastore)
	}
	ds, err := a.datastore(at)
	if err != nil {
		return undo, err
	}
	spec.Boot.Vars = inventory.File{Datastore: ds.ID, Path: spec.Name + "-vars.fd"}
	path, err := ds.Resolve(spec.Boot.Vars.Path)
	if err != nil {
		return undo, err
	}
	err = firmware.MakeVars(path, a.User)
	if !fault.Is(err, fault.Exists) {
		if err == nil {
			undo = func() error { return os.Remove(path) }
		}
		return undo, err
	}
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return undo, err
	}
	for _, vm := range all {
		if vm.Spec.Boot.Vars == spec.Boot.Vars {
			return undo, fault.New(fault.Conflict, "the UEFI variables %s belong to vm %s: choose another name", filepath.Base(path), vm.Spec.Name)
		}
	}
	if err := firmware.CheckVars(path); err != nil {
		return undo, fault.New(fault.Conflict, "there is a file %s on datastore %s, and it holds no UEFI variables of this host's firmware: choose another name for the VM, or move the file away",
			spec.Boot.Vars.Path, ds.Name)
	}
	return undo, nil
}

// removeVars removes a destroyed VM's UEFI variables; it has to be called only where its disks are removed too.
func (a *Agent) removeVars(vm inventory.VM) error {
	if vm.Spec.Boot.Vars.IsZero() {
		return nil
	}
	path, err := a.file(vm.Spec.Boot.Vars)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return fault.Wrap("delete", "UEFI variables", err)
}
