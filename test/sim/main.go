// Command sim runs the simulator over many seeds, or tells the story of one.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/sim"
)

func main() {
	first := flag.Uint64("first", 1, "")
	seeds := flag.Uint64("seeds", 2000, "")
	seed := flag.Uint64("seed", 0, "")
	flag.Parse()
	if *seed != 0 {
		r := sim.Run(*seed, sim.Options{Story: true})
		fmt.Print(r.Story)
		if r.Broken != nil {
			fmt.Println(r.Broken)
			os.Exit(1)
		}
		return
	}
	var next atomic.Uint64
	next.Store(*first)
	var mu sync.Mutex
	var bad []sim.Result
	var total sim.Stats
	var wg sync.WaitGroup
	began := time.Now()
	for range runtime.NumCPU() {
		wg.Go(func() {
			for {
				n := next.Add(1) - 1
				if n >= *first+*seeds {
					return
				}
				r := sim.Run(n, sim.Options{})
				mu.Lock()
				total.Add(r.Stats)
				if r.Broken != nil {
					bad = append(bad, r)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.SortFunc(bad, func(a, b sim.Result) int { return int(a.Seed) - int(b.Seed) })
	for i, r := range bad {
		if i < 40 {
			fmt.Println(r.Seed, r.Broken)
		}
	}
	fmt.Printf("%+v\n", total)
	fmt.Println(time.Since(began) / time.Duration(*seeds))
	fmt.Printf("sim: %d seeds, %.1f virtual hours, %d faults, %d violations\n", *seeds, total.Time.Hours(), total.Faults, len(bad))
}
