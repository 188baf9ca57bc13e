package gate

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// storeAway is how long the store stands still: longer than VMs may run without it, and than it takes the warden to end what does not stop.
const storeAway = 6500 * time.Millisecond

// The story: the host that has the store stands still for a few seconds, with all that Godwit runs there. On another host the VM is stopped in
// time, and not ended; when the store answers again it runs on in its process, its memory and its TCP connection live on, and whoever
// looks is told why it stood. A VM on a datastore that no other host has does not notice.
func TestStoreStandsStill(t *testing.T) {
	t.Parallel()
	f := land(t)
	host := f.Hosts[1]
	before := f.info(t)
	own := f.small(t, host, localName, "own")
	f.small(t, host, pausedName, "shared")
	if _, err := host.Godwit(step(t), "vm", "pause", pausedName); err != nil {
		t.Fatal(err)
	}
	f.small(t, host, hungName, "shared")
	hung := f.hang(t, host, hungName)
	away := restart{Host: f.Hosts[0]}.pids(t, everyone...)
	began := time.Now()
	f.stopAll(t, away)
	stood := f.standstill(t, storeAway)
	f.goOn(t, away)
	// The last renewal was sent up to a second before the store stood still.
	if after := stood.Sub(began); stood.IsZero() || after < 2500*time.Millisecond || after > 4900*time.Millisecond {
		t.Errorf("the guest stood %v after the store did, not 3 to 4 seconds after", after)
	}
	f.forgive(t)
	t.Logf("the guest stood %v after the store, and ran on %v after it began", stood.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	f.sameProcess(t, before)
	f.healthy(t, host)
	f.told(t, host, "", "host.isolated", "host.recovered", "vm.paused", "vm.resumed")
	f.unmoved(t, host, own)
	f.startedAgain(t, host, hung)
	if vm, err := host.VM(step(t), pausedName); err != nil || vm.GetStatus().GetState() != inventory.Paused.String() || vm.GetStatus().GetDetail() != "on request" {
		t.Errorf("a VM that its user has paused is %s (%s), %v", vm.GetStatus().GetState(), vm.GetStatus().GetDetail(), err)
	}

	t.Run("and the agent dies", func(t *testing.T) {
		agent := restart{Host: host}.pids(t, "agent")[0]
		f.stopAll(t, away)
		if err := syscall.Kill(agent, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if stood := f.standstill(t, storeAway); stood.IsZero() {
			t.Error("the guest runs without authority")
		}
		f.goOn(t, away)
		f.allUp(t)
		f.forgive(t)
		f.sameProcess(t, before)
		f.healthy(t, host)
	})
}

// upgraded ends the host in order and starts it again, with its VM running on.
func (f *flight) upgraded(t *testing.T, host *lab.Host, before *godwitv1.VM) {
	t.Helper()
	if r := f.renewal(t, host); r.Fencing != inventory.FencedByWatchdog || r.Lease > 10*time.Second {
		t.Errorf("before, the store has %+v", r)
	}
	if err := host.Down(); err != nil {
		t.Fatal(err)
	}
	if r := f.renewal(t, host); r.Fencing != inventory.FencedByNobody || r.Lease != time.Minute {
		t.Errorf("while its VMs run on without anybody, the store has %+v", r)
	}
	if err := host.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	f.recorded(t, host)
	f.sameProcess(t, before)
	if n := host.Resets(); n > 0 {
		t.Errorf("its watchdog has fired %d times", n)
	}
}

// renewal reads a host's last renewal.
func (f *flight) renewal(t *testing.T, h *lab.Host) inventory.Renewal {
	t.Helper()
	identity, err := peer.Load(filepath.Join(f.Hosts[0].Data, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(step(t), store.Config{Endpoints: []string{"https://" + f.Hosts[0].Address + ":2379"}, TLS: identity.StoreTLS()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Renewals(step(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if string(r.Host) == h.Name {
			return r
		}
	}
	t.Fatalf("no renewal of %s among %v", h.Name, all)
	return inventory.Renewal{}
}

// stopAll stops the processes.
func (f *flight) stopAll(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
}

// goOn lets them go on, the warden, which is the first of them, last: it must not see the others stopped.
func (f *flight) goOn(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range slices.Backward(pids) {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
}

// land is takeOff with the guest on the host that does not have the store.
func land(t *testing.T) *flight {
	t.Helper()
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	host, err := f.AddHost(step(t), "shared="+f.Datastore, "own="+filepath.Join(f.Dir, "own")+",local")
	if err != nil {
		t.Fatal(err)
	}
	f.board(t, host)
	return f
}

// The VMs beside the guest: one that writes only to a datastore of its host's own, and one that its user has paused.
const (
	localName  = "local-1"
	pausedName = "paused-1"
	hungName   = "hung-1"
)

// hang stops the VM's QEMU, so that it hears nothing, and returns the VM.
func (f *flight) hang(t *testing.T, h *lab.Host, name string) *godwitv1.VM {
	t.Helper()
	vm, err := h.VM(step(t), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(int(vm.GetStatus().GetPid()), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return vm
}

// startedAgain demands that the VM that could not be stopped was ended, and runs anew.
func (f *flight) startedAgain(t *testing.T, h *lab.Host, before *godwitv1.VM) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		vm, err := h.VM(t.Context(), before.GetId())
		if err != nil {
			return err
		}
		s := vm.GetStatus()
		if s.GetState() != inventory.Running.String() || s.GetPid() == before.GetStatus().GetPid() || vm.GetRun().GetGeneration() <= before.GetRun().GetGeneration() {
			return fmt.Errorf("it is %s (%s) in process %d as generation %d", s.GetState(), s.GetDetail(), s.GetPid(), vm.GetRun().GetGeneration())
		}
		return nil
	}); err != nil {
		t.Errorf("a VM that did not stop was not ended and started again: %v", err)
	}
	f.told(t, h, before.GetId(), "vm.crashed", "vm.restarted")
}

// small starts a VM without a system and returns it.
func (f *flight) small(t *testing.T, h *lab.Host, name, datastore string) *godwitv1.VM {
	t.Helper()
	if _, err := h.Godwit(step(t), "vm", "create", name, "--memory", "64M", "--disk", "size=16M", "--datastore", datastore, "--start"); err != nil {
		t.Fatal(err)
	}
	vm, err := h.VM(step(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// unmoved demands that the VM has run all the time in its process.
func (f *flight) unmoved(t *testing.T, h *lab.Host, before *godwitv1.VM) {
	t.Helper()
	vm, err := h.VM(step(t), localName)
	if err != nil {
		t.Fatal(err)
	}
	was, is := before.GetStatus(), vm.GetStatus()
	if is.GetState() != inventory.Running.String() || is.GetPid() != was.GetPid() || !is.GetSince().AsTime().Equal(was.GetSince().AsTime()) {
		t.Errorf("a VM on storage that arbitrates is %s (%s) since %v in process %d; it was %s since %v in process %d", is.GetState(), is.GetDetail(),
			is.GetSince().AsTime(), is.GetPid(), was.GetState(), was.GetSince().AsTime(), was.GetPid())
	}
	f.told(t, h, vm.GetId(), "vm.started")
	if seen := f.events(t, h, vm.GetId()); seen["vm.paused"] {
		t.Errorf("it was stopped: its events are %v", seen)
	}
}

// standstill watches the stream for that long and returns when it stood, the zero time if it did not.
func (f *flight) standstill(t *testing.T, d time.Duration) time.Time {
	t.Helper()
	const quiet = 500 * time.Millisecond // the stream has a few pieces in this time
	end := time.After(d)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	bytes, last := uint64(0), time.Now()
	for {
		select {
		case now := <-tick.C:
			seen := f.probes.Seen()
			if seen.Err != nil {
				t.Fatalf("tcp stream: %v", seen.Err)
			}
			if seen.Bytes != bytes {
				bytes, last = seen.Bytes, now
			}
		case <-end:
			if time.Since(last) < quiet {
				return time.Time{}
			}
			return last
		}
	}
}

// events returns the kinds of the events about an object, or about all of them.
func (f *flight) events(t *testing.T, h *lab.Host, object string) map[string]bool {
	t.Helper()
	out, err := h.Godwit(step(t), "event", "ls", "--json", "--object", object)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		e := &godwitv1.Event{}
		if err := protojson.Unmarshal([]byte(line), e); err != nil {
			t.Fatal(err)
		}
		seen[e.GetKind()] = true
	}
	return seen
}

// told demands that there are events of these kinds about an object, or about all of them.
func (f *flight) told(t *testing.T, h *lab.Host, object string, kinds ...string) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		seen := f.events(t, h, object)
		for _, kind := range kinds {
			if !seen[kind] {
				return fmt.Errorf("no event %s", kind)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// The story: a host is upgraded under its VM, whose watchdog does not mind. Then it loses its power and is back before anybody thinks of its VMs. It starts them again by itself, and says why. Then it
// loses its power again, and another host starts them; when it is back it leaves them alone.
func TestPowerIsLost(t *testing.T) {
	t.Parallel()
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 2, Watchdog: true})}
	host := f.Hosts[1]
	if _, err := host.LinuxVM(step(t), vmName, vmMemory, 16*inventory.MiB); err != nil {
		t.Fatal(err)
	}
	before := f.info(t)
	f.vm = before.GetId()
	f.upgraded(t, host, before)
	if err := host.PullPlug(); err != nil {
		t.Fatal(err)
	}
	if left := host.QEMUs(f.vm); len(left) > 0 {
		t.Fatalf("processes %v outlived their machine", left)
	}
	if err := host.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	f.recorded(t, host)
	if was, is := before.GetRun().GetGeneration(), f.info(t).GetRun().GetGeneration(); is <= was {
		t.Errorf("it was generation %d and is %d", was, is)
	}
	f.clean(t, host)
	f.told(t, host, f.vm, "vm.restarted")

	t.Run("and is lost for good", func(t *testing.T) {
		before, began := f.info(t), time.Now()
		if err := host.PullPlug(); err != nil {
			t.Fatal(err)
		}
		f.recorded(t, f.Hosts[0])
		t.Logf("it runs on another host %v after its own lost its power", time.Since(began).Round(time.Millisecond))
		after := f.info(t)
		if after.GetRun().GetGeneration() <= before.GetRun().GetGeneration() {
			t.Errorf("generation %d became %d", before.GetRun().GetGeneration(), after.GetRun().GetGeneration())
		}
		if all := f.locks(t); len(all) == 0 || all[len(all)-1] != after.GetRun().GetGeneration() {
			t.Errorf("lock records %v of generation %d", all, after.GetRun().GetGeneration())
		}
		if err := host.Up(step(t)); err != nil {
			t.Fatal(err)
		}
		f.clean(t, f.Hosts[0])
		f.recorded(t, f.Hosts[0])
		f.sameProcess(t, after)
	})
}
