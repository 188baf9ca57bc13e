package sim

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// RestartMax is how long a VM may take to run again after its host has crashed, at the 99th percentile (L1).
const RestartMax = restartMax

// blockSize is how many seeds share a hash in a Record.
const blockSize = 50

// BlockRun is a run of many seeds.
type BlockRun struct {
	First, Seeds uint64
	Stats        Stats
	Broken       []Result // by seed
	Hashes       []uint64 // of each block of seeds
}

// Blocks runs seeds on all processors. Each seed's run is deterministic, and so is what is returned.
func Blocks(first, seeds uint64) BlockRun {
	b := BlockRun{First: first, Seeds: seeds}
	count := int((seeds + blockSize - 1) / blockSize)
	b.Hashes = make([]uint64, count)
	stats, broken := make([]Stats, count), make([][]Result, count)
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < count; i = int(next.Add(1)) - 1 {
				from := uint64(i) * blockSize
				b.Hashes[i], stats[i], broken[i] = block(first+from, min(blockSize, seeds-from))
			}
		})
	}
	all.Wait()
	for i := range count {
		b.Stats.Add(stats[i])
		b.Broken = append(b.Broken, broken[i]...)
	}
	return b
}

// block runs the seeds of one block, one after the other.
func block(first, seeds uint64) (hash uint64, stats Stats, broken []Result) {
	hash = hashStart
	for seed := first; seed < first+seeds; seed++ {
		r := Run(seed, Options{})
		hash = (hash ^ r.Hash) * hashPrime
		stats.Add(r.Stats)
		if r.Broken != nil {
			broken = append(broken, r)
		}
	}
	return hash, stats, broken
}

// Find runs seeds until one breaks a promise, and returns it with how many were begun; nil when none does.
func Find(first, seeds uint64) (*Result, uint64) {
	var next atomic.Uint64
	var mu sync.Mutex
	var found *Result
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for n := next.Add(1); n <= seeds; n = next.Add(1) {
				r := Run(first+n-1, Options{})
				mu.Lock()
				if r.Broken != nil && (found == nil || r.Seed < found.Seed) {
					found = &r
				}
				stop := found != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	all.Wait()
	if found == nil {
		return nil, seeds
	}
	return found, found.Seed - first + 1
}

// Record is a run of many seeds as it is kept.
type Record struct {
	Commit       string
	Command      string
	Go           string
	First        uint64
	Seeds        uint64
	VirtualHours float64
	Faults       int
	Violations   int
	Broken       []string `json:",omitempty"`
	Migrations   int
	Completed    int
	Crashes      int
	Fences       int
	Pauses       int
	Kills        int
	Restarts     int // after a crash with nothing else wrong
	RestartP99   string
	BlockSize    int
	Blocks       string // a hash of each block's runs, in hexadecimal, with spaces between them
}

// NewRecord returns a run as it is kept; commit, command and Go's version are the caller's to fill in.
func NewRecord(b BlockRun) Record {
	s := b.Stats
	r := Record{
		First: b.First, Seeds: b.Seeds, VirtualHours: float64(int(s.Time.Hours())), Faults: s.Faults, Violations: len(b.Broken),
		Migrations: s.Moves, Completed: s.Moved, Crashes: s.Crashes, Fences: s.Fences, Pauses: s.Pauses, Kills: s.Kills,
		Restarts: len(s.Restarts), BlockSize: blockSize,
	}
	if len(s.Restarts) > 0 {
		r.RestartP99 = s.Restart(99).String()
	}
	for _, broken := range b.Broken {
		r.Broken = append(r.Broken, fmt.Sprintf("seed %d: %s", broken.Seed, broken.Broken))
	}
	words := make([]string, 0, len(b.Hashes))
	for _, h := range b.Hashes {
		words = append(words, fmt.Sprintf("%016x", h))
	}
	r.Blocks = strings.Join(words, " ")
	return r
}

// Check runs every nth block again, on all processors, and returns how many seeds that were; an error names the first whose hash differs.
func (r Record) Check(nth int) (seeds int, err error) {
	blocks := strings.Fields(r.Blocks)
	if r.BlockSize != blockSize || len(blocks) != int((r.Seeds+blockSize-1)/blockSize) {
		return 0, fmt.Errorf("it has %d blocks of %d for %d seeds: record it again", len(blocks), r.BlockSize, r.Seeds)
	}
	var which []int
	for i := nth / 2 % len(blocks); i < len(blocks); i += nth {
		which = append(which, i)
	}
	wrong := make([]string, len(which))
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for k := int(next.Add(1)) - 1; k < len(which); k = int(next.Add(1)) - 1 {
				from := uint64(which[k]) * blockSize
				if h, _, _ := block(r.First+from, min(blockSize, r.Seeds-from)); fmt.Sprintf("%016x", h) != blocks[which[k]] {
					wrong[k] = fmt.Sprintf("%016x", h)
				}
			}
		})
	}
	all.Wait()
	for k, i := range which {
		if wrong[k] != "" {
			return 0, fmt.Errorf("seeds %d to %d gave the hash %s and give %s now: the rules have changed since, so record it again (make sim-record)",
				r.First+uint64(i)*blockSize, r.First+uint64(i+1)*blockSize-1, blocks[i], wrong[k])
		}
		seeds += blockSize
	}
	return seeds, nil
}
