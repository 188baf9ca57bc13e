package cluster_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// quick are the times of authority, ten times as fast as the default.
func quick() authority.Settings {
	s := authority.Default()
	for _, d := range []*time.Duration{&s.RenewEvery, &s.RenewTimeout, &s.Stop, &s.Freeze, &s.Reset, &s.Watchdog, &s.Lease, &s.Silence, &s.Planned} {
		*d /= 10
	}
	return s
}

func boottime() authority.Moment {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// heirs is the other hosts' side of a leader's question.
type heirs struct {
	mu    sync.Mutex
	word  map[inventory.MigrationID]bool // discarded, or not; one that is missing does not answer
	asked []uint64                       // the terms that asked
}

func (h *heirs) Discard(_ context.Context, _ inventory.HostID, id inventory.MigrationID, _ inventory.HostID, term uint64) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, term)
	word, ok := h.word[id]
	if !ok {
		return false, fmt.Errorf("no answer about %s", id)
	}
	return word, nil
}

func (h *heirs) says(id inventory.MigrationID, discarded bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.word == nil {
		h.word = map[inventory.MigrationID]bool{}
	}
	h.word[id] = discarded
}

// scene is a cluster whose hosts are nothing but renewals.
type scene struct {
	t     *testing.T
	store *store.Store
	heirs *heirs
	host  map[inventory.HostID]*living
}

// living is a host: a writer, and what ends its renewals.
type living struct {
	*store.Writer

	die func()
}

func newScene(t *testing.T) *scene {
	t.Helper()
	return &scene{t: t, store: storetest.Open(t), heirs: &heirs{}, host: map[inventory.HostID]*living{}}
}

// begin starts a host's agent: an epoch, a description, and renewals every 100 ms until it dies.
func (s *scene) begin(id inventory.HostID, boot string, fencing inventory.Fencing, free inventory.Bytes) *living {
	s.t.Helper()
	must(s.t, s.store.Admit(s.t.Context(), id))
	now, _, err := s.store.NextEpoch(s.t.Context(), id, boot)
	must(s.t, err)
	w := s.store.As(id, now.Epoch)
	must(s.t, w.PutHostSpec(s.t.Context(), inventory.HostSpec{
		QEMU:       inventory.QEMU{Machines: []string{"pc-q35-10.0"}, CPUModels: []string{"Westmere"}},
		Datastores: []inventory.DatastoreMount{{ID: "ds-1", Name: "main", Shared: true}},
	}))
	must(s.t, w.PutHostStatus(s.t.Context(), inventory.HostStatus{MemoryFree: free}))
	must(s.t, w.Renew(s.t.Context(), quick().Lease, fencing))
	ctx, stop := context.WithCancel(s.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(quick().RenewEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = w.Renew(ctx, quick().Lease, fencing) // it dies of it, or not
			}
		}
	}()
	h := &living{Writer: w, die: sync.OnceFunc(func() { stop(); <-ended })}
	s.t.Cleanup(h.die)
	s.host[id] = h
	return h
}

// vm creates a VM at its owner.
func (s *scene) vm(name string, run inventory.VMRun) inventory.VMID {
	s.t.Helper()
	id := inventory.VMID("vm-" + name)
	must(s.t, s.host[run.Owner].CreateVM(s.t.Context(), inventory.VM{ID: id, Run: run, Spec: inventory.VMSpec{
		Name: name, CPUs: 1, Memory: 64 * inventory.MiB, Machine: "pc-q35-10.0", CPUModel: "Westmere",
		Disks: []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds-1", Path: name + ".qcow2"}, Format: inventory.Qcow2}},
	}}))
	return id
}

// loops are the leader's loops of this package.
func (s *scene) loops() []cluster.Loop {
	return []cluster.Loop{
		&cluster.Fencer{Settings: quick(), Now: boottime, Log: quiet},
		&cluster.Recoverer{Heirs: s.heirs, Log: quiet},
		&cluster.Plans{Kinds: cluster.Steps(), Tell: cluster.TellPlan, Log: quiet},
	}
}

// lead runs the leader's loops on a host until the returned function is called.
func (s *scene) lead(id inventory.HostID) (end func()) {
	ctx, stop := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- cluster.Run(ctx, cluster.Config{
			Host: id, Epoch: s.host[id].Epoch(), Store: s.store, Log: quiet, Loops: func(*store.Term) []cluster.Loop { return s.loops() },
		})
	}()
	end = sync.OnceFunc(func() { stop(); <-ended })
	s.t.Cleanup(end)
	return end
}

func (s *scene) run(id inventory.VMID) inventory.VM {
	s.t.Helper()
	vm, err := s.store.VM(s.t.Context(), string(id))
	must(s.t, err)
	return vm
}

func (s *scene) standing(id inventory.HostID) inventory.HostStanding {
	s.t.Helper()
	h, err := s.store.Host(s.t.Context(), id)
	must(s.t, err)
	return h.Standing
}

// confirm says that a host is dead, as an operator does.
func (s *scene) confirm(id, by inventory.HostID) inventory.Plan {
	s.t.Helper()
	p, err := s.host[by].CreatePlan(s.t.Context(), authority.ConfirmPlan(s.renewal(id), "alice", time.Now().UTC()))
	must(s.t, err)
	return p
}

func (s *scene) renewal(id inventory.HostID) inventory.Renewal {
	s.t.Helper()
	all, err := s.store.Renewals(s.t.Context())
	must(s.t, err)
	for _, r := range all {
		if r.Host == id {
			return r
		}
	}
	s.t.Fatalf("no host %s", id)
	return inventory.Renewal{}
}

// told counts the events of a kind about an object.
func (s *scene) told(kind, object string) int {
	s.t.Helper()
	events, err := s.store.Events(s.t.Context())
	must(s.t, err)
	n := 0
	for _, e := range events {
		if e.Kind == kind && e.Object == object {
			n++
		}
	}
	return n
}
