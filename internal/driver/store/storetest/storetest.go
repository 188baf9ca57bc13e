// Package storetest gives tests of other packages a store of their own: a real member of etcd on the loopback, for as long as the test runs.
package storetest

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
)

// startMax bounds the start of a member on a machine that has much to do.
const startMax = 30 * time.Second

// Member returns the identity and the settings of a member, host-1, with the TLS files of a real cluster. It listens on ports that are free.
func Member(t *testing.T) (*peer.Identity, store.ServerConfig) {
	t.Helper()
	dir := t.TempDir()
	certs := filepath.Join(dir, "pki")
	id, err := peer.Init(certs, "test", "host-1", []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return id, store.ServerConfig{
		Name: "host-1", Dir: filepath.Join(dir, "store"), ClientURL: "https://127.0.0.1:0", PeerURL: "https://127.0.0.1:0",
		CAFile: filepath.Join(certs, peer.CACertificateFile), CertFile: filepath.Join(certs, peer.CertificateFile),
		KeyFile: filepath.Join(certs, peer.KeyFile), LogFile: filepath.Join(dir, "store.log"),
	}
}

// Open starts a store with one member, host-1, and connects to it as that host. Both end with the test.
func Open(t *testing.T) *store.Store {
	t.Helper()
	id, config := Member(t)
	ready, ended := make(chan string, 1), make(chan error, 1)
	config.Ready = func(endpoint string) { ready <- endpoint }
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- store.Serve(ctx, config) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Log("the store ended with", err)
		}
	})
	select {
	case endpoint := <-ready:
		s, err := store.Open(t.Context(), store.Config{Endpoints: []string{endpoint}, TLS: id.StoreTLS()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	case err := <-ended:
		ended <- err
		t.Fatalf("the store ended instead of getting ready: %v", err)
	case <-time.After(startMax):
		t.Fatalf("the store is not ready after %v", startMax)
	}
	return nil
}
