package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: three hosts with watchdogs. On one its agent stands still: it is replaced, and the VM never knew. Then the whole machine stands still, and
// on another host the warden alone: each time the watchdog resets the machine in time, and nothing that ran there is left. A machine that was
// reset comes back, in another boot, and arms its watchdog again; one whose warden is killed and back at once, or ended in order, is not reset.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 3, Watchdog: true})
	second, third := c.Hosts[1], c.Hosts[2]
	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	vms := map[*lab.Host]string{}
	for _, h := range []*lab.Host{second, third} {
		for _, args := range [][]string{
			{"vm", "create", "on-" + h.Name, "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M"}, {"vm", "start", "on-" + h.Name},
		} {
			if _, err := h.Godwit(step(t), args...); err != nil {
				t.Fatal(err)
			}
		}
		vms[h] = "on-" + h.Name
		armed(t, h)
	}

	t.Run("agent alone", func(t *testing.T) {
		vm, err := second.VM(step(t), vms[second])
		if err != nil {
			t.Fatal(err)
		}
		qemus := second.QEMUs(vm.GetId())
		old, err := second.PID(step(t), "agent")
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(old, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, err := second.WaitOther(step(t), "agent", old); err != nil {
			t.Fatal(err)
		}
		if now := second.QEMUs(vm.GetId()); !slices.Equal(now, qemus) || len(now) != 1 {
			t.Fatalf("the VM was in processes %v and is in %v", qemus, now)
		}
		// Its guest, which writes memory all the time, runs on.
		before := ran(t, qemus[0])
		if err := lab.Until(t.Context(), stepMax, func() error {
			vm, err := second.VM(t.Context(), vms[second])
			if err != nil {
				return err
			}
			if state := vm.GetStatus().GetState(); state != inventory.Running.String() || ran(t, qemus[0]) <= before+0.02 {
				return fmt.Errorf("vm %s is %s (%s), and ran for %.2f s, %.2f s before", vm.GetSpec().GetName(), state, vm.GetStatus().GetDetail(), ran(t, qemus[0]), before)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		armed(t, second)
	})
	t.Run("the whole machine", func(t *testing.T) {
		if err := second.Freeze(); err != nil {
			t.Fatal(err)
		}
		gone(t, second, host.Boottime())
		if err := second.Up(step(t)); err != nil {
			t.Fatal(err)
		}
		armed(t, second)
	})
	t.Run("warden killed and back", func(t *testing.T) {
		if err := third.KillWarden(); err != nil {
			t.Fatal(err)
		}
		if err := third.WaitUp(step(t)); err != nil {
			t.Fatal(err)
		}
		armed(t, third)
		if n := third.Resets(); n > 0 {
			t.Errorf("%s was reset, although its next warden was there in time", third.Name)
		}
	})
	t.Run("warden alone", func(t *testing.T) {
		warden, err := third.PID(step(t), "warden")
		if err != nil {
			t.Fatal(err)
		}
		if err := lab.Stop(step(t), warden); err != nil {
			t.Fatal(err)
		}
		gone(t, third, host.Boottime())
	})
	// The VM of the machine that was reset was started there again, and runs on without a warden.
	vm, err := second.VM(step(t), vms[second])
	if err != nil {
		t.Fatal(err)
	}
	left := second.QEMUs(vm.GetId())
	for _, h := range slices.Backward(c.Hosts) {
		if err := h.Down(); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(authority.Default().Watchdog + 500*time.Millisecond) // the time in which one that was left armed fires
	if now := second.QEMUs(vm.GetId()); vm.GetStatus().GetState() != inventory.Running.String() || len(left) != 1 || !slices.Equal(now, left) {
		t.Errorf("%s was %s in processes %v, and its host's end left %v", vms[second], vm.GetStatus().GetState(), left, now)
	}
	for _, h := range c.Hosts {
		if n := h.Resets(); n > 0 {
			t.Errorf("%s was reset %d times without a reason", h.Name, n)
		}
	}
}

// armed waits until the host's doctor says that its watchdog is armed: the first authority comes a moment after the first answer.
func armed(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		if check := one(t, h, "watchdog"); check.GetState() != "good" {
			return fmt.Errorf("%s: %v", h.Name, check)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// gone demands that the machine is reset in time when nothing feeds its watchdog from stood on, and that nothing is left of what ran there.
func gone(t *testing.T, h *lab.Host, stood time.Duration) {
	t.Helper()
	r, err := h.WaitReset(step(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s was reset %v after it stood still, and its last process was dead %v later", h.Name, (r.Fired - stood).Round(time.Millisecond), (r.Dead - r.Fired).Round(time.Millisecond))
	s := authority.Default()
	if r.Due > stood+s.Watchdog || r.Late() > s.Lease-s.Reset {
		t.Errorf("it was to be reset %v after it stood still, and was dead %v after that", r.Due-stood, r.Late())
	}
	if left := h.Processes(); len(left) > 0 {
		t.Errorf("processes %v outlive their machine", left)
	}
}

// ran returns the seconds of processor time that a process has had.
func ran(t *testing.T, pid int) float64 {
	t.Helper()
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return stat.CPUTime()
}
