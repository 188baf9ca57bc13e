package gate

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// storeAway is how long the store stands still: longer than VMs may run without it, and than it takes the warden to end what does not stop.
const storeAway = 6500 * time.Millisecond

// The story: the host that has the store stands still for a few seconds, with all that Godwit runs there. On another host the VM is stopped in
// time, and not ended; when the store answers again it runs on in its process, its memory and its TCP connection live on, and whoever
// looks is told why it stood.
func TestStoreStandsStill(t *testing.T) {
	f := land(t)
	host := f.Hosts[1]
	before := f.info(t)
	away := restart{Host: f.Hosts[0]}.pids(t, everyone...)
	began := time.Now()
	for _, pid := range away {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	stood := f.standstill(t, storeAway)
	for _, pid := range slices.Backward(away) { // the warden last: it must not see the others stopped
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	// The last renewal was sent up to a second before the store stood still.
	if after := stood.Sub(began); stood.IsZero() || after < 2500*time.Millisecond || after > 4900*time.Millisecond {
		t.Errorf("the guest stood %v after the store did, not 3 to 4 seconds after", after)
	}
	f.forgive(t)
	t.Logf("the guest stood %v after the store, and ran on %v after it began", stood.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	f.sameProcess(t, before)
	f.healthy(t, host)
	f.told(t, host, "host.isolated", "host.recovered", "vm.paused", "vm.resumed")

	// What nobody had stopped runs; what somebody had stays as it is.
	if _, err := host.Godwit(step(t), "vm", "pause", vmName); err != nil {
		t.Fatal(err)
	}
	f.blink(t, away)
	if vm := f.info(t); vm.GetStatus().GetState() != inventory.Paused.String() || vm.GetStatus().GetDetail() != "on request" {
		t.Errorf("a VM that was paused by its user is %s (%s)", vm.GetStatus().GetState(), vm.GetStatus().GetDetail())
	}
	if _, err := host.Godwit(step(t), "vm", "resume", vmName); err != nil {
		t.Fatal(err)
	}
	f.forgive(t)
	f.healthy(t, host)
}

// blink stops the processes for as long as it takes to stop VMs, and waits until all hosts answer again.
func (f *flight) blink(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(4500 * time.Millisecond) // the length of the pause is the story
	for _, pid := range slices.Backward(pids) {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	f.allUp(t)
}

// land is takeOff with the guest on the host that does not have the store.
func land(t *testing.T) *flight {
	t.Helper()
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	f.board(t, f.Hosts[1])
	return f
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

// told demands that there are events of these kinds.
func (f *flight) told(t *testing.T, h *lab.Host, kinds ...string) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		out, err := h.Godwit(t.Context(), "event", "ls", "--json")
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for line := range strings.Lines(string(out)) {
			e := &godwitv1.Event{}
			if err := protojson.Unmarshal([]byte(line), e); err != nil {
				return err
			}
			seen[e.GetKind()] = true
		}
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

// The story: the VM's host loses its power and is back before anybody thinks of its VMs. It starts them again by itself, and says why.
func TestPowerIsBack(t *testing.T) {
	f := &flight{Cluster: startCluster(t, lab.Options{Hosts: 2, Watchdog: true})}
	host := f.Hosts[1]
	if _, err := host.LinuxVM(step(t), vmName, vmMemory, 16*inventory.MiB); err != nil {
		t.Fatal(err)
	}
	before := f.info(t)
	f.vm = before.GetId()
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
	f.told(t, host, "vm.restarted")
}
