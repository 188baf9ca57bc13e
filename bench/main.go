// Command bench compares migrations by Godwit with migrations by plain QEMU: the same guest on the same machine with the same
// settings, moved in turn by one and by the other, and the numbers compared pair by pair, so that what else the
// machine does weighs on both. It writes a table, the raw samples as JSON, and a drawing; docs/performance.md explains the figures.
//
// With -scale it gives one leader many simulated hosts. With -many it fills one host with tiny VMs instead, and measures how long that takes and what the host does when they are idle.
//
// With -before it also measures another build of Godwit, in the same pairs, and plain QEMU told what that build told its QEMUs at a time when there
// was one downtime limit for all of a migration.
//
// Plain is two QEMUs with the command line that Godwit would give them, joined by a unix socket, driven over QMP with nothing
// between: no second machine's network, no encryption, no records, no clean-up of anything but the processes. It is the
// least that a migration can cost here, not a way to run a data centre.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// options are the flags.
type options struct {
	binary    string
	before    string // another build to measure beside it; empty: none
	out       string
	name      string
	pairs     int
	memories  []int // MiB
	rates     []int // MiB/s
	log       string
	defaults  bool
	bandwidth inventory.BytesPerSecond
	downtime  time.Duration
	many      int    // VMs on one host instead; 0: migrations
	guest     string // that these run
	scale     int    // simulated hosts instead; 0: none
}

func main() {
	var o options
	var bandwidth, memories, rates string
	var quick, pauses bool
	flag.StringVar(&o.binary, "godwit", "bin/godwit", "the godwit binary")
	flag.StringVar(&o.out, "out", "bench/results", "folder of the results")
	flag.StringVar(&o.name, "name", "migration", "how the results' files begin")
	flag.IntVar(&o.pairs, "pairs", 5, "migrations of each variant in each case")
	flag.BoolVar(&quick, "quick", false, "one small guest, two dirty rates, two pairs")
	flag.BoolVar(&pauses, "pause", false, "the pause of an idle guest of 512 MiB only: 15 pairs or more, in files of that name")
	flag.StringVar(&o.before, "before", "", "also measure this older binary, in a cluster of its own, and plain QEMU with one downtime limit")
	flag.StringVar(&memories, "memory", "512,1024", "the guests' memory in MiB")
	flag.StringVar(&rates, "dirty", "0,20,100", "dirty rates in MiB/s")
	flag.StringVar(&o.log, "log", "", "file for the hosts' logs")
	flag.BoolVar(&o.defaults, "defaults", true, "also measure plain QEMU with its default settings")
	flag.StringVar(&bandwidth, "bandwidth", "", "limit of all variants but the defaults in bytes a second, like 112M; empty: none")
	flag.DurationVar(&o.downtime, "downtime", 0, "downtime limit of all variants but the defaults; 0: Godwit's own")
	flag.IntVar(&o.many, "many", 0, "fill one host with so many tiny VMs instead, and measure start, idleness and vm ls; as many times as -pairs says")
	flag.StringVar(&o.guest, "guest", "idle", "what these VMs run: idle, or heartbeat, which prints ten lines a second")
	flag.IntVar(&o.scale, "scale", 0, "give one leader so many simulated hosts with ten VMs each instead, and measure what it takes")
	flag.Parse()
	if quick {
		o.pairs, memories, rates = 2, "512", "0,20"
	}
	if pauses {
		o.pairs, memories, rates, o.name, o.defaults = max(o.pairs, pausePairs), "512", "0", "pause", false
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := begin(ctx, o, bandwidth, memories, rates)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// pausePairs is the least that the goal for the pause asks for.
const pausePairs = 15

func begin(ctx context.Context, o options, bandwidth, memories, rates string) (err error) {
	if o.pairs < 1 {
		return errors.New("-pairs must be 1 or more")
	}
	if o.memories, err = numbers(memories, guestMin); err != nil {
		return fmt.Errorf("-memory: %w", err)
	}
	if o.rates, err = numbers(rates, 0); err != nil {
		return fmt.Errorf("-dirty: %w", err)
	}
	if bandwidth != "" {
		limit, err := inventory.ParseBytes(bandwidth)
		if err != nil {
			return fmt.Errorf("-bandwidth: %w", err)
		}
		o.bandwidth = inventory.BytesPerSecond(limit)
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	if o.before != "" {
		if o.before, err = filepath.Abs(o.before); err != nil {
			return err
		}
	}
	if o.many > 0 {
		m, err := measureMany(ctx, o)
		if err != nil {
			return err
		}
		return m.write(o.out, "many-"+o.guest)
	}
	if o.scale > 0 {
		s, err := measureScale(ctx, o)
		if err != nil {
			return err
		}
		return s.write(o.out, "scale")
	}
	report, err := measure(ctx, o)
	if err != nil {
		return err
	}
	return report.write(o.out, o.name)
}

// numbers reads a list of whole numbers with commas.
func numbers(list string, lowest int) ([]int, error) {
	var all []int
	for word := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < lowest {
			return nil, fmt.Errorf("%q is no whole number from %d on: write some with commas, like 512,1024", word, lowest)
		}
		all = append(all, n)
	}
	return all, nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
