package agent

import (
	"maps"
	"os"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// claimed is an authority that was just claimed, whose run directory is dir.
func claimed(t *testing.T, dir, boot string, fences uint64, before store.Epoch) *Authority {
	t.Helper()
	a := &Authority{epoch: store.Epoch{Epoch: before.Epoch + 1, BootID: boot, Fences: fences}, before: before, boot: boot, runDir: dir}
	ok(t, a.recall())
	return a
}

// The story: a host is booted, and its first agent fails before it has taken in what is there; it has overwritten the boot in the store by then. The
// next one knows of the boot all the same, until one agent came to that end; and what of migrations the boot cut short, they all know.
func TestBootedUntilTakenIn(t *testing.T) {
	dir := t.TempDir()
	if claimed(t, dir, "boot-1", 0, store.Epoch{}).rebooted() {
		t.Error("the first agent of a host comes after a boot")
	}
	for n := range uint64(3) {
		boot := "boot-1"
		if n == 0 {
			boot = "boot-0"
		}
		a := claimed(t, dir, "boot-1", 0, store.Epoch{Epoch: n + 1, BootID: boot})
		if !a.rebooted() || a.cast {
			t.Errorf("agent %d after the boot does not know of it, or was fenced: %v", n, a.cast)
		}
		if n == 2 {
			ok(t, a.settle(map[inventory.MigrationID]bool{"mig-1": true, "mig-2": true}))
		}
	}
	for range 2 {
		a := claimed(t, dir, "boot-1", 0, store.Epoch{Epoch: 4, BootID: "boot-1"})
		if a.rebooted() || a.cast || !maps.Equal(a.was.cut, map[inventory.MigrationID]bool{"mig-1": true, "mig-2": true}) {
			t.Errorf("after that it was booted: %v, fenced: %v, and cut %v", a.rebooted(), a.cast, a.was.cut)
		}
	}
	for range 2 { // it was fenced, and the first agent after that failed
		if a := claimed(t, dir, "boot-1", 1, store.Epoch{Epoch: 5, BootID: "boot-1", Fences: 1}); !a.cast || a.rebooted() {
			t.Errorf("after a fence it was fenced: %v, booted: %v", a.cast, a.rebooted())
		}
	}
	if !claimed(t, dir, "boot-2", 0, store.Epoch{Epoch: 6, BootID: "boot-2"}).rebooted() {
		t.Error("where the run directory outlives a boot, that is not seen")
	}
}

// An agent from before the note wrote the fence count alone: its VMs are taken in by a newer one as they are.
func TestNoteOfAnOlderAgent(t *testing.T) {
	dir := t.TempDir()
	a := claimed(t, dir, "boot-1", 3, store.Epoch{Epoch: 7, BootID: "boot-1\n", Fences: 3})
	ok(t, os.WriteFile(a.fencesFile(), []byte("3"), 0o600))
	ok(t, a.recall())
	if a.rebooted() || a.cast {
		t.Errorf("booted: %v, fenced: %v", a.rebooted(), a.cast)
	}
	ok(t, os.WriteFile(a.fencesFile(), []byte("2"), 0o600))
	ok(t, a.recall())
	if !a.cast {
		t.Error("it does not see the fence")
	}
}

// What was here when the store was restored is looked through by the first agent that comes to the end of that: the store says it to the first
// that starts only.
func TestRestoredUntilSettled(t *testing.T) {
	dir := t.TempDir()
	ok(t, noteRestored(dir)) // and then the epoch begins
	for _, before := range []store.Epoch{{Epoch: 1001, Restored: true}, {Epoch: 1002}, {Epoch: 1003}} {
		if !claimed(t, dir, "boot-1", 0, before).restored() {
			t.Errorf("the agent after epoch %d does not look", before.Epoch)
		}
	}
	ok(t, claimed(t, dir, "boot-1", 0, store.Epoch{Epoch: 1004}).restoredSettled())
	again := claimed(t, dir, "boot-1", 0, store.Epoch{Epoch: 1005})
	if again.restored() {
		t.Error("it is looked through again")
	}
	ok(t, again.restoredSettled())
}
