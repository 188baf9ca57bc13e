package gate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// replacedMax is how soon a leader that has died must have a successor.
const replacedMax = 5 * time.Second

// The story: the host that leads the cluster, has a member of its store, and runs a VM, loses its power. Another one leads, fences it when its watchdog must have reset
// it, and the VM starts once, with a later generation, on a third. The dead host comes back, and the VM is not its any more.
func TestHostDies(t *testing.T) {
	t.Parallel()
	f := &failing{Cluster: startCluster(t, lab.Options{Hosts: 3, Watchdog: true})}
	f.open(t)
	for _, h := range f.Hosts {
		armed(t, h)
	}
	lost := f.leader(t)
	before := f.create(t, lost)

	died := time.Now()
	if err := lost.PullPlug(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		h, err := f.store.Leader(t.Context())
		if err == nil && string(h) == lost.Name {
			err = fmt.Errorf("%q leads", h)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(died); took > replacedMax {
		t.Errorf("the next leader came after %v, more than %v", took, replacedMax)
	} else {
		t.Logf("the next leader came after %v", took.Round(time.Millisecond))
	}
	now, at := f.restarted(t, before, lost)
	t.Logf("the VM has a process on %s %v after its host died", at.Name, time.Since(died).Round(time.Millisecond))
	if why := now.GetPlace().GetRestart().GetWhy(); !strings.Contains(why, "its watchdog has reset it") {
		t.Errorf("why it was restarted: %q", why)
	}
	f.back(t, lost, now)
}

// The story: a host without a watchdog dies. Nobody can know whether its VMs do, so its VM is blocked, and whoever looks is told so. An admin looks and
// says that it is dead: the VM starts once, elsewhere. The dead host comes back, and the VM is not its any more.
func TestHostCannotBeProvenDead(t *testing.T) {
	t.Parallel()
	f := &failing{Cluster: startCluster(t, lab.Options{Hosts: 3})}
	f.open(t)
	first, lost := f.Hosts[0], f.Hosts[2]
	before := f.create(t, lost)
	if err := lost.PullPlug(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		vm, err := first.VM(t.Context(), "web")
		if err != nil {
			return err
		}
		if why := vm.GetPlace().GetBlocked(); !strings.HasPrefix(why, "host-3 cannot be proven dead") {
			return fmt.Errorf("blocked: %q", why)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"vm ls", "host ls", "vm info web", "host info host-3"} {
		out, err := first.Godwit(step(t), words(args)...)
		if err != nil || !strings.Contains(string(out), "blocked") {
			t.Errorf("%s does not say that it is blocked: %v\n%s", args, err, out)
		}
	}
	if _, err := first.Godwit(step(t), words("host confirm-dead host-3 --yes")...); err != nil {
		t.Fatal(err)
	}
	now, _ := f.restarted(t, before, lost)
	if why := now.GetPlace().GetRestart().GetWhy(); !strings.Contains(why, "has confirmed that it is dead") {
		t.Errorf("why it was restarted: %q", why)
	}
	f.back(t, lost, now)
}

// failing is a cluster one of whose hosts dies.
type failing struct {
	*lab.Cluster

	store *store.Store
}

// open opens the cluster's store, as a host does, when every host has a member of it: a store of two would stop with either.
func (f *failing) open(t *testing.T) {
	t.Helper()
	id, err := peer.Load(filepath.Join(f.Hosts[0].Data, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	waitMembers(t, f.Hosts[0], "host-1", "host-2", "host-3")
	var endpoints []string
	for _, h := range f.Hosts {
		endpoints = append(endpoints, "https://"+h.Address+":2379")
	}
	f.store, err = store.Open(step(t), store.Config{Endpoints: endpoints, TLS: id.StoreTLS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.store.Close() })
}

// leader returns the host that leads.
func (f *failing) leader(t *testing.T) *lab.Host {
	t.Helper()
	var found *lab.Host
	if err := lab.Until(t.Context(), stepMax, func() error {
		leader, err := f.store.Leader(t.Context())
		if err != nil {
			return err
		}
		for _, h := range f.Hosts {
			if string(leader) == h.Name {
				found = h
				return nil
			}
		}
		return fmt.Errorf("%q leads", leader)
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// create starts a VM on the host and returns it when it runs.
func (f *failing) create(t *testing.T, h *lab.Host) *godwitv1.VM {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"vm create web --memory 48M --firmware tiny.rom --disk size=16M", "vm start web"} {
		if _, err := h.Godwit(step(t), words(args)...); err != nil {
			t.Fatal(err)
		}
	}
	f.runs(t, h)
	vm, err := h.VM(step(t), "web")
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// runs waits until the VM's host says that it runs there.
func (f *failing) runs(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		vm, err := h.VM(t.Context(), "web")
		if err == nil && (vm.GetStatus().GetState() != inventory.Running.String() || vm.GetStatus().GetHost() != h.Name) {
			err = fmt.Errorf("it is %s on %s: %s", vm.GetStatus().GetState(), vm.GetStatus().GetHost(), vm.GetStatus().GetDetail())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// restarted waits until the VM lives on another host than the lost one, and demands that it is there once, by the generation that the leader gave.
func (f *failing) restarted(t *testing.T, before *godwitv1.VM, lost *lab.Host) (*godwitv1.VM, *lab.Host) {
	t.Helper()
	var at *lab.Host
	var vm *godwitv1.VM
	if err := lab.Until(t.Context(), stepMax, func() error {
		for _, h := range f.Hosts {
			if h == lost || len(h.QEMUs(before.GetId())) == 0 {
				continue
			}
			at = h
		}
		if at == nil {
			return errors.New("no QEMU of the VM is anywhere")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	f.runs(t, at)
	var all []string
	for _, h := range f.Hosts {
		for range h.QEMUs(before.GetId()) {
			all = append(all, h.Name)
		}
	}
	if len(all) != 1 || all[0] != at.Name {
		t.Errorf("it runs on %s and has QEMUs on %v", at.Name, all)
	}
	vm, err := at.VM(step(t), "web")
	if err != nil {
		t.Fatal(err)
	}
	// The leader gave it away once, and left out the number that a migration's target would have had. Each try of the new host to start it takes a generation of its own.
	next := before.GetRun().GetGeneration() + 2
	if vm.GetRun().GetOwner() != at.Name || vm.GetRun().GetGeneration() < next || vm.GetPlace().GetRestart().GetGeneration() != next ||
		vm.GetPlace().GetRestarts() != 1 || vm.GetPlace().GetBlocked() != "" {
		t.Errorf("on %s: %v %v, was %v", at.Name, vm.GetRun(), vm.GetPlace(), before.GetRun())
	}
	return vm, at
}

// back starts the dead host again, and demands that it is one of the cluster again and that the VM stays where it is, once.
func (f *failing) back(t *testing.T, lost *lab.Host, vm *godwitv1.VM) {
	t.Helper()
	if err := lost.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		out, err := lost.Godwit(t.Context(), "host", "ls")
		for line := range strings.Lines(string(out)) {
			if fields := strings.Fields(line); len(fields) > 2 && fields[0] == lost.Name && fields[2] == "up" {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("not up:\n%s", out))
	}); err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, h := range f.Hosts {
		running += len(h.QEMUs(vm.GetId()))
	}
	now, err := lost.VM(step(t), "web")
	if err != nil {
		t.Fatal(err)
	}
	if here := lost.QEMUs(vm.GetId()); len(here) != 0 || running != 1 || now.GetRun().GetOwner() != vm.GetRun().GetOwner() || now.GetRun().GetGeneration() != vm.GetRun().GetGeneration() {
		t.Errorf("with %s back: %d processes, %v of them there, %v, was %v", lost.Name, running, here, now.GetRun(), vm.GetRun())
	}
	events, err := f.store.Events(step(t))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]int{}
	for _, e := range events {
		if e.Object == lost.Name || e.Object == vm.GetId() {
			told[e.Kind]++
		}
	}
	if told["host.fenced"] != 1 || told["vm.reassigned"] != 1 || told["host.back"] != 1 {
		t.Errorf("events %v", told)
	}
}
