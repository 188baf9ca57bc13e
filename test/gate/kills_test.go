package gate

import (
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// blow is something bad that is prepared early in a migration and done in one stroke later.
type blow func(t *testing.T, f *flight, source, target *lab.Host) (strike func() error)

// killRole kills a process of Godwit's own.
func killRole(role string, which func(source, target *lab.Host) *lab.Host) blow {
	return func(t *testing.T, _ *flight, source, target *lab.Host) func() error {
		t.Helper()
		pid, err := which(source, target).PID(step(t), role)
		if err != nil {
			t.Fatal(err)
		}
		return func() error { return syscall.Kill(pid, syscall.SIGKILL) }
	}
}

func sourceHost(source, _ *lab.Host) *lab.Host { return source }

func targetHost(_, target *lab.Host) *lab.Host { return target }

// signalQEMU sends a signal to the target's QEMU.
func signalQEMU(signal syscall.Signal) blow {
	return func(t *testing.T, f *flight, _, target *lab.Host) func() error {
		t.Helper()
		pids := target.QEMUs(f.vm)
		if len(pids) != 1 {
			t.Fatalf("%s has QEMU processes %v, not one", target.Name, pids)
		}
		return func() error { return syscall.Kill(pids[0], signal) }
	}
}

// cutStream cuts the connection that carries the memory.
func cutStream(t *testing.T, _ *flight, _, target *lab.Host) func() error {
	t.Helper()
	pid, err := target.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	wire, err := lab.MemoryStream(pid)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Cut
}

// The migrations that are struck. In pre-copy there must be time left; at the switchover there must be so much left to send, at
// a pause that nobody would allow in earnest, that a blow at its first sign comes long before its end.
var (
	slowCopy       = []string{"--bandwidth", "16M"}
	longSwitchover = []string{"--bandwidth", "32M", "--downtime-max", "2s"}
)

// aimAt is how much was sent when a blow is prepared: more than any call between agents carries.
const aimAt = 2 << 20

// strike begins a migration, prepares the blow in pre-copy and strikes when the migration is seen in the phase.
func (f *flight) strike(t *testing.T, source, target *lab.Host, at inventory.Phase, b blow) (id string) {
	t.Helper()
	flags := slowCopy
	if at != inventory.PreCopy {
		flags = longSwitchover
	}
	id = f.begin(t, source, target, flags...)
	var hit func() error
	struck := false
	err := source.WatchMigration(step(t), id, func(m *godwitv1.Migration) bool {
		status := m.GetStatus()
		if hit == nil && status.GetPhase() == inventory.PreCopy.String() && status.GetProgress().GetSent() > aimAt {
			hit = b(t, f, source, target)
		}
		if hit == nil || !reached(status.GetPhase(), at) {
			return false
		}
		if err := hit(); err != nil {
			t.Error(err)
		}
		struck = true
		t.Logf("struck in phase %s with %s to send", status.GetPhase(), inventory.Bytes(status.GetProgress().GetRemaining()))
		return true
	})
	if !struck {
		t.Fatalf("the blow came too late: %v", err)
	}
	return id
}

// reached reports whether the phase is the wanted one. A migration is released for a few milliseconds only, so what follows
// counts as well there.
func reached(phase string, want inventory.Phase) bool {
	switch {
	case phase == want.String():
		return true
	case want == inventory.Released:
		return phase == inventory.OnTarget.String() || phase == inventory.Completed.String()
	}
	return false
}

// The story: whatever dies in a migration before the release, the VM runs on where it was, and the next migration works.
// After the release it runs at the target.
func TestKills(t *testing.T) {
	t.Parallel()
	f := takeOff(t)
	cases := []struct {
		name string
		at   inventory.Phase
		blow blow
	}{
		{"target agent in pre-copy", inventory.PreCopy, killRole("agent", targetHost)},
		{"target qemu in pre-copy", inventory.PreCopy, signalQEMU(syscall.SIGKILL)},
		{"stream in pre-copy", inventory.PreCopy, cutStream},
		{"source agent in pre-copy", inventory.PreCopy, killRole("agent", sourceHost)},
		{"target agent at switchover", inventory.Switchover, killRole("agent", targetHost)},
		{"target qemu at switchover", inventory.Switchover, signalQEMU(syscall.SIGKILL)},
		{"stream at switchover", inventory.Switchover, cutStream},
		{"source agent at switchover", inventory.Switchover, killRole("agent", sourceHost)},
		{"target qemu hangs at switchover", inventory.Switchover, signalQEMU(syscall.SIGSTOP)},
		{"target agent at the release", inventory.Released, killRole("agent", targetHost)},
		{"source agent at the release", inventory.Released, killRole("agent", sourceHost)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			source, target := f.here(t)
			before := f.info(t)
			f.probes.Mark()
			id := f.strike(t, source, target, c.at, c.blow)
			m := f.end(t, source, id)
			stays, ends := source, inventory.Failed
			if c.at == inventory.Released {
				stays, ends = target, inventory.Completed
			}
			t.Logf("%s: %s; longest gap %v", m.GetStatus().GetPhase(), m.GetStatus().GetReason(), f.probes.Seen().Gap().Round(time.Millisecond))
			if phase := m.GetStatus().GetPhase(); phase != ends.String() {
				t.Errorf("the migration ended as %s, not as %s", phase, ends)
			}
			f.allUp(t)
			if stays == source {
				f.thrown(t, source, id)
			}
			f.healthy(t, stays)
			if stays == source {
				f.sameProcess(t, before)
			}
			f.moves(t)
		})
	}
}

// thrownLine is what an agent says of the frames that QEMU threw away, since it had stopped the guest by itself before the ports were held, in a migration that
// was aborted then (docs/decisions/0028). It takes an agent that gets no processor for a while.
var thrownLine = regexp.MustCompile(`frames for the guest may be lost: .* migration=(\S+) .*frames=(\d+|unknown)`)

// thrown takes into account what the source's agent says was thrown away: as many packets may be lost, and no more.
func (f *flight) thrown(t *testing.T, source *lab.Host, id string) {
	t.Helper()
	text, err := os.ReadFile(source.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	said := uint64(0)
	for _, m := range thrownLine.FindAllStringSubmatch(string(text), -1) {
		if n, err := strconv.ParseUint(m[2], 10, 64); m[1] == id && err == nil {
			said += n
		} else if m[1] == id {
			said = uint64(f.probes.Seen().Gap()/lab.ProbeEvery) + 1 // those sent while the guest stood
		}
	}
	if said == 0 {
		return
	}
	lost := f.probes.Settle(step(t)).Lost - f.lost
	t.Logf("%d packets were lost, and %d frames at most by the agent's count", lost, said)
	if lost <= said {
		f.lost += lost
	}
}
