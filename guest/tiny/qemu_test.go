package tiny_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest/internal/rig"
	"github.com/godwit-vm/godwit/guest/tiny"
)

// machine is a QEMU with a tiny guest.
type machine struct {
	*rig.Machine
	t *testing.T
}

// start runs binary with rom. Extra arguments go last.
func start(t *testing.T, binary string, rom []byte, extra ...string) machine {
	t.Helper()
	bios := filepath.Join(t.TempDir(), "rom")
	if err := os.WriteFile(bios, rom, 0o644); err != nil {
		t.Fatal(err)
	}
	return machine{rig.Start(t, binary, append([]string{"-m", "64M", "-bios", bios}, extra...)...), t}
}

func (m machine) heartbeat() uint32 { return next(m, tiny.ParseHeartbeat) }

func (m machine) check() tiny.Check { return next(m, tiny.ParseCheck) }

// next returns the next line in its meaning. The first after a migration may be the rest of one that began at the source.
func next[T any](m machine, parse func(string) (T, bool)) (meaning T) {
	m.t.Helper()
	var line string
	for range 2 {
		line = m.Line()
		if meaning, ok := parse(line); ok {
			return meaning
		}
	}
	m.t.Fatalf("two lines in series say nothing, the last is %q", line)
	return meaning
}

// migrate moves the guest to a new QEMU at the pace that Checked recommends.
func (m machine) migrate() machine {
	m.t.Helper()
	pace := rig.Pace{Bandwidth: 4 << 20, DowntimeMS: 1, Rounds: 4, Poll: 10 * time.Millisecond}
	return machine{m.Migrate(pace, nil), m.t}
}

// oldQEMU is the QEMU 7.2 that setup unpacks for this test.
func oldQEMU(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("GODWIT_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(base, "godwit")
	}
	binary := filepath.Join(cache, "qemu-7.2", "qemu-system-x86_64")
	if _, err := os.Stat(binary); err != nil {
		if release, _ := os.ReadFile("/etc/os-release"); !strings.Contains(string(release), "VERSION_CODENAME=bookworm") {
			t.Skip("only Debian 12 has QEMU 7.2, whose fault this test shows")
		}
		t.Fatalf("no QEMU 7.2: %v; run make setup", err)
	}
	return binary
}
