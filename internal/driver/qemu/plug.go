package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A device that is plugged into a running VM must be the one that the command line of a migration's target, or of the next start,
// makes of the same spec. What follows are the options of commandLine.disks and commandLine.nics in QMP's words; a test
// compares the two.

// diskNodes returns the options of a disk's two block nodes, the file's first.
func diskNodes(d inventory.Disk, path string, a Abilities) (file, top map[string]any) {
	aio := "threads"
	if a.Has(FeatureIOUring) {
		aio = "io_uring"
	}
	node := DiskNode(d)
	cache := map[string]any{"direct": true, "no-flush": false}
	file = map[string]any{"driver": "file", "node-name": node + "-file", "filename": path, "cache": cache, "locking": "on", "aio": aio, "discard": "unmap"}
	top = map[string]any{"driver": string(d.Format), "node-name": node, "file": node + "-file", "cache": cache, "discard": "unmap"}
	if d.ReadOnly {
		file["read-only"], top["read-only"] = true, true
	}
	return file, top
}

// diskDevice returns the options of the device of a disk in a hot-plug port. Index is the disk's place in the spec, which is its
// place in the boot order too, as on the command line.
func diskDevice(spec inventory.VMSpec, index int) map[string]any {
	d := spec.Disks[index]
	options := map[string]any{
		"driver": "virtio-blk-pci", "id": DiskDevice(d), "bus": hotPort(d.Port), "addr": "0x0", "drive": DiskNode(d),
		"werror": "stop", "rerror": "stop",
	}
	if spec.Boot.Kernel.IsZero() && spec.Boot.Firmware.IsZero() && d.Name != SeedDisk {
		options["bootindex"] = index + 1
	}
	return options
}

// NICPlug is what a card is plugged into: a port of the switch, or a tap.
type NICPlug struct {
	Socket string // of the switch port; empty for a tap
	// Tap makes the tap and returns its file, and one of vhost-net or nil. QEMU gets duplicates and the files are closed.
	Tap func() (tap, vhost *os.File, err error)
	MTU int // as Tap.MTU
}

// nicBackend returns the options of a card's connection to its network. Those of a tap name the files that QEMU has got.
func nicBackend(n inventory.NIC, to NICPlug, vhost bool, a Abilities) map[string]any {
	if to.Tap != nil {
		options := map[string]any{"type": "tap", "id": nicNetdev(n), "fd": fdName(n)}
		if vhost {
			options["vhost"], options["vhostfd"] = true, vhostName(n)
		}
		return options
	}
	options := map[string]any{
		"type": "stream", "id": nicNetdev(n), "server": false, "addr": map[string]any{"type": "unix", "path": to.Socket},
	}
	if a.Has(FeatureReconnect) {
		options["reconnect-ms"] = ReconnectMS
	}
	return options
}

func nicNetdev(n inventory.NIC) string { return fmt.Sprintf("net%d", n.Number()) }
func fdName(n inventory.NIC) string    { return nicNetdev(n) + "-tap" }
func vhostName(n inventory.NIC) string { return nicNetdev(n) + "-vhost" }

// nicDevice returns the options of a card in a hot-plug port.
func nicDevice(n inventory.NIC, mtu int) map[string]any {
	options := map[string]any{
		"driver": "virtio-net-pci", "id": NICDevice(n.Number()), "bus": hotPort(n.Port), "addr": "0x0", "netdev": nicNetdev(n),
		"mac": n.MAC, "romfile": "",
	}
	if mtu > 0 {
		options["host_mtu"] = mtu
	}
	return options
}

// PlugDisk gives a running VM the disk of its spec at index, in the hot-plug port that the spec says. The image is made the VM's
// user's first, as at a start. What a former try left half done is completed; on an error nothing of the disk stays. Errors are
// QEMU's, and fault.NotFound without an image.
func (p *Process) PlugDisk(ctx context.Context, spec inventory.VMSpec, index int, path string, a Abilities) (err error) {
	conn, d := p.QMP(), spec.Disks[index]
	defer func() { err = fault.Wrap("plug in", d.Name, err) }()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no image %s: is its datastore mounted here?", path)
	}
	if !p.user.owns(path) {
		if err := p.user.Own(path); err != nil && !fault.Is(err, fault.Denied) {
			return err
		}
	}
	have, err := p.Plugged(ctx)
	if err != nil || have.Devices[DiskDevice(d)] {
		return err
	}
	file, top := diskNodes(d, path, a)
	defer func() {
		if err != nil {
			undo, done := context.WithTimeout(context.WithoutCancel(ctx), plugUndo)
			defer done()
			err = errors.Join(err, p.closeNodes(undo, d))
		}
	}()
	for _, options := range []map[string]any{file, top} {
		if name, _ := options["node-name"].(string); have.Nodes[name] {
			continue
		}
		if err := conn.BlockdevAdd(ctx, options); err != nil {
			return err
		}
	}
	return conn.DeviceAdd(ctx, diskDevice(spec, index))
}

