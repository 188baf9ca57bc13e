package cluster_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// startStore runs a real etcd member for the test.
func startStore(t *testing.T) *store.Store {
	t.Helper()
	dir := t.TempDir()
	certs := filepath.Join(dir, "pki")
	id, err := peer.Init(certs, "test", "host-1", []string{"127.0.0.1"})
	must(t, err)
	ready, ended := make(chan string, 1), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		ended <- store.Serve(ctx, store.ServerConfig{
			Name: "host-1", Dir: filepath.Join(dir, "store"), ClientURL: "https://127.0.0.1:0", PeerURL: "https://127.0.0.1:0",
			CAFile: filepath.Join(certs, peer.CACertificateFile), CertFile: filepath.Join(certs, peer.CertificateFile),
			KeyFile: filepath.Join(certs, peer.KeyFile), LogFile: filepath.Join(dir, "store.log"),
			Ready: func(endpoint string) { ready <- endpoint },
		})
	}()
	t.Cleanup(func() { stop(); <-ended })
	select {
	case endpoint := <-ready:
		s, err := store.Open(t.Context(), store.Config{Endpoints: []string{endpoint}, TLS: id.StoreTLS()})
		must(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	case err := <-ended:
		ended <- err
		t.Fatalf("the store ended instead of getting ready: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the store is not ready after 30 s")
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writer begins an epoch of a host's agent.
func writer(t *testing.T, s *store.Store, host inventory.HostID) *store.Writer {
	t.Helper()
	now, _, err := s.NextEpoch(t.Context(), host, "boot-"+string(host))
	must(t, err)
	return s.As(host, now.Epoch)
}

func lead(t *testing.T, s *store.Store, w *store.Writer) *store.Term {
	t.Helper()
	term, err := s.Lead(t.Context(), w.Host(), w.Epoch())
	must(t, err)
	t.Cleanup(term.End)
	return term
}

var quiet = slog.New(slog.DiscardHandler)

// errKilled is what a leader gets that a test ends in the middle of its work.
var errKilled = errors.New("killed")

// until calls try until it says true, and fails the test when that takes too long.
func until(t *testing.T, what string, try func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !try() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
