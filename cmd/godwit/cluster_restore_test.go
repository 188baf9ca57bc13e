package main

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
)

// The store of somebody else is not replaced by one of Godwit's.
func TestRestoreRefusesAForeignStore(t *testing.T) {
	c := &hostConfig{dir: t.TempDir(), Cluster: "alps", Foreign: true}
	if _, _, err := c.restore(t.Context(), &store.Backup{}); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
}

// A restore that is refused deletes nothing: neither the host's store nor a folder that was left beside it.
func TestARefusedRestoreLeavesEveryStore(t *testing.T) {
	c := &hostConfig{dir: t.TempDir(), Host: "host-1", Address: "127.0.0.1", Folder: "store-7"}
	m, err := foundForTest(t, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"store", "store-7"} {
		if err := os.MkdirAll(filepath.Join(c.dir, name, "member"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.restore(t.Context(), &store.Backup{Manifest: m}); !fault.Is(err, fault.Exists) {
		t.Error(err)
	}
	for _, name := range []string{"store", "store-7"} {
		if _, err := os.Stat(filepath.Join(c.dir, name, "member")); err != nil {
			t.Error(err)
		}
	}
}

// foundForTest makes the host's identity, and the manifest of a backup of its cluster.
func foundForTest(t *testing.T, c *hostConfig) (store.Manifest, error) {
	t.Helper()
	c.Cluster = "alps"
	var id *peer.Identity
	err := c.found(func() (err error) {
		id, err = peer.Init(c.pki(), c.Cluster, c.Host, []string{c.Address})
		return err
	})
	if err != nil {
		return store.Manifest{}, err
	}
	return store.Manifest{Cluster: c.Cluster, CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.CA()}))}, nil
}
