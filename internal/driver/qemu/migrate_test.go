package qemu_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// until reads a QEMU's migration events until the wanted status.
func until(ctx context.Context, t *testing.T, events *qmp.Events, want qmp.MigrationStatus) qmp.Event {
	t.Helper()
	for {
		select {
		case ev, ok := <-events.C:
			switch {
			case !ok:
				t.Fatalf("no more events while waiting for %s: %v", want, events.Err())
			case ev.Migration() == want:
				return ev
			case ev.Migration() == qmp.MigrationFailed:
				t.Fatalf("migration failed while waiting for %s", want)
			}
		case <-ctx.Done():
			t.Fatalf("no %s: %v", want, ctx.Err())
		}
	}
}

func event(ctx context.Context, t *testing.T, events *qmp.Events, name string) qmp.Event {
	t.Helper()
	for {
		select {
		case ev, ok := <-events.C:
			if !ok {
				t.Fatalf("no more events while waiting for %s: %v", name, events.Err())
			}
			if ev.Name == name {
				return ev
			}
		case <-ctx.Done():
			t.Fatalf("no %s: %v", name, ctx.Err())
		}
	}
}

// twoSides starts a heartbeat guest and a QEMU that waits for it, and returns what the guest has counted.
func (h house) twoSides() (source, target *qemu.Process, count uint32) {
	h.t.Helper()
	spec := h.heart("web-1")
	source = h.start(h.config(spec, "source"))
	guest := listen(h.t, source)
	try(h.t, source.QMP().Cont(within(h.t)))
	count = guest.next()
	cfg := h.config(spec, "target")
	cfg.Env.Incoming = true
	return source, h.start(cfg), count
}

// The command lines of both sides as they are, with every device, an image with locks on, and the release between completed
// and cont: the hand-over that control/migrate rests on.
func TestVMMovesBetweenTwoQEMUsWithDiskAndRelease(t *testing.T) {
	h := newHouse(t)
	ctx := within(t)
	source, target, before := h.twoSides()
	if active, known := locked(ctx, t, target); known && active {
		t.Error("the target holds the image before anything has moved")
	}
	capabilities := map[string]bool{
		qemu.FeatureEvents: true, qemu.FeatureReturnPath: true, qemu.FeaturePause: true,
		qemu.FeatureLateActivate: true, qemu.FeatureValidateUUID: true,
	}
	for _, p := range []*qemu.Process{source, target} {
		try(t, p.QMP().SetMigrationCapabilities(ctx, capabilities))
	}
	sourceEvents, targetEvents := source.QMP().Subscribe(), target.QMP().Subscribe()
	address := "unix:" + filepath.Join(string(target.Dir()), "stream.sock")
	try(t, target.QMP().MigrateIncoming(ctx, address, h.abilities.Has(qemu.FeatureStayOnError)))
	// The target's directory is its user's alone; so is the source's QEMU.
	try(t, source.QMP().Migrate(ctx, address))
	until(ctx, t, sourceEvents, qmp.MigrationPreSwitchover)
	try(t, source.QMP().MigrateContinue(ctx))
	until(ctx, t, sourceEvents, qmp.MigrationCompleted)
	until(ctx, t, targetEvents, qmp.MigrationCompleted)

	// Released. Until cont nobody runs and nobody holds the lock.
	status, err := target.QMP().Status(ctx)
	try(t, err)
	if status.Running || status.State != qmp.StatePaused {
		t.Errorf("before its release the target is %s", status.State)
	}
	newGuest := listen(t, target)
	try(t, target.QMP().Cont(ctx))
	resumed := event(ctx, t, targetEvents, qmp.EventResume)
	if resumed.Time.IsZero() {
		t.Error("RESUME without a time")
	}
	if after := newGuest.next(); after <= before {
		t.Errorf("the guest counted %d before and %d after", before, after)
	}
	if active, known := locked(ctx, t, target); known && !active {
		t.Error("the target runs with an inactive disk")
	}
	if err := source.QMP().Cont(ctx); err == nil {
		t.Error("the old source runs again")
	} else {
		t.Logf("the old source: %v", err)
	}
	m, err := source.QMP().Migration(ctx)
	try(t, err)
	t.Logf("total %v, QEMU's downtime %v, sent %v", m.Total, m.Downtime, m.RAM.Transferred)
}

// The story: a guest goes on writing while its memory is copied, and nobody has let it stop. QEMU sends it round after round; only with a limit that it
// fits into does it stand.
func TestAGuestThatWritesIsNotStoppedBeforeItMayBe(t *testing.T) {
	h := newHouse(t)
	ctx := within(t)
	source, target, _ := h.twoSides()
	for _, p := range []*qemu.Process{source, target} {
		try(t, p.QMP().SetMigrationCapabilities(ctx, map[string]bool{qemu.FeatureEvents: true, qemu.FeaturePause: true}))
	}
	try(t, source.QMP().SetMigrationParameters(ctx, qmp.MigrationParameters{BandwidthMax: 8 * inventory.BytesPerSecond(inventory.MiB), DowntimeMax: qmp.DowntimeNone}))
	events := source.QMP().Subscribe()
	address := "unix:" + filepath.Join(string(target.Dir()), "stream.sock")
	try(t, target.QMP().MigrateIncoming(ctx, address, h.abilities.Has(qemu.FeatureStayOnError)))
	try(t, source.QMP().Migrate(ctx, address))
	for pass := 0; pass < 4; {
		select {
		case ev := <-events.C:
			if pass = max(pass, ev.Pass()); ev.Name == qmp.EventStop {
				t.Fatalf("the guest stands in round %d, and nobody has let it", pass)
			}
		case <-ctx.Done():
			t.Fatalf("it is in round %d: %v", pass, ctx.Err())
		}
	}
	try(t, source.QMP().SetMigrationParameters(ctx, qmp.MigrationParameters{DowntimeMax: 10 * time.Second}))
	until(ctx, t, events, qmp.MigrationPreSwitchover)
}

// locked tells whether the QEMU's disk is active, if this QEMU can tell.
func locked(ctx context.Context, t *testing.T, p *qemu.Process) (active, known bool) {
	t.Helper()
	nodes, err := p.QMP().BlockNodes(ctx)
	try(t, err)
	for _, n := range nodes {
		if n.Name == "disk0" && n.Active != nil {
			return *n.Active, true
		}
	}
	return false, false
}
