package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: QEMU 7.2 loses writes in a migration under emulation and says nothing. Godwit's own probe must find that out, and
// no VM may migrate there.
func TestBadQEMU(t *testing.T) {
	cache, err := guest.Cache()
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(cache, "qemu-7.2", "qemu-system-x86_64")
	if _, err := os.Stat(old); err != nil {
		system, _ := os.ReadFile("/etc/os-release") // without it this is no Debian
		if strings.Contains(string(system), "bookworm") {
			t.Fatalf("%v: run make setup", err)
		}
		t.Skip("QEMU 7.2 comes with Debian 12 only")
	}
	t.Setenv("GODWIT_USER", "") // root, as the cache may be in a home folder, where no other user may look
	c := startCluster(t, lab.Options{Hosts: 2, QEMU: old, Cache: t.TempDir()})
	first, second := c.Hosts[0], c.Hosts[1]
	out, err := first.Godwit(step(t), "doctor")
	if lab.ExitCode(err) != 5 {
		t.Errorf("doctor found nothing: %v", err)
	}
	if said := line(string(out), "migration"); !strings.HasPrefix(said, "bad") {
		t.Errorf("doctor says %q of migration", said)
	} else {
		t.Log(said)
	}

	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"vm", "create", "old-1", "--memory", "32M", "--firmware", "tiny.rom"}, {"vm", "start", "old-1"}} {
		if _, err := first.Godwit(step(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, dry := range [][]string{nil, {"--dry-run"}} {
		_, err := first.Godwit(step(t), append([]string{"vm", "migrate", "old-1", "--to", second.Name}, dry...)...)
		if lab.ExitCode(err) != 5 || !strings.Contains(err.Error(), "loses guest memory in a migration") {
			t.Errorf("a migration with QEMU 7.2 was not refused for what it is: %v", err)
			continue
		}
		for _, h := range c.Hosts {
			if !strings.Contains(err.Error(), "on "+h.Name+" loses guest memory") {
				t.Errorf("the refusal does not name %s: %v", h.Name, err)
			}
		}
	}
	vm, err := second.VM(step(t), "old-1")
	if err != nil || vm.GetStatus().GetState() != "running" || vm.GetRun().GetOwner() != first.Name {
		t.Errorf("after the refusal the VM is %s on %s: %v", vm.GetStatus().GetState(), vm.GetRun().GetOwner(), err)
	}
}

// line returns the line of a text that has the word.
func line(text, word string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, word) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}
