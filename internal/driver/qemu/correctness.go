package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Figures of the correctness probe. A QEMU that loses writes does so in almost every migration of this guest (7.2 under TCG: see
// the package's tests), so a few hops decide.
const (
	checkHops       = 3                // migrations, one after the other, of the same guest
	checkReports    = 3                // reports of the guest after each, all of which must be good
	checkRoundsMin  = 6                // rounds that should be sent while the guest writes
	checkBandwidth  = 64 << 20         // bytes per second: slow enough for rounds, fast enough for us
	checkTimeMax    = 60 * time.Second // for all of it; takes 1.5 s on an idle machine
	checkPollEvery  = 10 * time.Millisecond
	checkMemory     = "64M"
	checkDowntime   = time.Millisecond // never met by a guest that writes, so rounds go on until we raise it
	checkDowntimeUp = time.Second
	// checkFill is 16 MiB that are sent in the first round only, 0.25 s of it: QEMU 7.2 has no idea of the bandwidth for the first
	// 0.1 s, and stops the guest after a first round that is shorter, so that nothing is there to be lost.
	checkFill = 4096
)

// CheckMigration finds out whether this QEMU migrates memory without losing writes under an accelerator: it moves a guest that writes all
// the time, and checks itself, from one plain QEMU to another, checkHops times over. The verdict is kept in the cache directory until the
// binary (and with KVM the kernel) changes. Takes 1.5 s.
//
// A migration that QEMU itself fails makes the verdict bad as well. Errors are only for a probe that could not be made: fault.NotFound
// without the binary, fault.Unavailable when QEMU does not start, fault.Canceled with ctx; nothing is kept then.
func CheckMigration(ctx context.Context, cfg ProbeConfig, accelerator string) (inventory.Verdict, error) {
	v, err := checkMigration(ctx, cfg, accelerator)
	return v, fault.Wrap("check migration", "with "+cfg.binary(), err)
}

func checkMigration(ctx context.Context, cfg ProbeConfig, accelerator string) (inventory.Verdict, error) {
	build, err := buildOf(cfg.binary())
	if err != nil {
		return inventory.Verdict{}, err
	}
	key := probeVersion + " " + build + " " + accelerator
	if accelerator == KVM {
		key += " " + hostKey()
	}
	cached := cache[inventory.Verdict]{dir: cfg.CacheDir, name: "migration-" + accelerator + "-" + digest(cfg.binary())}
	if v, ok := cached.load(key); ok && !cfg.Fresh {
		return v, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeMax)
	defer cancel()
	for range checkTries {
		v, err := hop(ctx, cfg, accelerator)
		if err == nil {
			return v, cached.save(key, v)
		}
		if !errors.Is(err, errEarly) {
			return inventory.Verdict{}, err
		}
	}
	return inventory.Verdict{}, fault.New(fault.Unavailable, "%w, %d times over: run godwit doctor again when the machine is less busy", errEarly, checkTries)
}

// checkTries is how often a check that shows nothing is made again.
const checkTries = 4

// errEarly says that a check shows nothing: each migration ended before QEMU had seen the guest write. On a machine that is so
// busy that the guest's vCPU did not get to run, a good QEMU does that; one that overlooks writes does it too, but not
// for long without a loss that the guest notices.
var errEarly = errors.New("all migrations of a guest that writes without pause ended as if it wrote nothing")

// hop moves the guest through checkHops+1 QEMUs.
func hop(ctx context.Context, cfg ProbeConfig, accelerator string) (inventory.Verdict, error) {
	began := time.Now()
	source, err := startChecked(ctx, cfg, accelerator, false)
	if err != nil {
		return inventory.Verdict{}, err
	}
	defer func() { source.close() }() // whichever is the source by then
	if r, err := source.reports(); err != nil || r.Bad > 0 {
		return inventory.Verdict{}, fault.New(fault.Unavailable, "the checked guest does not run: %s %w", r, err)
	}
	var passes uint32
	early := 0
	for i := range checkHops {
		target, err := startChecked(ctx, cfg, accelerator, true)
		if err != nil {
			return inventory.Verdict{}, err
		}
		rounds, err := source.migrate(ctx, target)
		source.close()
		source = target
		if err != nil {
			return bad(ctx, "migration %d of %d failed: %v", i+1, checkHops, err)
		}
		report, err := source.reports()
		switch {
		case err != nil:
			return bad(ctx, "the guest fell silent after migration %d of %d (%d rounds)", i+1, checkHops, rounds)
		case report.Bad > 0:
			return bad(ctx, "memory was corrupted by migration %d of %d (%d rounds): %s", i+1, checkHops, rounds, report)
		}
		if passes = report.Passes; rounds < checkRoundsMin {
			early++
		}
	}
	// Before we raise its limit QEMU can only have stopped a guest of which it saw no writes at all.
	if early == checkHops {
		return inventory.Verdict{}, errEarly
	}
	return inventory.Verdict{
		State: inventory.VerdictGood,
		Detail: fmt.Sprintf("%d migrations of a writing guest under %s lost nothing (%d passes over its memory, %.1f s)",
			checkHops, accelerator, passes, time.Since(began).Seconds()),
	}, nil
}

// bad is the verdict on a QEMU that failed the check, unless it failed because the time is up or somebody cancelled.
func bad(ctx context.Context, format string, args ...any) (inventory.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return inventory.Verdict{}, fault.New(fault.Canceled, "gave up: %s: %w", fmt.Sprintf(format, args...), err)
	}
	return inventory.Verdict{State: inventory.VerdictBad, Detail: fmt.Sprintf(format, args...)}, nil
}

