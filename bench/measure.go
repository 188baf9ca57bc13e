package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
	"github.com/godwit-vm/godwit/test/lab"
)

// The variants.
const (
	godwit        = "godwit"
	plainTuned    = "plain"     // plain QEMU, told what Godwit tells it
	plainDefaults = "defaults"  // plain QEMU at its defaults
	earlier       = "before"    // another build of Godwit, with -before
	plainOneLimit = "one limit" // plain QEMU with all of its downtime limit from the beginning, with -before
)

// variants are all of them, in the order of the tables.
var variants = []string{godwit, plainTuned, earlier, plainOneLimit, plainDefaults}

// Bounds.
const (
	migrateMax = 60 * time.Second // of one migration; one that does not converge is given up then
	guestMax   = 60 * time.Second // of one request to a guest: filling and checking memory under emulation takes seconds
	undoMax    = 30 * time.Second
	tooLong    = "it did not converge in time"
)

// settleTime is how long the guest writes before it is moved: its rate is measured over it.
const settleTime = time.Second

// guestMin is the least memory in MiB that the Linux guest can do this with.
const guestMin = 256

// diskSize is the size of each guest's disk, which it does not use: it is there because its locks are handed over, too.
const diskSize = 64 * inventory.MiB

// guestOf is what can be moved by one of the variants.
type guestOf interface {
	control() string // path of the guest's control socket where it runs now
	resume(ctx context.Context) error
	suspend(ctx context.Context) error
	close(ctx context.Context) error
}

// contender is a variant with its guest. The two plain variants share one.
type contender struct {
	variant string
	guest   guestOf
	migrate func(context.Context) (Sample, error)
}

// measure does all of it in one cluster of two hosts.
func measure(ctx context.Context, o options) (r *Report, err error) {
	cache, err := guest.Cache()
	if err != nil {
		return nil, err
	}
	probes := filepath.Join(cache, "probes")
	wanted := lab.Options{Binary: o.binary, Hosts: 2, Cache: probes}
	if o.log != "" {
		log, err := os.OpenFile(o.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, log.Close()) }()
		wanted.Log = log
	}
	cluster, err := lab.Start(ctx, wanted)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cluster.Close()) }()
	var other *lab.Cluster // nil: there is none
	if o.before != "" {
		wanted.Binary = o.before
		if other, err = lab.Start(ctx, wanted); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, other.Close()) }()
	}
	var user *qemu.User
	if os.Geteuid() == 0 {
		if user, err = qemu.LookupUser(qemu.DefaultUser); err != nil {
			return nil, err
		}
	}
	abilities, err := qemu.Probe(ctx, qemu.ProbeConfig{User: user, CacheDir: probes})
	if err != nil {
		return nil, err
	}
	r = newReport(ctx, o, abilities)
	if r.Starts, err = timeStarts(ctx, cluster, o.pairs); err != nil {
		return nil, err
	}
	for _, memory := range o.memories {
		cases, err := compare(ctx, cluster, other, o, memory, abilities, user)
		if err != nil {
			return nil, err
		}
		r.Cases = append(r.Cases, cases...)
		if err := r.weigh(ctx, cluster); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// compare boots the two guests of one size and goes through the dirty rates.
func compare(
	ctx context.Context, cluster, other *lab.Cluster, o options, memory int, abilities qemu.Abilities, user *qemu.User,
) (cases []Case, err error) {
	after := context.WithoutCancel(ctx)
	name := fmt.Sprintf("bench-%d", memory)
	ours, record, err := newMoved(ctx, cluster, name, inventory.Bytes(memory)*inventory.MiB)
	if err != nil {
		return nil, err
	}
	if err := ours.suspend(ctx); err != nil {
		return nil, err
	}
	theirs, err := newPlain(ctx, cluster, wire.FromVMSpec(record.GetSpec()), abilities, user)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.close(after)) }()
	contenders := []contender{
		{godwit, ours, func(ctx context.Context) (Sample, error) { return ours.migrate(ctx, o) }},
		{plainTuned, theirs, func(ctx context.Context) (Sample, error) { return theirs.migrate(ctx, sameAsGodwit(o)) }},
	}
	guests := []guestOf{ours, theirs}
	if other != nil {
		before, _, err := newMoved(ctx, other, name, inventory.Bytes(memory)*inventory.MiB)
		if err != nil {
			return nil, err
		}
		if err := before.suspend(ctx); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, before.close(after)) }()
		guests = append(guests, before)
		contenders = append(contenders,
			contender{earlier, before, func(ctx context.Context) (Sample, error) { return before.migrate(ctx, o) }},
			contender{plainOneLimit, theirs, func(ctx context.Context) (Sample, error) { return theirs.migrate(ctx, oneLimit(o)) }})
	}
	once := len(contenders) // each guest's first migration, by them, is not counted
	if o.defaults {
		contenders = append(contenders, contender{plainDefaults, theirs, func(ctx context.Context) (Sample, error) {
			return theirs.migrate(ctx, untouched())
		}})
	}
	if err := booted(ctx, theirs); err != nil { // while the other is paused
		return nil, err
	}
	if err := theirs.suspend(ctx); err != nil {
		return nil, err
	}
	set := memory / 2
	for i, rate := range o.rates {
		c := Case{MemoryMiB: memory, DirtyMiB: rate, SetMiB: set}
		for _, g := range guests {
			if err := write(ctx, g, rate, set); err != nil {
				return nil, err
			}
		}
		if i == 0 { // the first migration of a guest finds caches cold that no later one does: it is not counted
			if _, err := c.pair(ctx, contenders[:once], 0); err != nil {
				return nil, err
			}
		}
		for n := range o.pairs {
			pair, err := c.pair(ctx, contenders, n)
			if err != nil {
				return nil, err
			}
			c.Pairs = append(c.Pairs, pair)
		}
		cases = append(cases, c)
	}
	return cases, ours.close(ctx)
}

