package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchRetry is the pause before a broken watch is set up again.
const watchRetry = 500 * time.Millisecond

// Kind is what a watch looks at.
type Kind string

// The kinds that can be watched, with the parts that count as a change. Statuses of VMs and hosts are left out: they
// change all the time, and whoever wants them reads them.
const (
	VMs        Kind = "vm"        // spec, run, active migration
	Hosts      Kind = "host"      // spec, epoch, standing
	Networks   Kind = "network"   // spec
	Migrations Kind = "migration" // spec, status
	Members    Kind = "member"    // the plan for a host's member of the store
	Removals   Kind = "removal"
)

// Event says that something about one object changed, or may have. What it is now is to be read; an object that is gone
// reads as fault.NotFound.
type Event struct {
	Kind Kind
	ID   string
}

type watched struct {
	kind  Kind
	root  string
	parts []string
}

var watchables = []watched{
	{VMs, rootVM, []string{partSpec, partRun, partMigration}},
	{Hosts, rootHost, []string{partSpec, partEpoch, partStanding}},
	{Networks, rootNetwork, []string{partSpec}},
	{Migrations, rootMigration, []string{partSpec, partStatus}},
	{Members, rootMember, []string{""}},
	{Removals, rootRemoval, []string{""}},
}

// Watch tells of changes of the given kinds, for loops that read, compare and take a step.
//
// At first, and again whenever changes may have been missed (the store was away, its history compacted), there is an
// event for every object that exists, and for every one that was known and is gone. Events about one object that nobody
// has taken yet are one event, so a slow reader delays nothing but itself and the memory is bounded by the number of
// objects. A watch never fails: while the store is away it is silent, and it tries again every watchRetry.
//
// The channel is closed after ctx ended, and then no goroutine is left: a caller that wants to be sure drains it.
func (s *Store) Watch(ctx context.Context, kinds ...Kind) <-chan Event {
	w := &watch{s: s, out: make(chan Event), pending: map[Event]bool{}, known: map[Event]bool{}}
	for _, k := range kinds {
		for _, each := range watchables {
			if each.kind == k {
				w.what = append(w.what, each)
			}
		}
	}
	go w.run(ctx)
	return w.out
}

type watch struct {
	s       *Store
	what    []watched
	out     chan Event
	queue   []Event        // in order of their first change
	pending map[Event]bool // what is in queue
	known   map[Event]bool // what exists, as far as seen
}

func (w *watch) run(ctx context.Context) {
	defer close(w.out)
	for ctx.Err() == nil {
		w.follow(ctx)
		w.deliverFor(ctx, watchRetry)
	}
}

// follow lists everything and then follows the changes after that revision. It returns when the watch broke.
func (w *watch) follow(ctx context.Context) {
	revision, err := w.list(ctx)
	if err != nil {
		return
	}
	following, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// One stream, so that the order of changes of different kinds is kept.
	changes := w.s.client.Watch(following, w.root(), clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for {
		var out chan Event
		var next Event
		if len(w.queue) > 0 {
			out, next = w.out, w.queue[0]
		}
		select {
		case out <- next:
			w.taken()
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				return
			}
			for _, e := range resp.Events {
				w.see(string(e.Kv.GetKey()), e.Type == clientv3.EventTypeDelete)
			}
		case <-ctx.Done():
			return
		}
	}
}

// root is the root of all keys that the watch looks at: that of the one kind, or everybody's.
func (w *watch) root() string {
	if len(w.what) == 1 {
		return w.what[0].root
	}
	return rootKey
}

// list makes an event for everything that exists and everything that does no longer.
func (w *watch) list(ctx context.Context) (revision int64, err error) {
	resp, err := w.s.get(ctx, w.root(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return 0, err
	}
	gone := w.known
	w.known = map[Event]bool{}
	for _, kv := range resp.Kvs {
		w.see(string(kv.GetKey()), false)
	}
	for e := range gone {
		if !w.known[e] {
			w.add(e)
		}
	}
	return resp.Header.GetRevision(), nil
}

func (w *watch) see(key string, deleted bool) {
	for _, each := range w.what {
		if len(key) <= len(each.root) || key[:len(each.root)] != each.root {
			continue
		}
		id, part := split(each.root, key)
		for _, p := range each.parts {
			if p != part {
				continue
			}
			e := Event{Kind: each.kind, ID: id}
			if deleted && (part == partSpec || part == "") {
				delete(w.known, e)
			} else if !deleted {
				w.known[e] = true
			}
			w.add(e)
		}
	}
}

func (w *watch) add(e Event) {
	if !w.pending[e] {
		w.pending[e] = true
		w.queue = append(w.queue, e)
	}
}

func (w *watch) taken() {
	delete(w.pending, w.queue[0])
	w.queue = w.queue[1:]
}

// deliverFor hands out what is pending until the time is over, so that a store that is away holds nothing back.
func (w *watch) deliverFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		var out chan Event
		var next Event
		if len(w.queue) > 0 {
			out, next = w.out, w.queue[0]
		}
		select {
		case out <- next:
			w.taken()
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
