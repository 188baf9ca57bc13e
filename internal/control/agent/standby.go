package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// connectBefore is how long before the authority's end StandBy connects to the QEMUs: from the end on it has a second for all of them, and a busy
// one takes its time to greet. An agent whose store answers before that never connects.
const connectBefore = 1500 * time.Millisecond

// StandBy keeps the warden from killing VMs whose agent has ended while the store is away: when the authority that it has left is over it stops
// them, as that agent would have. It runs until ctx ends, which is when this agent has a claim of its own, until everything stands, or until the
// warden has done its part. Who arbitrates a VM's storage stands in the store, so all of them stop; the claim lets them run on.
func StandBy(ctx context.Context, c AuthorityConfig) {
	fences, until := c.Warden.Left()
	if until == 0 {
		return
	}
	left := authority.NewAgent(c.Settings, fences, until, host.Boottime()).Left(host.Boottime())
	over := time.Now().Add(left)
	ctx, done := context.WithTimeout(ctx, left+c.Settings.Freeze-c.Settings.Stop)
	defer done()
	rest(ctx, left-connectBefore)
	if ctx.Err() != nil {
		return // the store answers; or that was long ago, and what lives is frozen
	}
	qemus, err := orphans(c.RunDir)
	if err != nil {
		c.Log.LogAttrs(ctx, slog.LevelError, "vms cannot be stopped, their warden will end them", slog.Any("err", err))
		return
	}
	defer func() {
		for i := range qemus {
			qemus[i].hangUp()
		}
	}()
	before, connected := context.WithDeadline(ctx, over)
	_ = every(qemus, func(o *orphan) error { return o.connect(before) }) // one that does not answer yet is asked again
	connected()
	rest(ctx, time.Until(over))
	if ctx.Err() != nil {
		return
	}
	c.Log.LogAttrs(ctx, slog.LevelWarn, "vms are stopped: the authority of this host's former agent is over, and the store does not answer")
	for ctx.Err() == nil {
		err := every(qemus, func(o *orphan) error { return c.stand(ctx, o) })
		if err == nil {
			return
		}
		c.Log.LogAttrs(ctx, slog.LevelWarn, "a vm does not stand yet", slog.Any("err", err))
		rest(ctx, haltAgain)
	}
}

// orphan is a QEMU whose agent has ended.
type orphan struct {
	id  inventory.VMID
	dir qemu.RunDir
	p   *qemu.Process // nil: not connected to
}

// orphans lists the QEMUs that have a run directory here. No agent is there that would start another.
func orphans(runDir string) ([]orphan, error) {
	dirs, err := os.ReadDir(filepath.Join(runDir, "vms"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	all := make([]orphan, len(dirs))
	for i, d := range dirs {
		id := inventory.VMID(d.Name())
		all[i] = orphan{id: id, dir: runDirIn(runDir, id)}
	}
	return all, nil
}

// every does something with all of them at once, and returns the first error.
func every(qemus []orphan, do func(*orphan) error) error {
	var all errgroup.Group
	all.SetLimit(haltsMax)
	for i := range qemus {
		all.Go(func() error { return do(&qemus[i]) })
	}
	return all.Wait()
}

// connect connects to the QEMU, unless it is connected to, or has ended: then p stays nil.
func (o *orphan) connect(ctx context.Context) error {
	if o.p != nil {
		return nil
	}
	p, err := qemu.Adopt(ctx, o.dir)
	if p == nil {
		return nil // it has ended, and the next agent cleans up behind it
	}
	o.p = p
	if err != nil {
		o.hangUp()
	}
	return err
}

// hangUp lets go of the QEMU.
func (o *orphan) hangUp() {
	if o.p != nil {
		o.p.Release()
		o.p = nil
	}
}

// stand stops the QEMU's vCPUs and tells the warden that they stand.
func (c AuthorityConfig) stand(ctx context.Context, o *orphan) (err error) {
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	defer func() {
		if err != nil {
			o.hangUp() // it may have ended, or its monitor be closed
		}
	}()
	if err := o.connect(within); err != nil || o.p == nil {
		return err
	}
	status, err := o.p.QMP().Status(within)
	if err == nil && mayMove(status) {
		if err = os.WriteFile(haltedFile(o.dir), nil, 0o600); err == nil {
			err = o.p.QMP().Stop(within)
		}
		if err == nil {
			status, err = o.p.QMP().Status(within)
		}
	}
	switch {
	case err != nil:
		return err
	case !stands(status):
		return fault.New(fault.Unavailable, "vm %s is %s", o.id, status.State)
	}
	return c.Warden.Stands(within, o.id)
}
