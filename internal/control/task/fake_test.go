package task_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// shelf is a store for tests: one for all hosts, with hands that write for each.
type shelf struct {
	mu       sync.Mutex
	away     bool
	tasks    map[inventory.TaskID]inventory.Task
	writes   map[inventory.TaskID]int
	events   []inventory.Event
	requests map[string]inventory.Request
	epochs   map[inventory.HostID]uint64
	most     int // in one write
	calls    int
}

func newShelf() *shelf {
	return &shelf{
		tasks: map[inventory.TaskID]inventory.Task{}, writes: map[inventory.TaskID]int{}, requests: map[string]inventory.Request{},
		epochs: map[inventory.HostID]uint64{},
	}
}

func (s *shelf) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// hand is one start of a host's agent.
type hand struct {
	*shelf

	host  inventory.HostID
	epoch uint64
}

func (s *shelf) start(host inventory.HostID) hand {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epochs[host]++
	return hand{s, host, s.epochs[host]}
}

var errAway = fault.New(fault.Unavailable, "the store is away")

// enter takes the lock, or says why not; a transaction takes its time.
func (h hand) enter() error {
	time.Sleep(time.Millisecond)
	h.mu.Lock()
	switch {
	case h.away:
		h.mu.Unlock()
		return errAway
	case h.epochs[h.host] != h.epoch:
		h.mu.Unlock()
		return fault.New(fault.Conflict, "its epoch is over")
	}
	return nil
}

func (h hand) Record(_ context.Context, tasks []inventory.Task, events []inventory.Event) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.mu.Unlock()
	h.calls++
	h.most = max(h.most, len(tasks), len(events))
	for _, t := range tasks {
		h.tasks[t.ID] = t
		h.writes[t.ID]++
	}
	h.events = append(h.events, events...)
	return nil
}

func (h hand) Forget(context.Context, time.Time) error { return nil }

func (h hand) dead(r inventory.Request) bool { return !r.Done && h.epochs[r.Host] > r.Epoch }

func (h hand) Request(_ context.Context, key string) (inventory.Request, bool, error) {
	if err := h.enter(); err != nil {
		return inventory.Request{}, false, err
	}
	defer h.mu.Unlock()
	r, ok := h.requests[key]
	if !ok {
		return r, false, fault.New(fault.NotFound, "new")
	}
	return r, h.dead(r), nil
}

func (h hand) ClaimRequest(_ context.Context, r inventory.Request, again bool) (inventory.Request, bool, error) {
	if err := h.enter(); err != nil {
		return r, false, err
	}
	defer h.mu.Unlock()
	r.Host, r.Epoch = h.host, h.epoch
	if found, ok := h.requests[r.Key]; ok {
		own := again && found.Host == h.host && found.Epoch == h.epoch
		if !bytes.Equal(found.Hash, r.Hash) || found.Done || !h.dead(found) && !own {
			return found, false, nil
		}
		r.Begun, r.Made = found.Begun, slices.Clone(found.Made)
	}
	h.requests[r.Key] = r
	return r, true, nil
}

func (h hand) UpdateRequest(_ context.Context, key string, change func(*inventory.Request)) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.mu.Unlock()
	r := h.requests[key]
	if r.Host != h.host || r.Epoch != h.epoch || r.Done {
		return fault.New(fault.Conflict, "another host's")
	}
	change(&r)
	h.requests[key] = r
	return nil
}

func (h hand) DropRequest(_ context.Context, key string) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.mu.Unlock()
	if r := h.requests[key]; r.Host == h.host && r.Epoch == h.epoch && !r.Done {
		delete(h.requests, key)
	}
	return nil
}

func (h hand) Answers(context.Context, inventory.HostID) bool { return true }

var _ task.Records = hand{}
