package gate

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/test/lab"
)

// foreignEtcd starts an etcd that is not the cluster's, in a process of its own with a CA of its own, and returns what init wants to know of it, and its PID.
func foreignEtcd(t *testing.T) (access []string, pid int) {
	t.Helper()
	dir := t.TempDir()
	address := fmt.Sprintf("127.%d.%d.9", 1+rand.IntN(250), rand.IntN(250))
	data, pki := filepath.Join(dir, "data"), filepath.Join(dir, "data", "pki")
	if out, err := exec.CommandContext(step(t), commandLine, "init", "--cluster", "other", "--name", "etcd", "--address", address, "--data", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), commandLine, "role", "store", "--data", data, "--run", filepath.Join(dir, "run"))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT) // of a test that ended while it stood
		_ = cmd.Process.Signal(syscall.SIGTERM) // gone already is what is wanted
		_ = cmd.Wait()
		_ = log.Close()
	})
	endpoint := "https://" + address + ":2379"
	id, err := peer.Load(pki)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Until(step(t), stepMax, func() error {
		s, err := store.Open(t.Context(), store.Config{Endpoints: []string{endpoint}, TLS: id.StoreTLS()})
		if err == nil {
			err = s.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return []string{
		"--etcd-endpoints", endpoint, "--etcd-ca", filepath.Join(pki, peer.CACertificateFile),
		"--etcd-cert", filepath.Join(pki, peer.CertificateFile), "--etcd-key", filepath.Join(pki, peer.KeyFile),
	}, cmd.Process.Pid
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
