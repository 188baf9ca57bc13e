package matrix

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// fault is one thing that can go wrong.
type fault struct {
	victim string // whom it strikes; what is held of it stays held until the fault ends
	// strike begins it, and returns what waits for its end and ends it; nil: it is over at once.
	strike func(t *trial) (end func(ctx context.Context) error, err error)
}

// faults says how to strike with each.
var faults = map[string]fault{
	"source agent killed":     killed(sourceAgent),
	"target agent killed":     killed(targetAgent),
	"source QEMU killed":      killed(sourceQEMU),
	"target QEMU killed":      killed(targetQEMU),
	"source agent stands 2s":  stands(sourceAgent, 2*time.Second),
	"target agent stands 2s":  stands(targetAgent, 2*time.Second),
	"source QEMU stands 2s":   stands(sourceQEMU, 2*time.Second),
	"target QEMU stands 2s":   stands(targetQEMU, 2*time.Second),
	"source agent stands 30s": stands(sourceAgent, 30*time.Second),
	"target agent stands 30s": stands(targetAgent, 30*time.Second),
	"source QEMU stands 30s":  stands(sourceQEMU, 30*time.Second),
	"target QEMU stands 30s":  stands(targetQEMU, 30*time.Second),
	"stream cut": {theStream, func(t *trial) (func(context.Context) error, error) {
		near, err := lab.MemoryStream(t.pids[sourceAgent])
		if err != nil {
			return nil, err
		}
		far, err := lab.MemoryStream(t.pids[targetAgent])
		if err != nil {
			return nil, errors.Join(err, near.Close())
		}
		return nil, errors.Join(near.Cut(), far.Cut()) // in this order what is under way to the source is lost
	}},
	"stream stands 6s": {theStream, func(t *trial) (func(context.Context) error, error) {
		var lifts []func() error
		for _, who := range []string{sourceAgent, targetAgent} {
			wire, err := lab.MemoryStream(t.pids[who])
			if err != nil {
				return nil, err
			}
			lift, err := wire.Dead()
			if err != nil {
				return nil, err
			}
			lifts = append(lifts, lift)
		}
		return func(ctx context.Context) error {
			return errors.Join(pass(ctx, 6*time.Second), lifts[0](), lifts[1]())
		}, nil
	}},
	"store stands 6s": {theStore, func(t *trial) (func(context.Context) error, error) {
		return func(ctx context.Context) error { return errors.Join(pass(ctx, 6*time.Second), t.f.etcd.GoOn()) }, t.f.etcd.Stand()
	}},
	// It stays full until all else is judged.
	datastoreFull: {"", func(t *trial) (func(context.Context) error, error) {
		t.f.mounts[t.target.Name].Set(oracle.Full)
		return nil, nil
	}},
}

// datastoreFull is struck before the migration when it is to meet prepare: the lock record is the first that the target makes.
const datastoreFull = "target datastore full"

func killed(who string) fault {
	return fault{who, func(t *trial) (func(context.Context) error, error) {
		return nil, syscall.Kill(t.pids[who], syscall.SIGKILL)
	}}
}

// stands stops a process for a time, or for as long as it lives.
func stands(who string, lasts time.Duration) fault {
	return fault{who, func(t *trial) (func(context.Context) error, error) {
		pid := t.pids[who]
		return func(ctx context.Context) error {
			within, done := context.WithTimeout(ctx, lasts)
			defer done()
			for within.Err() == nil && lives(pid) {
				_ = pass(within, 20*time.Millisecond) // its end is the loop's
			}
			if !lives(pid) {
				t.note("the %s was ended while it stood", who)
				return ctx.Err()
			}
			return errors.Join(ctx.Err(), ended(syscall.Kill(pid, syscall.SIGCONT)))
		}, syscall.Kill(pid, syscall.SIGSTOP)
	}}
}

// lives reports whether a process is there and no zombie.
func lives(pid int) bool {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return false
	}
	stat, err := p.Stat()
	return err == nil && stat.State != "Z" && stat.State != "X"
}

// pass lets time go by.
func pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
