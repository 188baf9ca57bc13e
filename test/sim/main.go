// Command sim runs the simulator (internal/sim) over many seeds, in parallel, and says what came of it; or tells the story of one.
//
//	sim -seeds 2000                    seeds 1 to 2000; exit 1 when one broke a promise
//	sim -seed 17                       the story of seed 17, shrunk to the faults that it needs when it breaks a promise
//	sim -seeds 5000 -find              stops at the first one that breaks a promise, and exits 1 when none does: for seeded defects
//	sim -seeds 50000 -record FILE      writes the run down, with a hash of every block of seeds
//	sim -check FILE                    runs one block in a hundred of such a file again; exit 1 when a hash differs
//	sim -calm 72h                      a cluster with a slow store and busy processors, in which nothing may be paused or fenced
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/sim"
)

func main() {
	// Runs make much garbage and keep little: fewer collections are worth a few hundred MiB.
	debug.SetGCPercent(800)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	first := flags.Uint64("first", 1, "the first seed")
	seeds := flags.Uint64("seeds", 2000, "how many seeds")
	seed := flags.Uint64("seed", 0, "tell the story of this seed")
	find := flags.Bool("find", false, "stop at the first broken promise; fail when there is none")
	record := flags.String("record", "", "write the run into this file")
	check := flags.String("check", "", "run one block in a hundred of this file again")
	calm := flags.Duration("calm", 0, "so many hours of a slow store and busy processors, without other faults")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *seed != 0:
		return story(*seed)
	case *check != "":
		return checked(*check)
	case *calm != 0:
		return calmly(*calm, *first)
	case *find:
		return findOne(*first, *seeds)
	}
	return many(*first, *seeds, *record)
}

// story tells what happens with one seed.
func story(seed uint64) error {
	r := sim.Run(seed, sim.Options{Story: true})
	if r.Broken == nil {
		fmt.Print(r.Story)
		fmt.Printf("sim: seed %d, %d faults, hash %016x, 0 violations\n", seed, r.Stats.Faults, r.Hash)
		return nil
	}
	r = sim.Shrink(r)
	fmt.Print(r.Story)
	return fmt.Errorf("seed %d: %s", seed, r.Broken)
}

// findOne runs seeds until one breaks a promise.
func findOne(first, seeds uint64) error {
	began := time.Now()
	bad, n := sim.Find(first, seeds)
	if bad == nil {
		return fmt.Errorf("no violation within %d seeds (%s): the simulator does not see this defect", seeds, strings.Join(defect.Names, " "))
	}
	fmt.Printf("sim: found by %s after %d seeds in %.1fs: %s\n", bad.Broken.Invariant, n, time.Since(began).Seconds(), bad.Broken.What)
	return nil
}

// shown bounds how many broken seeds are listed.
const shown = 10

func many(first, seeds uint64, file string) error {
	var commit string
	if file != "" {
		var err error
		if commit, err = describe(); err != nil { // before the run: the tree may change under it
			return err
		}
	}
	b := sim.Blocks(first, seeds)
	for i, r := range b.Broken {
		if i == shown {
			fmt.Printf("and %d more\n", len(b.Broken)-shown)
			break
		}
		fmt.Printf("seed %d: %s (make sim SEED=%d tells its story)\n", r.Seed, r.Broken, r.Seed)
	}
	s := b.Stats
	fmt.Printf("%d migrations, %d completed; %d crashes, %d fences, %d times VMs were stopped in time, %d VMs killed by wardens; "+
		"restart after a crash with nothing else wrong: %s\n", s.Moves, s.Moved, s.Crashes, s.Fences, s.Pauses, s.Kills, spread(s))
	var err error
	if file != "" {
		err = write(file, commit, b)
	}
	if p := s.Restart(99); p > sim.RestartMax {
		err = errors.Join(err, fmt.Errorf("L1: the 99th percentile of restarts is %v, and %v is promised", p, sim.RestartMax))
	}
	if len(b.Broken) > 0 {
		err = errors.Join(err, fmt.Errorf("%d seeds broke a promise", len(b.Broken)))
	}
	fmt.Printf("sim: %d seeds, %.0f virtual hours, %d faults, %d violations\n", seeds, s.Time.Hours(), s.Faults, len(b.Broken))
	return err
}

func spread(s sim.Stats) string {
	if len(s.Restarts) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d, median %v, p99 %v, longest %v", len(s.Restarts), s.Restart(50), s.Restart(99), s.Restart(100))
}

// calmly runs a cluster for hours in which nothing is broken.
func calmly(d time.Duration, seed uint64) error {
	r := sim.Calm(seed, d)
	fmt.Printf("sim: %.0f virtual hours with 1 s stalls of the store's disks, losses of its leader, 20 %% of the processors' time taken and evacuations: "+
		"%d stalls, %d leader losses, %d migrations (%d completed), %d false pauses, %d false fences\n",
		r.Stats.Time.Hours(), r.Stats.Stalls, r.Stats.Elections, r.Stats.Moves, r.Stats.Moved, r.Stats.Pauses, r.Stats.Fences)
	switch {
	case r.Broken != nil:
		return errors.New(r.Broken.String())
	case r.Stats.Pauses+r.Stats.Fences > 0:
		return errors.New("a host was taken for silent that was not")
	}
	return nil
}
