package datastore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func holds(t *testing.T, d *datastore.Datastore, generation inventory.Generation) bool {
	t.Helper()
	ok, err := d.Holds("vm-a", generation)
	must(t, err)
	return ok
}

func generations(t *testing.T, d *datastore.Datastore) string {
	t.Helper()
	records, err := d.Locks("vm-a")
	must(t, err)
	var out []string
	for _, r := range records {
		out = append(out, fmt.Sprintf("%d:%s", r.Generation, r.Host))
	}
	return strings.Join(out, " ")
}

func TestHighestGenerationWins(t *testing.T) {
	d := create(t)
	if holds(t, d, 1) || holds(t, d, 0) {
		t.Error("somebody holds what was never locked")
	}
	must(t, d.Lock("vm-a", 9, "host-1"))
	must(t, d.Lock("vm-a", 10, "host-2")) // by number, not by name
	if holds(t, d, 9) || !holds(t, d, 10) {
		t.Error("the lower generation holds")
	}
	if text := want(t, fault.Conflict, d.Lock("vm-a", 9, "host-1")); !strings.Contains(text, "host-2") {
		t.Error(text)
	}
	want(t, fault.Conflict, d.Lock("vm-a", 8, "host-1"))
	want(t, fault.Exists, d.Lock("vm-a", 10, "host-1"))
	want(t, fault.Exists, d.Lock("vm-a", 10, "host-2")) // also not twice by the same host
	must(t, d.Lock("vm-b", 1, "host-3"))
	must(t, d.Lock("vm-a-b", 99, "host-3")) // another VM whose name begins the same
	if got := generations(t, d); got != "9:host-1 10:host-2" {
		t.Errorf("got %s", got)
	}
	want(t, fault.Invalid, d.Lock("../vm", 1, "host-1"))

	// The other host sees the same.
	other, err := datastore.Open(d.Path)
	must(t, err)
	defer other.Close()
	if holds(t, other, 9) || !holds(t, other, 10) {
		t.Error("the other host sees something else")
	}
}

func TestPruneKeepsTheHighest(t *testing.T) {
	d := create(t)
	for g := range inventory.Generation(6) {
		must(t, d.Lock("vm-a", g+1, "host-1"))
	}
	must(t, d.Prune("vm-a", 3))
	if got := generations(t, d); got != "4:host-1 5:host-1 6:host-1" {
		t.Errorf("got %s", got)
	}
	must(t, d.Prune("vm-a", 99))
	if got := generations(t, d); got != "6:host-1" {
		t.Errorf("got %s", got)
	}
	must(t, d.Forget("vm-a"))
	must(t, d.Forget("vm-a"))
	must(t, d.Prune("vm-a", 99))
	if got := generations(t, d); got != "" {
		t.Errorf("got %s", got)
	}
}

func TestOneOfManyGetsTheGeneration(t *testing.T) {
	d := create(t)
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			other, err := datastore.Open(d.Path)
			if err == nil {
				err = other.Lock("vm-a", 1, inventory.HostID(fmt.Sprintf("host-%d", i)))
				_ = other.Close()
			}
			errs[i] = err
		})
	}
	all.Wait()
	winner := generations(t, d)
	for i, err := range errs {
		if winner == fmt.Sprintf("1:host-%d", i) {
			must(t, err)
		} else if fault.KindOf(err) != fault.Exists {
			t.Errorf("host-%d: %v", i, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(d.Path, "locks"))
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestRecordThatCannotBeReadCountsAllTheSame(t *testing.T) {
	d := create(t)
	must(t, d.Lock("vm-a", 1, "host-1"))
	for name, content := range map[string]string{
		"vm-a.lock.7": "", "vm-a.lock.007": "", "vm-a.lock.x": "", "vm-a.lock.8.tmp-ABC": "", "vm-a.lock.": "", "vm-a.lock.-9": "",
	} {
		must(t, os.WriteFile(filepath.Join(d.Path, "locks", name), []byte(content), 0o644))
	}
	if holds(t, d, 1) || !holds(t, d, 7) {
		t.Errorf("got %s", generations(t, d))
	}
	want(t, fault.Conflict, d.Lock("vm-a", 2, "host-1"))
}
