package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

// An attempt that is refused because the host has an identity leaves that as it is; one that fails later leaves nothing of its own.
func TestARefusedFoundLeavesWhatWasThere(t *testing.T) {
	refuse := func() error { return fault.New(fault.Exists, "this host belongs to a cluster already") }
	c := &hostConfig{dir: t.TempDir()}
	if err := os.Mkdir(c.pki(), 0o700); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(c.pki(), "host.key")
	if err := os.WriteFile(key, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.found(refuse); !fault.Is(err, fault.Exists) {
		t.Fatal(err)
	}
	if _, err := os.Stat(key); err != nil {
		t.Error(err)
	}
	c = &hostConfig{dir: filepath.Join(t.TempDir(), "new")}
	if err := c.found(func() error { return os.Mkdir(c.pki(), 0o700) }); err != nil {
		t.Fatal(err)
	}
	c = &hostConfig{dir: filepath.Join(t.TempDir(), "new")}
	if err := c.found(func() error { _ = os.Mkdir(c.pki(), 0o700); return refuse() }); !fault.Is(err, fault.Exists) {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		t.Errorf("the folder is left (%v)", err)
	}
}
