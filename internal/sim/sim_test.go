package sim

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func BenchmarkRun(b *testing.B) {
	n := uint64(0)
	for b.Loop() {
		n++
		if r := Run(n, Options{}); r.Broken != nil {
			b.Fatalf("seed %d: %s", n, r.Broken)
		}
	}
}

func TestASeedGivesTheSameRunEachTime(t *testing.T) {
	seen := map[uint64]uint64{}
	for seed := uint64(1); seed <= 4; seed++ {
		once, again, told := Run(seed, Options{}), Run(seed, Options{}), Run(seed, Options{Story: true})
		if once.Hash != again.Hash || once.Hash != told.Hash {
			t.Errorf("seed %d: hashes %x, %x and with its story %x", seed, once.Hash, again.Hash, told.Hash)
		}
		if other := seen[once.Hash]; other != 0 {
			t.Errorf("seeds %d and %d give the same run", other, seed)
		}
		seen[once.Hash] = seed
		if !strings.Contains(told.Story, "boots") || !strings.Contains(told.Story, "fault") {
			t.Errorf("seed %d: its story tells nothing:\n%s", seed, told.Story)
		}
	}
}

// TestFewSeedsKeepEveryPromise is a taste of make sim. It holds the runs to be of use: each kind of trouble has to come about.
func TestFewSeedsKeepEveryPromise(t *testing.T) {
	seeds := uint64(100)
	if raced {
		seeds = 10
	}
	b := Blocks(1, seeds)
	for _, r := range b.Broken {
		t.Errorf("seed %d: %s", r.Seed, r.Broken)
	}
	s := b.Stats
	if s.Time < time.Duration(seeds)*5*time.Minute || s.Faults < int(seeds)*5 {
		t.Errorf("%v virtual time and %d faults in %d seeds: too little", s.Time, s.Faults, seeds)
	}
	if s.Guarded == 0 || s.Guarded == s.Moved || s.LocksLost == 0 {
		t.Errorf("VMs of one kind of storage never moved, or no lock was lost: %+v", s)
	}
	if s.Moved == 0 || s.Moved == s.Moves || s.Fences == 0 || s.Pauses == 0 || s.Kills == 0 || len(s.Restarts) == 0 {
		t.Errorf("something never came about: %+v", s)
	}
}

const kept = "../../test/results/sim.json"

// TestTheKeptRunCanBeRepeated runs a hundredth of the kept run again: the rules are those that it was made with.
func TestTheKeptRunCanBeRepeated(t *testing.T) {
	text, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Seeds < 50000 || r.Violations != 0 || r.Commit == "" {
		t.Errorf("the kept run has %d seeds, %d violations, and is of commit %q", r.Seeds, r.Violations, r.Commit)
	}
	nth := 100
	if raced {
		nth = len(strings.Fields(r.Blocks))
	}
	n, err := r.Check(nth)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d seeds were run again", n, r.Seeds)
}

func TestACheckSeesAnotherHash(t *testing.T) {
	r := NewRecord(Blocks(7, 2))
	if n, err := r.Check(1); err != nil || n == 0 {
		t.Fatalf("%d seeds, %v", n, err)
	}
	r.Blocks = "0000000000000000"
	if _, err := r.Check(1); err == nil {
		t.Error("a wrong hash was not seen")
	}
}

// TestACalmClusterStaysAsItIs is an hour of the 72 of make sim-calm.
func TestACalmClusterStaysAsItIs(t *testing.T) {
	long := time.Hour
	if raced {
		long = 20 * time.Minute
	}
	if r := Calm(1, long); r.Broken != nil || r.Stats.Pauses+r.Stats.Fences != 0 || r.Stats.Stalls == 0 || r.Stats.Moved == 0 {
		t.Errorf("%v, %+v", r.Broken, r.Stats)
	}
}
