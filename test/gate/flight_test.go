package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The guest of most tests.
const (
	vmName    = "web-1"
	vmMemory  = 256 * inventory.MiB
	dirtySet  = 32 << 20
	dirtyRate = 4 << 20
)

// flight is a cluster with a Linux guest that writes memory, and whoever watches it.
type flight struct {
	*lab.Cluster

	vm      string // its id
	ip      string
	segment *lab.Segment
	guest   *control.Client
	probes  *lab.Probes
	boot    string
	uptime  int64
	bytes   uint64 // of the TCP stream, when last looked at
	lost    uint64 // packets that a test took into account
}

// takeOff starts a cluster of two hosts with a guest under watch on the first.
func takeOff(t *testing.T) *flight {
	t.Helper()
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	f.board(t, f.Hosts[0])
	return f
}

// board starts the guest on the host and watches it.
func (f *flight) board(t *testing.T, first *lab.Host) {
	t.Helper()
	ctx := step(t)
	var err error
	if f.ip, err = first.LinuxVM(ctx, vmName, vmMemory, 16*inventory.MiB); err != nil {
		t.Fatal(err)
	}
	vm, err := first.VM(ctx, vmName)
	if err != nil {
		t.Fatal(err)
	}
	f.vm = vm.GetId()
	if f.segment, err = first.JoinSegment(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.segment.Close(); err != nil {
			t.Error(err)
		}
	})
	if f.guest, err = f.segment.Control(ctx, f.ip); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.guest.Close() }) // nothing is left to say
	f.write(t)
	status, err := f.guest.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.boot, f.uptime = status.Boot, status.UptimeMS
	if f.probes, err = f.segment.Watch(ctx, f.ip); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.probes.Close)
}

// write makes the guest write its memory.
func (f *flight) write(t *testing.T) {
	t.Helper()
	if _, err := f.guest.Dirty(step(t), control.DirtyOptions{Rate: dirtyRate, Set: dirtySet}); err != nil {
		t.Fatal(err)
	}
}

// here returns the VM's host and the other one.
func (f *flight) here(t *testing.T) (here, there *lab.Host) {
	t.Helper()
	vm := f.info(t)
	for i, h := range f.Hosts {
		if h.Name == vm.GetRun().GetOwner() {
			return h, f.Hosts[1-i]
		}
	}
	t.Fatalf("the VM's owner is %q", vm.GetRun().GetOwner())
	return nil, nil
}

