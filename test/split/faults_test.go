package split

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// kind is one thing that can go wrong.
type kind struct {
	name string
	// strike begins it on a host, and returns what ends it.
	strike func(ctx context.Context, w *world, h *lab.Host) (heal func() error, err error)
	// moves: the host's VMs run on another host before it ends, if others can know that the host is dead.
	moves bool
	// calm: every guest writes on while it lasts.
	calm bool
	// all: it strikes every host, and the given one is only named.
	all bool
	// off: the host's machine is off, for certain.
	off bool
	// storage: it is the storage that fails, and a VM may need an operator after it.
	storage bool
	// lasts is for how long, when nothing is waited for.
	lasts time.Duration
}

// fencedMax is the time in which a host that says nothing is certainly fenced, and its VMs run again elsewhere.
const fencedMax = 90 * time.Second

// outage is how long hosts are without one another or without their store, in place of minutes and an hour: longer than every time in the
// settings of authority, so that nothing new happens after it.
const outage = 14 * time.Second

// kinds are all of them; a run takes its first by its seed, one after the other.
var kinds = []kind{
	{name: "power off", off: true, moves: true, strike: func(ctx context.Context, w *world, h *lab.Host) (func() error, error) {
		return func() error { return w.boot(ctx, h) }, h.PullPlug()
	}},
	{name: "cut off", moves: true, strike: cut(true, true)},
	{name: "nothing reaches it", moves: true, strike: cut(true, false)},
	{name: "nothing comes from it", moves: true, strike: cut(false, true)},
	{name: "isolated, storage hangs", moves: true, storage: true, strike: isolated(oracle.Stalled)},
	{name: "isolated, storage waits", moves: true, storage: true, strike: isolated(oracle.Killable)},
	{name: "isolated, storage fails", moves: true, storage: true, strike: isolated(oracle.Failing)},
	{name: "storage stalls", storage: true, lasts: 6 * time.Second, strike: storage(oracle.Stalled)},
	{name: "storage waits, killable", storage: true, lasts: 6 * time.Second, strike: storage(oracle.Killable)},
	{name: "slow disk", calm: true, lasts: 6 * time.Second, strike: func(_ context.Context, w *world, h *lab.Host) (func() error, error) {
		m := w.mount(h)
		m.Slow(150 * time.Millisecond)
		return func() error { m.Slow(0); return nil }, nil
	}},
	{name: "agent stopped", calm: true, lasts: 8 * time.Second, strike: stopped("agent")},
	{name: "warden stopped", lasts: outage, strike: stopped("warden")},
	{name: "host stopped", lasts: 30 * time.Second, moves: true, strike: func(_ context.Context, _ *world, h *lab.Host) (func() error, error) {
		if err := h.Freeze(); err != nil {
			return nil, err
		}
		return func() error { h.Thaw(); return nil }, nil
	}},
	{name: "agent killed", calm: true, lasts: 3 * time.Second, strike: func(_ context.Context, _ *world, h *lab.Host) (func() error, error) {
		return func() error { return nil }, killAgent(h)
	}},
	{name: "leader's agent killed", calm: true, lasts: 5 * time.Second, strike: func(_ context.Context, w *world, _ *lab.Host) (func() error, error) {
		return func() error { return nil }, killLeader(w)
	}},
	{name: "power off, and the leader dies at its work", off: true, moves: true, strike: func(ctx context.Context, w *world, h *lab.Host) (func() error, error) {
		// The fence comes 8.5 s after the leader has seen the last renewal, and the new owner right after it.
		at := 7500*time.Millisecond + time.Duration(w.dice.Int64N(int64(2500*time.Millisecond)))
		if err := h.PullPlug(); err != nil {
			return nil, err
		}
		struck := make(chan error, 1)
		go func() {
			err := w.pass(ctx, at)
			if l := w.leader(); err == nil && l != nil && l != h {
				w.note(l.Name, "the leader's agent is killed")
				err = killAgent(l)
			}
			struck <- err
		}()
		return func() error { return errors.Join(<-struck, w.boot(ctx, h)) }, nil
	}},
	{name: "all without one another", all: true, lasts: outage, strike: func(_ context.Context, w *world, _ *lab.Host) (func() error, error) {
		each := func(in, out bool) error {
			var all error
			for _, h := range w.cluster.Hosts {
				all = errors.Join(all, h.Cut(in, out))
			}
			return all
		}
		return func() error { return each(false, false) }, each(true, true)
	}},
	{name: "no store", all: true, lasts: outage, strike: func(ctx context.Context, w *world, _ *lab.Host) (func() error, error) {
		// A stopped store is silent, so the warden starts another one: that is stopped, too, for as long as it takes.
		ctx, end := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for ctx.Err() == nil {
				for _, h := range w.cluster.Hosts {
					for _, pid := range h.Role("store") {
						_ = syscall.Kill(pid, syscall.SIGSTOP) // gone already is as good
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond): // how soon a new one is met
				}
			}
		}()
		return func() error {
			end()
			<-ended
			for _, h := range w.cluster.Hosts {
				for _, pid := range h.Role("store") {
					_ = syscall.Kill(pid, syscall.SIGCONT) // as above
				}
			}
			return nil
		}, nil
	}},
}

func cut(in, out bool) func(context.Context, *world, *lab.Host) (func() error, error) {
	return func(_ context.Context, _ *world, h *lab.Host) (func() error, error) {
		return func() error { return h.Cut(false, false) }, h.Cut(in, out)
	}
}

func storage(t oracle.Trouble) func(context.Context, *world, *lab.Host) (func() error, error) {
	return func(_ context.Context, w *world, h *lab.Host) (func() error, error) {
		m := w.mount(h)
		m.Set(t)
		return func() error { m.Heal(); return nil }, nil
	}
}

// role returns the only process of the host in a role.
func role(h *lab.Host, name string) (int, error) {
	pids := h.Role(name)
	if len(pids) != 1 {
		return 0, fmt.Errorf("%s has %d processes in the role %s", h.Name, len(pids), name)
	}
	return pids[0], nil
}

func stopped(name string) func(context.Context, *world, *lab.Host) (func() error, error) {
	return func(_ context.Context, _ *world, h *lab.Host) (func() error, error) {
		pid, err := role(h, name)
		if err != nil {
			return nil, err
		}
		return func() error {
			_ = syscall.Kill(pid, syscall.SIGCONT) // the warden may have killed it
			return nil
		}, syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// isolated cuts a host off from the others and from the storage.
func isolated(t oracle.Trouble) func(context.Context, *world, *lab.Host) (func() error, error) {
	return func(_ context.Context, w *world, h *lab.Host) (func() error, error) {
		m := w.mount(h)
		m.Set(t)
		return func() error { m.Heal(); return h.Cut(false, false) }, h.Cut(true, true)
	}
}

// killLeader kills the agent that leads the cluster.
func killLeader(w *world) error {
	l := w.leader()
	if l == nil {
		return errors.New("nobody leads the cluster")
	}
	w.note(l.Name, "the leader's agent is killed")
	return killAgent(l)
}

func killAgent(h *lab.Host) error {
	pid, err := role(h, "agent")
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}
