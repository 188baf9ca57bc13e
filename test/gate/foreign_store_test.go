package gate

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

// foreignEtcd starts an etcd that is not the cluster's, and returns what init wants to know of it, and its PID.
func foreignEtcd(t *testing.T) (access []string, pid int) {
	t.Helper()
	etcd, err := lab.StartEtcd(step(t), commandLine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	return etcd.Access, etcd.PID
}

// The story: a cluster on an etcd of the user's. No host carries a member; hosts join with a token alone, and any of them goes.
func TestAForeignStore(t *testing.T) {
	t.Parallel()
	access, _ := foreignEtcd(t)
	c := startCluster(t, lab.Options{Hosts: 2, Init: access})
	for _, h := range c.Hosts {
		if got, err := members(step(t), h); err != nil || len(got) != 0 {
			t.Errorf("members %v, %v", got, err)
		}
		if _, err := h.PID(step(t), "store"); err == nil {
			t.Errorf("%s runs a store", h.Name)
		}
		if _, err := h.Godwit(step(t), "network", "create", "lan-"+h.Name); err != nil {
			t.Error(err)
		}
	}
	// A second cluster does not take the first one's place.
	other := append([]string{"init", "--name", "host-9", "--address", "127.0.0.99", "--data", filepath.Join(t.TempDir(), "data")}, access...)
	out, err := exec.CommandContext(step(t), commandLine, other...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "that etcd holds cluster godwit already") {
		t.Errorf("%v: %s", err, out)
	}
	// The host that made the cluster leaves, and the other one takes in a third.
	if _, err := c.Hosts[1].Godwit(step(t), "host", "remove", "host-1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Hosts[0].Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddHost(step(t)); err != nil {
		t.Fatal(err)
	}
}
