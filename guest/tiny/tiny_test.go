package tiny_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/guest/internal/rig"
	"github.com/godwit-vm/godwit/guest/tiny"
)

const qemu = "qemu-system-x86_64"

func TestPayloadsAreWhatTheSourcesSay(t *testing.T) {
	out := t.TempDir()
	said, err := exec.Command("go", "run", "./assemble", "-o", out).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, name := range []string{"heartbeat.bin", "checked.bin", "long.bin", "idle.bin", "writer.bin"} {
		kept, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(kept, made) {
			t.Errorf("%s differs from its source; run go generate ./guest/tiny and commit the result", name)
		}
	}
}

func TestFirstHeartbeatComesWithin300Milliseconds(t *testing.T) {
	for _, machine := range []string{"q35", "pc", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			best := rig.WaitMax
			for range 5 { // the machine may be busy: what the guest can do is its best
				m := start(t, qemu, tiny.Heartbeat(tiny.Options{}), "-machine", machine)
				if ticks := m.heartbeat(); ticks != 0 {
					t.Fatalf("the first heartbeat says %d ticks", ticks)
				}
				best = min(best, time.Since(m.Started))
				m.Do("quit", nil)
			}
			t.Logf("first heartbeat after %v", best.Round(time.Millisecond))
			if best > 300*time.Millisecond {
				t.Errorf("first heartbeat after %v at best of five, want 300ms", best)
			}
		})
	}
}

func TestHeartbeatsCountTicksAndGoOnAfterMigration(t *testing.T) {
	rom := tiny.Heartbeat(tiny.Options{Rate: 10, Fill: 256})
	source := start(t, qemu, rom, "-machine", "q35")
	var last uint32
	for want := range uint32(5) {
		if last = source.heartbeat(); last != 10*want {
			t.Fatalf("heartbeat %d says %d ticks, want %d", want, last, 10*want)
		}
	}
	target := source.migrate()
	for range 3 {
		next := target.heartbeat()
		if next <= last {
			t.Fatalf("after the migration the guest counts %d ticks, before it was at %d", next, last)
		}
		last = next
	}
}

func TestDigitOnCOM1StartsAndStopsWriting(t *testing.T) {
	m := start(t, qemu, tiny.Heartbeat(tiny.Options{}), "-machine", "q35")
	first := func() string { // the word at the start of the working set: the tick of its last write
		m.heartbeat()
		m.heartbeat()
		dump := filepath.Join(t.TempDir(), "page")
		m.Do("pmemsave", map[string]any{"val": 2 << 20, "size": 4, "filename": dump})
		word, err := os.ReadFile(dump)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", word)
	}
	send := func(digit string) {
		if _, err := m.COM1.Write([]byte(digit)); err != nil {
			t.Fatal(err)
		}
		m.heartbeat()
		m.heartbeat()
	}
	if word := first(); word != "00000000" {
		t.Fatalf("an idle guest wrote %s", word)
	}
	send("9")
	running := first()
	if running == "00000000" {
		t.Fatal("asked to write, the guest wrote nothing")
	}
	if again := first(); again == running {
		t.Fatal("asked to write on, the guest stopped")
	}
	send("x") // no digit: nothing changes
	if again := first(); again == running {
		t.Fatal("a letter stopped the guest")
	}
	send("0")
	stopped := first()
	if again := first(); again != stopped {
		t.Fatalf("asked to stop, the guest still wrote %s after %s", again, stopped)
	}
}

func TestCheckedGuestFindsNoLossInGoodQEMU(t *testing.T) {
	rom := tiny.Checked(tiny.Options{Fill: 64})
	m := start(t, qemu, rom, "-machine", "q35")
	var last tiny.Check
	for migration := range 4 {
		for range 3 {
			c := m.check()
			if c.Bad != 0 {
				t.Fatalf("after %d migrations: %v", migration, c)
			}
			if c.Passes <= last.Passes {
				t.Fatalf("after %d migrations the guest is at pass %d, before it was at %d", migration, c.Passes, last.Passes)
			}
			last = c
		}
		if migration < 3 {
			m = m.migrate()
		}
	}
	t.Logf("three migrations: %v", last)
}