// checked is a QEMU with the checked guest.
type checked struct {
	*trial
	com1  net.Conn
	lines *bufio.Scanner
}

func startChecked(ctx context.Context, cfg ProbeConfig, accelerator string, incoming bool) (*checked, error) {
	args := append([]string{"-machine", "q35", "-accel", accelerator, "-m", checkMemory}, serialArgs...)
	if incoming {
		args = append(args, "-incoming", "defer")
	}
	t, err := startTrial(ctx, cfg.binary(), cfg.User, tiny.Checked(tiny.Options{Fill: checkFill}), args...)
	if err != nil {
		return nil, err
	}
	com1, err := t.console(ctx)
	if err == nil {
		deadline, _ := ctx.Deadline() // checkMigration has set one
		err = com1.SetReadDeadline(deadline)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return &checked{trial: t, com1: com1, lines: bufio.NewScanner(com1)}, nil
}

func (c *checked) close() {
	c.trial.close()
	_ = c.com1.Close() // only read from
}

// reports returns the first bad report of the guest, or else the last of checkReports good ones that followed one another.
func (c *checked) reports() (last tiny.Check, err error) {
	for good := 0; good < checkReports; {
		if !c.lines.Scan() {
			return last, fault.New(fault.Unavailable, "no reports on the serial port (log: %s)", oneLine(tail(c.log())))
		}
		// The line under way at the switchover arrives in two parts, one at each side.
		report, ok := tiny.ParseCheck(strings.TrimSpace(c.lines.Text()))
		if !ok {
			continue
		}
		if last = report; report.Bad > 0 {
			return last, nil
		}
		good++
	}
	return last, nil
}

// migrate moves the guest to target and returns after how many rounds it stopped.
func (c *checked) migrate(ctx context.Context, target *checked) (rounds int, err error) {
	uri := "unix:" + filepath.Join(target.dir, "stream.sock")
	if err := target.conn.MigrateIncoming(ctx, uri, false); err != nil {
		return 0, err
	}
	limits := qmp.MigrationParameters{BandwidthMax: checkBandwidth, DowntimeMax: checkDowntime}
	if err := c.conn.SetMigrationParameters(ctx, limits); err != nil {
		return 0, err
	}
	if err := c.conn.Migrate(ctx, uri); err != nil {
		return 0, err
	}
	raised := false
	tick := time.NewTicker(checkPollEvery) // rounds are no events in every QEMU that we probe
	defer tick.Stop()
	for {
		m, err := c.conn.Migration(ctx)
		switch {
		case err != nil:
			return rounds, err
		case m.Status == qmp.MigrationCompleted:
			return max(rounds, m.RAM.Rounds), nil
		case m.Status.Ended():
			return rounds, fault.New(fault.Internal, "%s %s (target: %s)", m.Status, m.Error, oneLine(tail(target.log())))
		}
		rounds = max(rounds, m.RAM.Rounds)
		if rounds >= checkRoundsMin && !raised {
			if err := c.conn.SetMigrationParameters(ctx, qmp.MigrationParameters{DowntimeMax: checkDowntimeUp}); err != nil {
				return rounds, err
			}
			raised = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return rounds, ctx.Err()
		}
	}
}