func (f *flight) info(t *testing.T) *godwitv1.VM {
	t.Helper()
	vm, err := f.Hosts[0].VM(step(t), vmName)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// begin records a migration at the VM's host and returns its id.
func (f *flight) begin(t *testing.T, from, to *lab.Host, flags ...string) string {
	t.Helper()
	return begin(t, vmName, from, to, flags...)
}

// begin records a migration of the VM at its host and returns its id.
func begin(t *testing.T, vm string, from, to *lab.Host, flags ...string) string {
	t.Helper()
	args := slices.Concat([]string{"vm", "migrate", vm, "--to", to.Name, "--detach", "--json"}, flags)
	out, err := from.Godwit(step(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	m := &godwitv1.Migration{}
	if err := protojson.Unmarshal(out, m); err != nil {
		t.Fatal(err)
	}
	return m.GetId()
}

// end waits for the migration's end as the host's command line tells it, also when agents come and go meanwhile.
func (f *flight) end(t *testing.T, h *lab.Host, id string) *godwitv1.Migration {
	t.Helper()
	m := &godwitv1.Migration{}
	if err := lab.Until(t.Context(), stepMax, func() error {
		if err := h.Read(t.Context(), m, "migration", "show", id); err != nil {
			return err
		}
		switch m.GetStatus().GetPhase() {
		case inventory.Completed.String(), inventory.Failed.String(), inventory.Canceled.String():
			return nil
		}
		return fmt.Errorf("migration %s does not end: it is %s (%s)", id, m.GetStatus().GetPhase(), m.GetStatus().GetReason())
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// move migrates the VM as a user would and demands that it arrives.
func (f *flight) move(t *testing.T, from, to *lab.Host) *godwitv1.Migration {
	t.Helper()
	before := f.info(t).GetRun().GetGeneration()
	if _, err := from.Godwit(step(t), "vm", "migrate", vmName, "--to", to.Name); err != nil {
		t.Fatal(err)
	}
	all := &godwitv1.ListMigrationsResponse{}
	if err := to.Read(step(t), all, "migration", "ls"); err != nil {
		t.Fatal(err)
	}
	if len(all.GetMigrations()) == 0 {
		t.Fatal("the migration left no record")
	}
	m := all.GetMigrations()[0]
	if phase := m.GetStatus().GetPhase(); phase != inventory.Completed.String() {
		t.Errorf("the migration's record says %s: %s", phase, m.GetStatus().GetReason())
	}
	if now := f.info(t).GetRun().GetGeneration(); now != before+1 {
		t.Errorf("generation %d became %d with the move, not %d", before, now, before+1)
	}
	return m
}

// moves demands that a migration works now, whatever happened before.
func (f *flight) moves(t *testing.T) {
	t.Helper()
	from, to := f.here(t)
	f.move(t, from, to)
	f.healthy(t, to)
	f.pruned(t)
}

// allUp waits until all hosts answer.
func (f *flight) allUp(t *testing.T) {
	t.Helper()
	for _, h := range f.Hosts {
		if err := h.WaitUp(step(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// sameProcess demands that the VM is in the process that it was in before.
func (f *flight) sameProcess(t *testing.T, before *godwitv1.VM) {
	t.Helper()
	if was, is := before.GetStatus().GetPid(), f.info(t).GetStatus().GetPid(); was != is || was == 0 {
		t.Errorf("the VM's process was %d and is %d", was, is)
	}
}

// memoryRight is the check that a corrupted guest must not pass.
func (f *flight) memoryRight(ctx context.Context) (control.Checksum, error) {
	sum, err := f.guest.Checksum(ctx)
	if err == nil && !sum.OK {
		err = errors.New("the guest's memory is wrong: " + sum.String())
	}
	return sum, err
}

// healthy demands that the guest lives on at the host and that nothing of it was lost, and that nothing is left elsewhere.
func (f *flight) healthy(t *testing.T, at *lab.Host) {
	t.Helper()
	f.recorded(t, at)
	status, err := f.guest.Status(step(t))
	if err != nil {
		t.Fatal(err)
	}
	if status.Boot != f.boot {
		t.Errorf("the guest was restarted: boot %s became %s", f.boot, status.Boot)
	}
	if status.UptimeMS <= f.uptime {
		t.Errorf("the guest's uptime went from %d ms to %d ms", f.uptime, status.UptimeMS)
	}
	f.uptime = status.UptimeMS
	if _, err := f.memoryRight(step(t)); err != nil {
		t.Error(err)
	}
	seen := f.probes.Settle(step(t))
	if seen.Err != nil {
		t.Errorf("tcp stream: %v", seen.Err)
	}
	if seen.Bytes <= f.bytes {
		t.Errorf("tcp stream: no byte came after the first %d", f.bytes)
	}
	f.bytes = seen.Bytes
	if seen.Lost > f.lost {
		t.Errorf("%d packets were lost", seen.Lost-f.lost)
		f.lost = seen.Lost
	}
	f.clean(t, at)
}

// recorded demands that the store and the host's agent agree that the VM runs there.
func (f *flight) recorded(t *testing.T, at *lab.Host) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		vm, err := f.Hosts[0].VM(t.Context(), vmName)
		if err != nil {
			return err
		}
		state, run := vm.GetStatus().GetState(), vm.GetRun()
		if state != inventory.Running.String() || run.GetOwner() != at.Name || run.GetHeir().GetHost() != "" {
			return fmt.Errorf("%s is %s (%s) on %s, heir %q, not running on %s alone", vmName, state, vm.GetStatus().GetDetail(),
				run.GetOwner(), run.GetHeir().GetHost(), at.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// clean demands that the VM is on one host only, and nothing of it on the others. What a host still has to do about it after a
// migration's end is given its time.
func (f *flight) clean(t *testing.T, at *lab.Host) {
	t.Helper()
	if err := lab.Until(t.Context(), cleanMax, func() error {
		var wrong []string
		for _, h := range f.Hosts {
			if h != at {
				wrong = append(wrong, h.Leftovers(t.Context(), f.vm)...)
				continue
			}
			if pids := h.QEMUs(f.vm); len(pids) != 1 {
				wrong = append(wrong, fmt.Sprintf("%s has QEMU processes %v for one VM", h.Name, pids))
			}
			ports, err := h.Ports(t.Context())
			if err != nil {
				return err
			}
			for _, p := range ports {
				if p.Mode != vnet.ModeNormal {
					wrong = append(wrong, fmt.Sprintf("%s has port %s in mode %s", h.Name, p.ID, p.Mode))
				}
			}
		}
		if len(wrong) > 0 {
			return errors.New(strings.Join(wrong, "; "))
		}
		return nil
	}); err != nil {
		t.Errorf("left behind: %v", err)
	}
}

// cleanMax bounds how long after a migration's end its traces may stay: a switch port lives on for its last forwarded frames.
const cleanMax = 15 * time.Second

// locks returns the generations of the VM's lock records on the shared datastore, lowest first.
func (f *flight) locks(t *testing.T) []uint64 {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(f.Datastore, "locks", f.vm+".lock.*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []uint64
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // pruned this moment
		}
		var record struct{ Generation uint64 }
		if err := json.Unmarshal(text, &record); err != nil {
			t.Errorf("lock record %s: %v", path, err)
		}
		all = append(all, record.Generation)
	}
	slices.Sort(all)
	return all
}
