package cluster_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// writer begins an epoch of a host's agent.
func writer(t *testing.T, s *store.Store, host inventory.HostID) *store.Writer {
	t.Helper()
	must(t, s.Admit(t.Context(), host))
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

// killAt calls kill at the term's n-th transaction, before its answer, at its first one for 0; kill ends ctx. Nothing of this leader gets
// through from then on.
func killAt(ctx context.Context, kill context.CancelFunc, term *store.Term, n int) {
	var mu sync.Mutex
	steps := 0
	term.Intercept(func(done bool) error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			steps++
		}
		if steps > n || steps == n && (n == 0 || done) || ctx.Err() != nil {
			kill()
			return errKilled
		}
		return nil
	})
}

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
