package gate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The network that a card is plugged into.
const (
	otherNetwork = "dmz"
	otherSubnet  = "10.12.0.0/24"
)

// The sizes of the disk that is plugged in, before and after it grows.
const (
	addedSize = 8 * inventory.MiB
	grownSize = 12 * inventory.MiB
)

// plugged is a flight whose guest has got a disk and a card while it runs.
type plugged struct {
	*flight

	disk control.Disk
	nic  control.Net
}

func (p *plugged) godwit(t *testing.T, args ...string) {
	t.Helper()
	if _, err := p.Hosts[0].Godwit(step(t), args...); err != nil {
		t.Fatal(err)
	}
}

// still demands that the guest has disk and card as they were, that the disk's content is right and that frames go through the card.
func (p *plugged) still(t *testing.T) {
	t.Helper()
	disk, err := p.guest.Disk(step(t), p.disk.Name)
	if err != nil {
		t.Fatal(err)
	}
	if disk != p.disk {
		t.Errorf("the disk was %+v and is %+v", p.disk, disk)
	}
	nic, err := p.guest.Net(step(t), p.nic.Name)
	if err != nil {
		t.Fatal(err)
	}
	if nic != p.nic {
		t.Errorf("the card was %+v and is %+v", p.nic, nic)
	}
}

// seen waits until the guest has, or has no longer, the devices.
func (p *plugged) seen(t *testing.T, there bool) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		_, disk := p.guest.Disk(t.Context(), "vdb")
		nic := error(nil)
		if there == (disk == nil) {
			_, nic = p.guest.Net(t.Context(), "eth1")
		}
		for _, err := range []error{disk, nic} {
			switch {
			case there && err != nil:
				return err
			case !there && !errors.Is(err, control.ErrRefused):
				return errors.New("the guest does not refuse it")
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("the guest should see the devices: %v, but: %v", there, err)
	}
}

// spec returns the VM's disks and cards by name.
func (p *plugged) spec(t *testing.T) string {
	t.Helper()
	var names []string
	for _, d := range p.info(t).GetSpec().GetDisks() {
		names = append(names, fmt.Sprintf("%s:%d", d.GetName(), d.GetPort()))
	}
	for _, n := range p.info(t).GetSpec().GetNics() {
		names = append(names, fmt.Sprintf("%s:%d", n.GetName(), n.GetPort()))
	}
	return strings.Join(names, " ")
}

// The story: a running Linux guest gets a disk and a card, uses them, and takes them along to another host. Agents are killed, and the
// devices stay; a device that an agent was killed over is mended. What is taken away is gone for the guest, and after a stop and a start the VM has
// what it had.
func TestDevicesOfARunningVM(t *testing.T) {
	t.Parallel()
	p := &plugged{flight: takeOff(t)}
	p.godwit(t, "network", "create", otherNetwork, "--subnet", otherSubnet, "--gateway", "host-1")
	first := filepath.Join(p.Datastore, vmName+"-disk1.qcow2")

	p.add(t)
	if got, want := p.spec(t), "disk0:0 disk1:1 nic0:0 nic1:2"; got != want {
		t.Errorf("the record has %s, not %s", got, want)
	}
	p.still(t)
	here, there := p.here(t)
	p.move(t, here, there)
	p.still(t)
	p.healthy(t, there)

	t.Run("agent killed", func(t *testing.T) {
		killAgent(t, there)
		p.still(t)
	})
	t.Run("grown", func(t *testing.T) {
		p.godwit(t, "vm", "disk", "grow", vmName, "disk1", "--size", grownSize.String())
		disk, err := p.guest.Disk(step(t), p.disk.Name)
		if err != nil || disk.Size != int64(grownSize) {
			t.Errorf("the guest sees %+v, %v", disk, err)
		}
		p.disk = disk
	})
	t.Run("mended", func(t *testing.T) { p.mended(t, there) })
	p.move(t, there, here) // back
	p.still(t)

	t.Run("stopped and started", func(t *testing.T) {
		p.probes.Close()
		p.godwit(t, "vm", "stop", vmName)
		p.godwit(t, "vm", "start", vmName)
		p.again(t)
		p.still(t)
	})
	t.Run("taken away", func(t *testing.T) {
		p.godwit(t, "vm", "disk", "rm", vmName, "disk1", "--delete")
		p.godwit(t, "vm", "nic", "rm", vmName, "nic1")
		p.seen(t, false)
		if got, want := p.spec(t), "disk0:0 nic0:0"; got != want {
			t.Errorf("the record has %s, not %s", got, want)
		}
		if _, err := os.Stat(first); !os.IsNotExist(err) {
			t.Errorf("the image is still there: %v", err)
		}
		ports, err := here.Ports(step(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range ports {
			if port.ID == p.vm+"-1" {
				t.Errorf("the switch still has port %s", port.ID)
			}
		}
	})
	t.Run("and given again", func(t *testing.T) {
		p.add(t)
		p.still(t)
	})
}

// add plugs in a disk and a card, and lets the guest use both.
func (p *plugged) add(t *testing.T) {
	t.Helper()
	p.godwit(t, "vm", "disk", "add", vmName, "--size", addedSize.String())
	p.godwit(t, "vm", "nic", "add", vmName, otherNetwork)
	p.seen(t, true)
	var err error
	if p.disk, err = p.guest.WriteDisk(step(t), "vdb", 1<<20); err != nil {
		t.Fatal(err)
	}
	if p.disk.Size != int64(addedSize) {
		t.Errorf("the guest sees a disk of %d bytes", p.disk.Size)
	}
	if p.nic, err = p.guest.Net(step(t), "eth1"); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(p.nic.IP, "10.12.0.") {
		t.Errorf("the card has %+v", p.nic)
	}
}

// again finds the guest after a new boot.
func (p *plugged) again(t *testing.T) {
	t.Helper()
	ip, err := p.Hosts[0].WaitAddress(step(t), vmName)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.guest.Close() // of the guest that was
	if err := lab.Until(t.Context(), stepMax, func() error {
		p.guest, err = p.segment.Control(t.Context(), ip)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// mended leaves the VM as an agent would that is killed after it unplugged the devices and before it wrote that down: the next agent
// plugs them in again, as nobody was told that they are gone.
func (p *plugged) mended(t *testing.T, at *lab.Host) {
	t.Helper()
	before := p.info(t)
	if err := at.Down(); err != nil {
		t.Fatal(err)
	}
	if err := unplug(t, filepath.Join(at.VMDir(p.vm), "qmp.sock")); err != nil {
		t.Fatal(err)
	}
	if err := at.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	p.seen(t, true)
	p.still(t)
	p.sameProcess(t, before)
	if got := p.devicesOf(p.info(t)); got != p.devicesOf(before) {
		t.Errorf("the record has %s", got)
	}
}

func (p *plugged) devicesOf(vm *godwitv1.VM) string {
	return fmt.Sprint(vm.GetSpec().GetDisks(), vm.GetSpec().GetNics())
}

// unplug takes the disk and the card out of a QEMU whose monitor nobody holds.
func unplug(t *testing.T, socket string) error {
	t.Helper()
	ctx := step(t)
	conn, err := qmp.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	gone := conn.Subscribe(qmp.EventDeviceDeleted)
	for _, id := range []string{"vd1", "nic1"} {
		if err := conn.DeviceDel(ctx, id); err != nil {
			return err
		}
		for left := true; left; {
			select {
			case e := <-gone.C:
				left = e.Device() != id
			case <-ctx.Done():
				return fmt.Errorf("the guest keeps %s", id)
			}
		}
	}
	return conn.BlockdevDel(ctx, "disk1")
}