// pair measures each variant once; who is first changes from pair to pair.
func (c Case) pair(ctx context.Context, all []contender, n int) (Pair, error) {
	var p Pair
	for i := range all {
		who := all[(i+n)%len(all)]
		s, err := one(ctx, who)
		if err != nil {
			return nil, fmt.Errorf("%s, %d MiB, %d MiB/s: %w", who.variant, c.MemoryMiB, c.DirtyMiB, err)
		}
		p = append(p, s)
		say("%5d MiB %4d MiB/s  %-9s total %7.0f ms  copy %7.0f ms  pause %6.1f ms  %7.1f MiB in %d rounds  %s%s",
			c.MemoryMiB, c.DirtyMiB, s.Variant, s.Total, s.Copy, s.Pause, sent(s), s.Rounds, s.Memory, s.Failed)
	}
	return p, nil
}

// one lets a guest run, moves it, has it check its memory, and pauses it again, so that the other has the machine for itself.
func one(ctx context.Context, c contender) (s Sample, err error) {
	if err := c.guest.resume(ctx); err != nil {
		return s, err
	}
	before, rate, err := settle(ctx, c.guest)
	if err != nil {
		return s, err
	}
	within, done := context.WithTimeout(ctx, migrateMax)
	s, err = c.migrate(within)
	done()
	if err != nil {
		return s, err
	}
	s.Variant, s.Dirty, s.Load = c.variant, rate, load()
	err = ask(ctx, c.guest, func(ctx context.Context, g *control.Client) error {
		sum, err := g.Checksum(ctx)
		if err != nil {
			return err
		}
		after, err := g.Status(ctx)
		if err != nil {
			return err
		}
		s.Memory, s.Equal = sum.String(), sum.OK
		if after.Boot != before.Boot || after.UptimeMS < before.UptimeMS {
			return fmt.Errorf("the guest was restarted: boot %s became %s", before.Boot, after.Boot)
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if !s.Equal {
		return s, fmt.Errorf("memory differs after the migration: %s", s.Memory)
	}
	return s, c.guest.suspend(ctx)
}

// settle lets the guest write for a while, and returns its status after that and the MiB it wrote each second.
func settle(ctx context.Context, g guestOf) (after control.Status, rate float64, err error) {
	err = ask(ctx, g, func(ctx context.Context, c *control.Client) error {
		before, err := c.Status(ctx)
		if err != nil {
			return err
		}
		select {
		case <-time.After(settleTime):
		case <-ctx.Done():
			return ctx.Err()
		}
		if after, err = c.Status(ctx); err != nil || after.Dirty == nil || before.Dirty == nil {
			return err
		}
		seconds := float64(after.UptimeMS-before.UptimeMS) / 1e3
		rate = float64(after.Dirty.Writes-before.Dirty.Writes) * 4096 / (1 << 20) / seconds
		return nil
	})
	return after, rate, err
}

// write has a paused guest fill its set and write to it from then on; it is paused again when that has begun.
func write(ctx context.Context, g guestOf, rate, set int) error {
	if err := g.resume(ctx); err != nil {
		return err
	}
	err := ask(ctx, g, func(ctx context.Context, c *control.Client) error {
		_, err := c.Dirty(ctx, control.DirtyOptions{Rate: int64(rate) << 20, Set: int64(set) << 20})
		return err
	})
	if err != nil {
		return err
	}
	return g.suspend(ctx)
}

// booted waits until the guest has an address.
func booted(ctx context.Context, g guestOf) error {
	return lab.Until(ctx, guestMax, func() error {
		return ask(ctx, g, func(ctx context.Context, c *control.Client) error {
			within, done := context.WithTimeout(ctx, time.Second) // one that is still booting answers nothing
			defer done()
			s, err := c.Status(within)
			if err == nil && s.IP == "" {
				err = errors.New("the guest has no address yet")
			}
			return err
		})
	})
}

// ask speaks with a guest over its virtio-serial port.
func ask(ctx context.Context, g guestOf, f func(context.Context, *control.Client) error) error {
	within, done := context.WithTimeout(ctx, guestMax)
	defer done()
	var dialer net.Dialer
	conn, err := dialer.DialContext(within, "unix", g.control())
	if err != nil {
		return err
	}
	c := control.NewClient(conn)
	defer func() { _ = c.Close() }() // nothing is left to say
	return f(within, c)
}
