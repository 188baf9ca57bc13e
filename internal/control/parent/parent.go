// Package parent is the plain main process of a host: it starts the roles (store, switch, agent) as children of one
// binary, starts a child again that ended, and ends them all when it is told to.
//
// It does not watch whether a child answers, nor does it kill VMs: it only keeps processes there. VMs are nobody's
// children that matter here: a QEMU outlives its agent and this process too. As the subreaper of what it started
// (prctl(2), PR_SET_CHILD_SUBREAPER) it inherits the QEMUs of a dead agent, so that none of them becomes a zombie.
package parent

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Child is a role to keep running.
type Child struct {
	Role string
	Args []string // of this binary
}

// Bounds of starting a child again and of ending it.
const (
	restartFirst = 100 * time.Millisecond
	restartMax   = 5 * time.Second
	steadyAfter  = 10 * time.Second // a child that ran so long starts again at once
	endGrace     = 10 * time.Second // then it is killed
)

// Run keeps the children running until ctx ends, then ends them in reverse order, and returns when the last is gone.
// It must be called from the main goroutine of a process that starts no other children.
func Run(ctx context.Context, binary string, children []Child, log *slog.Logger) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fault.New(fault.Internal, "become subreaper: %w", err)
	}
	reaped, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	var reaper errgroup.Group
	reaper.Go(func() error { reapOrphans(reaped); return nil })
	defer func() { stopReaping(); _ = reaper.Wait() }() // it returns no error

	// Each child gets a context of its own that ends only after the children listed behind it are gone: the agent stops first,
	// the store last.
	var all errgroup.Group
	until := ctx.Done()
	for _, child := range slices.Backward(children) {
		stop, gone := until, make(chan struct{})
		all.Go(func() error {
			defer close(gone)
			own, cancel := context.WithCancel(context.WithoutCancel(ctx))
			defer cancel()
			go func() { // ends with own
				select {
				case <-stop:
					cancel()
				case <-own.Done():
				}
			}()
			keep(own, binary, child, log)
			return nil
		})
		until = gone
	}
	return all.Wait()
}

// keep runs one child until ctx ends.
func keep(ctx context.Context, binary string, child Child, log *slog.Logger) {
	pause := restartFirst
	for {
		started := time.Now()
		err := once(ctx, binary, child, log)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > steadyAfter {
			pause = restartFirst
		}
		log.LogAttrs(ctx, slog.LevelWarn, "child ended, starting it again", slog.String("role", child.Role),
			slog.Any("err", err), slog.Duration("after", pause))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMax)
	}
}

// once runs the child to its end.
func once(ctx context.Context, binary string, child Child, log *slog.Logger) error {
	// The kernel sends the parent-death signal when the creating *thread* ends (prctl(2)), so the thread must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, binary, child.Args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// A group of its own: Ctrl-C at a terminal is for this process, which then ends the children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endGrace
	if err := cmd.Start(); err != nil {
		return fault.Wrap("start", child.Role, err)
	}
	log.LogAttrs(ctx, slog.LevelInfo, "child started", slog.String("role", child.Role), slog.Int("pid", cmd.Process.Pid))
	return cmd.Wait()
}

// reapOrphans waits for adopted processes that ended, so that they do not stay as zombies. It leaves this process' own
// children to os/exec: an adopted process is recognised by its state and by not being in our process groups.
func reapOrphans(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, pid := range orphans() {
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // gone already is as good
		}
	}
}
