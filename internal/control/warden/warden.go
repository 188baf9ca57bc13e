package warden

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Role is one of the processes to keep.
type Role struct {
	Name string
	Args []string // of the binary
	Off  bool     // it does not run until the front asks for it (Line.Want)
}

// Config says what a warden keeps.
type Config struct {
	Binary string
	Roles  []Role // in the order of their start; they end in reverse
	Front  string // the role whose first sign of life makes the host ready, for systemd
	RunDir string // holds the lock that makes this the only warden of the host, and what it knows of the host's authority
	Cgroup string // of the host's VMs, below the cgroup v2 mount; empty: it guards none
	// Authority are the times of authority; Watchdog resets the machine when the warden cannot prove that they are kept, nil for none.
	Authority authority.Settings
	Watchdog  Watchdog
	Log       *slog.Logger
}

// Bounds of ending a role and of looking after all of them.
const (
	endGrace  = 10 * time.Second       // how long a role may take to end in order; then it is killed
	lookEvery = 250 * time.Millisecond // how often the loop looks when nothing happens
	dumpGrace = 300 * time.Millisecond // how long a silent role may take to write down its goroutines
)

// warden is the state of Run's loop. Everything happens in the loop; goroutines of children send it events.
type warden struct {
	Config
	children []*child
	events   chan func(context.Context)
	over     chan struct{} // closed when the loop takes no events any more
	awake    awake
	systemd  notifier
	guard    *guard
	ending   bool
}

// Run keeps the roles running until ctx ends, then ends them in reverse order, and returns when the last is gone. It must
// be called once in a process, which starts no other children. Error: fault.Conflict when the host has a warden already.
func Run(ctx context.Context, c Config) error {
	unlock, err := lock(c.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fault.New(fault.Internal, "become subreaper: %w", err)
	}
	// The kernel sends the parent-death signal when the creating *thread* ends (prctl(2)), so the thread must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	guard, stop, err := newGuard(ctx, c)
	if err != nil {
		return err
	}
	defer stop()
	w := &warden{Config: c, guard: guard, events: make(chan func(context.Context)), over: make(chan struct{}), systemd: newNotifier(ctx, c.Log)}
	defer close(w.over)
	for _, r := range c.Roles {
		w.children = append(w.children, &child{Role: r, backoff: newBackoff()})
	}
	w.loop(ctx)
	return nil
}

// loop runs until ctx has ended and every child is gone.
func (w *warden) loop(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	wake := time.NewTimer(lookEvery)
	defer wake.Stop()
	w.awake.look(time.Now())
	stop := ctx.Done()
	for {
		now := time.Now()
		ran := w.awake.look(now)
		for _, c := range w.children {
			w.tend(ctx, c, now, ran)
		}
		if w.ending && w.endNext(ctx, now) {
			return
		}
		w.systemd.tell(ctx, now, w)
		wake.Reset(w.pause(now))
		select {
		case event := <-w.events:
			event(ctx)
		case <-died:
			w.reapOrphans()
		case <-wake.C:
		case <-stop:
			stop, w.ending = nil, true
			w.Log.LogAttrs(ctx, slog.LevelInfo, "ending in order")
		}
	}
}

// pause returns how long the loop may wait for something to happen: a child whose time to start or to die has come is not kept waiting, since
// VMs may be stopped until their agent is back.
func (w *warden) pause(now time.Time) time.Duration {
	pause := lookEvery
	for _, c := range w.children {
		switch {
		case !c.running() && !c.Off && !w.ending:
			pause = min(pause, c.startAt.Sub(now))
		case c.running() && !c.killAt.IsZero():
			pause = min(pause, c.killAt.Sub(now))
		}
	}
	return max(pause, time.Millisecond)
}

// send hands an event to the loop, unless that has ended.
func (w *warden) send(event func(context.Context)) {
	select {
	case w.events <- event:
	case <-w.over:
	}
}

// tend starts a child whose time has come, and kills one that is silent or does not end.
func (w *warden) tend(ctx context.Context, c *child, now time.Time, ran time.Duration) {
	switch {
	case c.running() && c.Off && !c.told && !w.ending:
		w.end(ctx, c, now)
	case !c.running() && !c.Off && !w.ending && !now.Before(c.startAt):
		w.start(ctx, c, now, ran)
	case c.running() && !c.killAt.IsZero() && !now.Before(c.killAt):
		c.killAt = now.Add(endGrace) // a process in the kernel's hands may take its time: killed again, and said again
		w.Log.LogAttrs(ctx, slog.LevelWarn, "killing child", slog.String("child", c.Name), slog.Int("pid", c.pid()))
		c.signal(syscall.SIGKILL)
	case c.running() && c.killAt.IsZero():
		if quiet, silent := c.silence.judge(ran, func() time.Duration { return longestWait(c.pid()) }); silent {
			w.Log.LogAttrs(ctx, slog.LevelError, "child is silent, killing it", slog.String("child", c.Name), slog.Int("pid", c.pid()),
				slog.Duration("silent", quiet.Round(time.Millisecond)), slog.String("said", c.said))
			// Where its goroutines stand is what its maker wants to know; a stopped process cannot tell, and is killed all the same.
			c.signal(syscall.SIGQUIT)
			c.killAt = now.Add(dumpGrace)
		}
	}
}

// endNext tells the last child that still runs to end, since those before it serve it, and reports whether none is left.
func (w *warden) endNext(ctx context.Context, now time.Time) (over bool) {
	for _, c := range slices.Backward(w.children) {
		if !c.running() {
			continue
		}
		if !c.told {
			w.end(ctx, c, now)
		}
		return false
	}
	return true
}

// end tells a child to end.
func (w *warden) end(ctx context.Context, c *child, now time.Time) {
	c.told = true
	c.signal(syscall.SIGTERM)
	if c.killAt.IsZero() {
		c.killAt = now.Add(endGrace)
	}
	w.Log.LogAttrs(ctx, slog.LevelInfo, "ending child", slog.String("child", c.Name))
}

// want makes a role run, or end and stay away. Only the front may ask for that, since it knows what the cluster wants of this host.
func (w *warden) want(ctx context.Context, from *child, name string, on bool) {
	for _, c := range w.children {
		if c.Name != name || c == from || from.Name != w.Front || c.Off == !on {
			continue
		}
		c.Off, c.startAt = !on, time.Time{}
		w.Log.LogAttrs(ctx, slog.LevelInfo, "child is wanted or not", slog.String("child", name), slog.Bool("wanted", on))
	}
}