// PlugNIC gives a running VM the card, connected to what it is to be plugged into, as PlugDisk gives it a disk.
func (p *Process) PlugNIC(ctx context.Context, n inventory.NIC, to NICPlug, a Abilities) (err error) {
	conn := p.QMP()
	defer func() { err = fault.Wrap("plug in", n.Name, err) }()
	have, err := p.Plugged(ctx)
	if err != nil || have.Devices[NICDevice(n.Number())] {
		return err
	}
	// A backend cannot be looked for by name. One that a former try left is of no use to anybody, and that there mostly is
	// none is the error of this call.
	_ = conn.NetdevDel(ctx, nicNetdev(n))
	if err := p.addBackend(ctx, n, to, a); err != nil {
		return err
	}
	if err := conn.DeviceAdd(ctx, nicDevice(n, to.MTU)); err != nil {
		undo, done := context.WithTimeout(context.WithoutCancel(ctx), plugUndo)
		defer done()
		return errors.Join(err, conn.NetdevDel(undo, nicNetdev(n)))
	}
	return nil
}

// addBackend connects QEMU to the card's network.
func (p *Process) addBackend(ctx context.Context, n inventory.NIC, to NICPlug, a Abilities) error {
	conn := p.QMP()
	if to.Tap == nil {
		return conn.NetdevAdd(ctx, nicBackend(n, to, false, a))
	}
	tap, vhost, err := to.Tap()
	if err != nil {
		return err
	}
	err = conn.GetFD(ctx, fdName(n), tap)
	if vhost != nil {
		if err == nil {
			err = conn.GetFD(ctx, vhostName(n), vhost)
		}
		_ = vhost.Close() // nothing was written to either
	}
	_ = tap.Close()
	if err == nil {
		err = conn.NetdevAdd(ctx, nicBackend(n, to, vhost != nil, a))
	}
	if err != nil { // a tap lives as long as somebody has it; that QEMU may not have it is the error of these calls
		undo, done := context.WithTimeout(context.WithoutCancel(ctx), plugUndo)
		defer done()
		for _, name := range []string{fdName(n), vhostName(n)} {
			_ = conn.Do(undo, "closefd", map[string]any{"fdname": name}, nil)
		}
	}
	return err
}

// Bounds of plugging.
const (
	plugUndo = 5 * time.Second
	// UnplugMax bounds the wait for a guest to let go of a device.
	UnplugMax = 10 * time.Second
)

// UnplugDisk takes the disk out of a running VM: the guest is asked to let go of it, and when it has, the image is closed. A guest
// that does not within UnplugMax is fault.Unavailable; it may still do it later, and DEVICE_DELETED says so. A disk that is out is no error.
func (p *Process) UnplugDisk(ctx context.Context, d inventory.Disk) error {
	err := p.unplug(ctx, DiskDevice(d))
	if err == nil {
		err = p.closeNodes(ctx, d)
	}
	return fault.Wrap("unplug", d.Name, err)
}

// UnplugNIC takes the card out of a running VM, as UnplugDisk takes a disk.
func (p *Process) UnplugNIC(ctx context.Context, n inventory.NIC) error {
	err := p.unplug(ctx, NICDevice(n.Number()))
	if err == nil {
		// A former try may have removed the backend, which QEMU cannot be asked about; PlugNIC removes one that stays.
		_ = p.QMP().NetdevDel(ctx, nicNetdev(n))
	}
	return fault.Wrap("unplug", n.Name, err)
}

// unplug asks the guest to let go of the device and waits until it has.
func (p *Process) unplug(ctx context.Context, device string) error {
	conn := p.QMP()
	gone := conn.Subscribe(qmp.EventDeviceDeleted, qmp.EventUnplugError)
	defer gone.Close()
	have, err := p.Plugged(ctx)
	if err != nil || !have.Devices[device] {
		return err
	}
	if err := conn.DeviceDel(ctx, device); err != nil && !alreadyAsked(err) {
		return err
	}
	within, done := context.WithTimeout(ctx, UnplugMax)
	defer done()
	for {
		select {
		case e, open := <-gone.C:
			switch {
			case !open:
				return gone.Err()
			case e.Name == qmp.EventUnplugError:
				return fault.New(fault.Conflict, "the guest refuses: let it release the device first")
			case e.Device() == device:
				return nil
			}
		case <-within.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "the guest did not let go of it within %v: does it run, and use the device? Try again, or stop the VM first", UnplugMax)
		}
	}
}

// closeNodes closes a disk's block nodes; those that are not open are no error.
func (p *Process) closeNodes(ctx context.Context, d inventory.Disk) error {
	have, err := p.Plugged(ctx)
	if err != nil {
		return err
	}
	for _, node := range []string{DiskNode(d), DiskNode(d) + "-file"} {
		if !have.Nodes[node] {
			continue
		}
		if err := p.QMP().BlockdevDel(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// Plugged is what a QEMU has, by id and node name.
type Plugged struct {
	Devices map[string]bool
	Nodes   map[string]bool
}

// Plugged asks QEMU what it has.
func (p *Process) Plugged(ctx context.Context) (Plugged, error) {
	devices, err := p.QMP().Peripherals(ctx)
	if err != nil {
		return Plugged{}, err
	}
	nodes, err := p.QMP().BlockNodes(ctx)
	have := Plugged{Devices: devices, Nodes: map[string]bool{}}
	for _, n := range nodes {
		have.Nodes[n.Name] = true
	}
	return have, err
}

// alreadyAsked recognises QEMU's answer to a second device_del while the guest has not obeyed the first (hw/acpi/pcihp.c, hw/pci/pcie.c,
// system/qdev-monitor.c: "Device %s is already in the process of unplug").
func alreadyAsked(err error) bool {
	return strings.Contains(err.Error(), "already in the process of unplug")
}