// QEMU 7.2 under TCG clears a page's dirty bit without making the vCPU notice, so later writes are not sent. If this test
// fails, the checked guest is blind.
func TestCheckedGuestFindsLossInQEMU72(t *testing.T) {
	binary := oldQEMU(t)
	rom := tiny.Checked(tiny.Options{Fill: 64})
	for run := range 3 {
		source := start(t, binary, rom, "-machine", "q35")
		for range 3 {
			if c := source.check(); c.Bad != 0 {
				t.Fatalf("before any migration: %v", c)
			}
		}
		target := source.migrate()
		c := target.check()
		t.Logf("run %d: %v", run, c)
		if c.Bad == 0 {
			t.Error("QEMU 7.2 lost no write: either it was mended, or the guest does not notice")
		}
	}
}

func TestCheckedGuestReportsMemoryThatIsNotThere(t *testing.T) {
	const there = (64<<20 - 2<<20) / tiny.PageSize
	m := start(t, qemu, tiny.Checked(tiny.Options{Fill: there - 144 + 5}), "-machine", "q35")
	if c := m.check(); c.Bad != 5 {
		t.Fatalf("five pages lie beyond RAM, the guest says: %v", c)
	}
}

func TestLongRunsUnderTCG(t *testing.T) {
	m := start(t, qemu, tiny.Long(), "-machine", "q35")
	if line := m.Line(); line != "BR"+string(tiny.LongProof) {
		t.Fatalf("the probe said %q", line)
	}
	t.Logf("64-bit code had run after %v", time.Since(m.Started).Round(time.Millisecond))
}

func TestIdleGuestSaysThatItIsThereAndHalts(t *testing.T) {
	m := start(t, qemu, tiny.Idle(), "-machine", "q35")
	if line := m.Line(); line != tiny.IdleLine {
		t.Fatalf("the guest said %q", line)
	}
	dump := filepath.Join(t.TempDir(), "status")
	m.Do("pmemsave", map[string]any{"val": 0xffff0, "size": 1, "filename": dump}) // QEMU answers: the guest did not take it along
	if said, err := os.ReadFile(dump); err != nil || len(said) != 1 || said[0] != 0xea {
		t.Fatalf("the ROM reads % x, %v", said, err)
	}
}

func TestImagesStartAtTheResetVector(t *testing.T) {
	for name, rom := range map[string][]byte{
		"heartbeat": tiny.Heartbeat(tiny.Options{}), "checked": tiny.Checked(tiny.Options{}), "long": tiny.Long(), "idle": tiny.Idle(),
	} {
		if len(rom) != tiny.ROMSize || !bytes.Equal(rom[0xfff0:0xfff5], []byte{0xea, 0, 0, 0, 0xf0}) {
			t.Errorf("%s: %d bytes, % x at the reset vector", name, len(rom), rom[0xfff0:0xfff5])
		}
	}
}

func TestOptionsBeyondTheirBoundsPanic(t *testing.T) {
	for _, o := range []tiny.Options{
		{Pages: -1},
		{Fill: -1},
		{Rate: -1},
		{Pages: tiny.PagesMax + 1},
		{Fill: tiny.PagesMax},
		{Pages: tiny.PagesMax, Fill: 1},
		{Rate: tiny.RateMax + 1},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			tiny.Heartbeat(o)
		})
	}
}

func TestLinesAreReadAsPrinted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := tiny.Check{
			Passes: rapid.Uint32().Draw(t, "passes"), Bad: rapid.Uint32().Draw(t, "bad"), Behind: rapid.Uint32().Draw(t, "behind"),
		}
		line := fmt.Sprintf("C%08x %08x %08x", want.Passes, want.Bad, want.Behind)
		if got, ok := tiny.ParseCheck(line); !ok || got != want {
			t.Fatalf("%q read as %+v", line, got)
		}
		if got, ok := tiny.ParseHeartbeat(fmt.Sprintf("H%08x", want.Passes)); !ok || got != want.Passes {
			t.Fatalf("heartbeat %08x read as %08x", want.Passes, got)
		}
		// A line that lost a byte, as may happen when a console is switched over, is no line.
		cut := rapid.IntRange(0, len(line)-1).Draw(t, "cut")
		if got, ok := tiny.ParseCheck(line[:cut] + line[cut+1:]); ok {
			t.Fatalf("a torn line was read as %+v", got)
		}
	})
}
