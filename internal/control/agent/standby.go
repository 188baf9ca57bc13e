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

// StandBy keeps the warden from killing VMs whose agent has ended while the store is away: when the authority that it has left is over it stops
// them, as that agent would have. It runs until ctx ends, which is when this agent has a claim of its own, until everything stands, or until the
// warden has done its part. Who arbitrates a VM's storage stands in the store, so all of them stop; the claim lets them run on.
func StandBy(ctx context.Context, c AuthorityConfig) {
	fences, until := c.Warden.Left()
	if until == 0 {
		return
	}
	left := authority.NewAgent(c.Settings, fences, until, host.Boottime()).Left(host.Boottime())
	ctx, done := context.WithTimeout(ctx, left+c.Settings.Freeze-c.Settings.Stop)
	defer done()
	select {
	case <-ctx.Done():
		return
	case <-time.After(left):
	}
	if ctx.Err() != nil {
		return // long ago: what lives is frozen
	}
	c.Log.LogAttrs(ctx, slog.LevelWarn, "vms are stopped: the authority of this host's former agent is over, and the store does not answer")
	for !c.standAll(ctx) && ctx.Err() == nil {
		rest(ctx, haltAgain)
	}
}

// standAll stops every QEMU that has a run directory here, and reports whether all of them stand, or are gone.
func (c AuthorityConfig) standAll(ctx context.Context) bool {
	dirs, err := os.ReadDir(filepath.Join(c.RunDir, "vms"))
	if err != nil {
		return os.IsNotExist(err)
	}
	var all errgroup.Group
	all.SetLimit(haltsMax)
	for _, d := range dirs {
		all.Go(func() error { return c.stand(ctx, inventory.VMID(d.Name())) })
	}
	if err := all.Wait(); err != nil {
		c.Log.LogAttrs(ctx, slog.LevelWarn, "a vm does not stand yet", slog.Any("err", err))
		return false
	}
	return true
}

func (c AuthorityConfig) stand(ctx context.Context, id inventory.VMID) error {
	dir := runDirIn(c.RunDir, id)
	within, done := context.WithTimeout(ctx, haltMax)
	defer done()
	p, err := qemu.Adopt(within, dir)
	if p == nil {
		return nil // it has ended, and the next agent cleans up behind it
	}
	defer p.Release()
	if err != nil {
		return err
	}
	status, err := p.QMP().Status(within)
	if err == nil && mayMove(status) {
		if err = os.WriteFile(haltedFile(dir), nil, 0o600); err == nil {
			err = p.QMP().Stop(within)
		}
		if err == nil {
			status, err = p.QMP().Status(within)
		}
	}
	switch {
	case err != nil:
		return err
	case !stands(status):
		return fault.New(fault.Unavailable, "vm %s is %s", id, status.State)
	}
	return c.Warden.Stands(within, id)
}
