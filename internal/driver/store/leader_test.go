package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// replacedMax is how soon a leader that has died must have a successor.
const replacedMax = 5 * time.Second

// A leader that another one has followed can change nothing, whether it knows it or not.
func TestTermOver(t *testing.T) {
	s, first := start(t)
	second := writer(t, s, "host-2")
	old, err := s.Lead(t.Context(), "host-1", first.Epoch())
	must(t, err)
	if h, err := s.Leader(t.Context()); err != nil || h != "host-1" {
		t.Errorf("leader %s, %v", h, err)
	}
	old.End()
	_, err = s.Leader(t.Context())
	want(t, fault.NotFound, err)
	term, err := s.Lead(t.Context(), "host-2", second.Epoch())
	must(t, err)
	defer term.End()
	if term.Number() <= old.Number() {
		t.Errorf("terms %d and then %d", old.Number(), term.Number())
	}
	if err := old.Fence(t.Context(), "host-2", 0, "late"); !errors.Is(err, store.ErrTermOver) {
		t.Errorf("an old leader fenced: %v", err)
	}
}

// A leader that dies without a word is replaced in time; one that lives keeps its term, however many wait.
func TestLeaderDies(t *testing.T) {
	s, first := start(t)
	second := writer(t, s, "host-2")
	dying, kill := context.WithCancel(t.Context())
	old, err := store.LeadUntil(dying, s, "host-1", first.Epoch())
	must(t, err)
	type won struct {
		term *store.Term
		err  error
	}
	next := make(chan won, 1)
	go func() {
		term, err := s.Lead(t.Context(), "host-2", second.Epoch())
		next <- won{term, err}
	}()
	select {
	case w := <-next:
		t.Fatalf("a living leader was replaced: %v", w.err)
	case <-old.Over():
		t.Fatal("a living leader's term is over")
	case <-time.After(3 * time.Second): // longer than a silence that would have it replaced
	}
	kill()
	died := time.Now()
	w := <-next
	must(t, w.err)
	defer w.term.End()
	took := time.Since(died)
	t.Logf("replaced after %v", took.Round(time.Millisecond))
	if took > replacedMax {
		t.Errorf("replaced after %v, more than %v", took, replacedMax)
	}
	if err := old.Fence(t.Context(), "host-2", 0, "late"); !errors.Is(err, store.ErrTermOver) {
		t.Errorf("a dead leader fenced: %v", err)
	}
}

// The next agent of the leader's host takes over at once, and an agent whose epoch is over leads nothing.
func TestLeaderComesBack(t *testing.T) {
	s, first := start(t)
	old, err := s.Lead(t.Context(), "host-1", first.Epoch())
	must(t, err)
	again := writer(t, s, "host-1")
	begun := time.Now()
	term, err := s.Lead(t.Context(), "host-1", again.Epoch())
	must(t, err)
	if took := time.Since(begun); took > time.Second {
		t.Errorf("its own successor waited %v", took)
	}
	select {
	case <-old.Over():
	case <-time.After(replacedMax):
		t.Error("the former agent's term does not end")
	}
	term.End()
	if _, err := s.Lead(t.Context(), "host-1", first.Epoch()); !errors.Is(err, store.ErrEpochOver) {
		t.Errorf("an agent whose epoch is over leads: %v", err)
	}
}

// What is intercepted before a transaction was not done, what is intercepted after it was.
func TestIntercept(t *testing.T) {
	s, w := start(t)
	term, err := s.Lead(t.Context(), "host-1", w.Epoch())
	must(t, err)
	defer term.End()
	killed := errors.New("killed")
	for _, after := range []bool{false, true} {
		term.Intercept(func(done bool) error {
			if done == after {
				return killed
			}
			return nil
		})
		host := inventory.HostID("host-2")
		if after {
			host = "host-3"
		}
		writer(t, s, host)
		err := term.PutStanding(t.Context(), host, func(h *inventory.HostStanding) error { h.State = "silent"; return nil })
		if !errors.Is(err, killed) {
			t.Errorf("%s: %v", host, err)
		}
		if there := store.HasStanding(t, s, host); there != after {
			t.Errorf("%s the transaction: done %t", host, there)
		}
	}
}

// A leader whose commit was done but not answered says it again, and it is told once.
func TestAStandingIsToldOnce(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	for _, id := range []inventory.EventID{"ev-1", "ev-2"} {
		must(t, term.PutStanding(t.Context(), "host-1", func(h *inventory.HostStanding) error { h.State = "silent"; return nil },
			inventory.Event{ID: id, Kind: "host.silent", Object: "host-1"}))
	}
	if events, err := s.Events(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("told %v (%v)", events, err)
	}
}
