package datastore_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/fault"
)

// The story: a host notes what it is about to make, begins, and is gone. The next one finds the note, the file that was finished, and
// nothing of the file that was not. Another host's notes are none of its business.
func TestWhatACrashLeavesIsFoundAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ds")
	d, err := datastore.Create(dir, "shared", datastore.KeepOwner)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	note := datastore.Claim{Host: "host-1", Op: "move-1", Driver: "host-2", Epoch: 3, VM: "vm-a", Files: []string{"a.qcow2", "b.raw"}}
	must(d.Claim(note))
	must(d.Claim(datastore.Claim{Host: "host-11", Op: "move-2"}))
	done, err := d.NewPart("host-1")
	must(err)
	_, err = done.WriteString("whole")
	must(err)
	if _, err := os.Stat(done.Path()); err != nil {
		t.Error(err)
	}
	must(done.Finish("a.qcow2"))
	done.Discard() // as a deferred undo would
	begun, err := d.NewPart("host-1")
	must(err)
	_, err = begun.WriteString("ha")
	must(err)
	other, err := d.NewPart("host-11")
	must(err)

	again, err := d.NewPart("host-1")
	must(err)
	if err := again.Finish("a.qcow2"); !fault.Is(err, fault.Exists) {
		t.Errorf("over a file that is there: %v", err)
	}
	must(d.SweepParts("host-1"))
	if _, err := os.Stat(begun.Path()); !os.IsNotExist(err) {
		t.Errorf("what was begun is still there: %v", err)
	}
	must(other.Finish("c.raw"))
	text, err := os.ReadFile(filepath.Join(dir, "a.qcow2"))
	must(err)
	if string(text) != "whole" {
		t.Errorf("the file holds %q", text)
	}
	claims, err := d.Claims("host-1")
	must(err)
	if len(claims) != 1 || claims[0].Op != note.Op || claims[0].Epoch != 3 || len(claims[0].Files) != 2 {
		t.Errorf("claims %+v", claims)
	}
	if !d.Claimed("host-11", "move-2") || d.Claimed("host-1", "move-2") {
		t.Error("claims are mixed up")
	}
	must(d.Unclaim("host-1", "move-1"))
	must(d.Unclaim("host-1", "move-1"))
	if claims, err = d.Claims("host-1"); err != nil || len(claims) != 0 {
		t.Errorf("claims %+v, %v", claims, err)
	}
	for _, bad := range []datastore.Claim{
		{Host: "host-1", Op: "../x"}, {Host: "host 1", Op: "x"}, {Host: "host-1", Op: "x", Files: []string{"../etc/passwd"}},
	} {
		if err := d.Claim(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, name := range []string{".godwit-datastore-part-x", ".godwit-datastore-claim-host-1_x"} {
		if _, err := d.Resolve(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s can be an image: %v", name, err)
		}
	}
}
