package gate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/test/lab"
)

// The story: a guest with a running writer, a live TCP stream and a UDP probe goes to and fro ten times, and nobody notices.
func TestTenMigrations(t *testing.T) {
	f := takeOff(t)
	var descriptors []int
	for leg := range 10 {
		from, to := f.here(t)
		still := leg == 5
		if still {
			f.stillMove(t, from, to)
		} else {
			f.probes.Mark()
			m := f.move(t, from, to)
			r, seen := m.GetStatus().GetResult(), f.probes.Seen()
			t.Logf("%s -> %s: total %v, pause %v, udp gap %v, tcp gap %v, %d packets doubled", from.Name, to.Name, r.GetTotal().AsDuration(),
				r.GetStopToResume().AsDuration(), seen.UDPGap.Round(time.Millisecond), seen.TCPGap.Round(time.Millisecond), seen.Doubled)
		}
		f.healthy(t, to)
		f.pruned(t)
		if t.Failed() {
			return
		}
		descriptors = append(descriptors, f.descriptors(t))
	}
	// The first legs open what stays open: connections between agents, trunks.
	if first, last := slices.Max(descriptors[:4]), descriptors[9]; last > first+4 {
		t.Errorf("the agents' and switches' open files grow: %v", descriptors)
	}
	t.Run("a corrupted guest is found out", f.corruptionIsSeen)
}

// stillMove moves a guest whose writer has stopped: then even the versions of all pages must be the same.
func (f *flight) stillMove(t *testing.T, from, to *lab.Host) {
	t.Helper()
	if _, err := f.guest.Stop(step(t)); err != nil {
		t.Fatal(err)
	}
	before, err := f.memoryRight(step(t))
	if err != nil {
		t.Fatal(err)
	}
	if *corrupt {
		if _, err := f.guest.Corrupt(step(t), before.Pages/2); err != nil {
			t.Fatal(err)
		}
	}
	f.move(t, from, to)
	after, err := f.memoryRight(step(t))
	if err != nil {
		t.Fatal(err)
	}
	if before.SHA256 != after.SHA256 {
		t.Errorf("memory that nobody writes changed on its way: %s became %s", before.SHA256, after.SHA256)
	}
	f.write(t)
}

// pruned demands that the only lock record is that of the VM's generation.
func (f *flight) pruned(t *testing.T) {
	t.Helper()
	generation := f.info(t).GetRun().GetGeneration()
	if err := lab.Until(t.Context(), cleanMax, func() error {
		if got := f.locks(t); !slices.Equal(got, []uint64{generation}) {
			return fmt.Errorf("lock records of generations %d are there, and the VM has %d", got, generation)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// descriptors counts what the agents and switches have open.
func (f *flight) descriptors(t *testing.T) int {
	t.Helper()
	sum := 0
	for _, h := range f.Hosts {
		for _, role := range []string{"agent", "switch"} {
			pid, err := h.PID(step(t), role)
			if err != nil {
				t.Fatal(err)
			}
			n, err := lab.Descriptors(pid)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// corruptionIsSeen: a check that cannot fail proves nothing. One flipped bit must turn it red, and still after a migration.
func (f *flight) corruptionIsSeen(t *testing.T) {
	if _, err := f.guest.Stop(step(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.memoryRight(step(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.guest.Corrupt(step(t), 1234); err != nil {
		t.Fatal(err)
	}
	from, to := f.here(t)
	f.move(t, from, to)
	if sum, err := f.memoryRight(step(t)); err == nil || sum.Bad != 1 || sum.FirstBad != 1234 {
		t.Errorf("one bit of page 1234 was flipped and the check says: %v, %v", sum, err)
	}
}
