package agent

import (
	"context"
	"errors"
	"log/slog"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// mendMax bounds the mending of one VM's devices.
const mendMax = adoptMax

// mend plugs in what the spec has in hot-plug ports and QEMU has not: an agent was killed between the two halves of a change.
// Only the loop calls it, or who holds the VM before its loop begins.
func (v *vm) mend(ctx context.Context) error {
	if v.process == nil {
		return nil
	}
	ctx, done := context.WithTimeout(ctx, mendMax)
	defer done()
	missing, err := v.missing(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, name := range missing {
		err := v.mendDevice(ctx, name)
		if err == nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "device plugged in that was only half there", slog.String("device", name))
		}
		all = errors.Join(all, err)
	}
	return all
}

func (v *vm) mendDevice(ctx context.Context, name string) error {
	for i, d := range v.stored.Spec.Disks {
		if d.Name == name {
			path, err := v.agent.file(d.File)
			if err != nil {
				return err
			}
			return v.process.PlugDisk(ctx, v.stored.Spec, i, path, v.agent.abilities)
		}
	}
	nic, err := v.nic(name)
	if err != nil {
		return err
	}
	return v.plugNIC(ctx, nic)
}

// missing lists the devices in hot-plug ports that the spec has and QEMU has not.
func (v *vm) missing(ctx context.Context) ([]string, error) {
	have, err := v.process.Plugged(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range v.stored.Spec.Disks {
		if d.Port > 0 && !have.Devices[qemu.DiskDevice(d)] {
			names = append(names, d.Name)
		}
	}
	for _, n := range v.stored.Spec.NICs {
		if n.Port > 0 && !have.Devices[qemu.NICDevice(n.Number())] {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// whole mends the VM and refuses one that cannot be: the target of a migration would have a device that the source has not.
func (v *vm) whole(ctx context.Context) error {
	v.dropDevices(ctx)
	if err := v.mend(ctx); err != nil {
		return fault.New(fault.Conflict, "its devices are not those of its record, and they could not be plugged in: %w", err)
	}
	return nil
}

// dropDevices takes out of the spec what the guest has let go of, unasked or later than it was waited for. As in vSphere, a
// device that the guest ejects is gone; a disk's image stays.
func (v *vm) dropDevices(ctx context.Context) {
	if len(v.let) == 0 || v.process == nil || v.source != nil || v.target != nil {
		return
	}
	within, done := context.WithTimeout(ctx, storeTimeout)
	defer done()
	missing, err := v.missing(within)
	if err != nil {
		return // the next look comes within houseEvery
	}
	for _, name := range missing {
		if err := v.dropDevice(within, name); err != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "device that the guest let go of is still in the record", slog.String("device", name), slog.Any("err", err))
			return
		}
	}
	clear(v.let)
}

// dropDevice ends what is left of a device that QEMU does not have any more, if the guest let go of it.
func (v *vm) dropDevice(ctx context.Context, name string) error {
	if disk, err := v.disk(name); err == nil {
		if !v.let[qemu.DiskDevice(disk)] {
			return nil
		}
		v.told(ctx, name)
		return errors.Join(v.process.UnplugDisk(ctx, disk), v.forgetDevice(ctx, name))
	}
	nic, err := v.nic(name)
	if err != nil || !v.let[qemu.NICDevice(nic.Number())] {
		return err
	}
	v.told(ctx, name)
	return errors.Join(v.process.UnplugNIC(ctx, nic), v.dropNIC(ctx, nic))
}

func (v *vm) told(ctx context.Context, device string) {
	v.log.LogAttrs(ctx, slog.LevelInfo, "the guest let go of a device", slog.String("device", device))
}

// mendSoon mends a VM that was just adopted or came back from a migration, in its loop.
func (v *vm) mendSoon(ctx context.Context, state inventory.VMState) {
	if state != inventory.Running && state != inventory.Paused {
		return
	}
	if err := v.mend(ctx); err != nil {
		v.log.LogAttrs(ctx, slog.LevelError, "devices of the record are missing in the vm", slog.Any("err", err))
	}
}
