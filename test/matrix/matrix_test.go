package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/test/lab"
)

var (
	cellsFlag = flag.Int("cells", -1, "how many cells, 0 for all; -1: the twenty of CI")
	seedFlag  = flag.Uint64("seed", 0, "of the order of the cells")
	atFlag    = flag.Int("at", 2, "how many clusters run cells at the same time")
	onlyFlag  = flag.String("only", "", "run only the cells whose names have this in them")
	tagsFlag  = flag.String("tags", "", "build tags of the Godwit that is struck: defect_NAME seeds a mistake (internal/fault/defect), which must be found")
	keepFlag  = flag.String("keep", "", "file to write the run to, as JSON")
)

// The cells of CI: none that lasts for half a minute, in an order that was drawn once.
const (
	ciCells = 20
	ciSeed  = 2272
)

// missesMax is how often the strike at a cell may come too late.
const missesMax = 15

// godwit is Godwit as these tests built it from the commit, without the race detector: that would be another machine's speed.
var godwit, commit string

// held and tried count the cells that the last run tried and that were held.
var held, tried int

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(main(m))
}

func main(m *testing.M) int {
	if *tagsFlag != "" && *keepFlag != "" {
		fmt.Fprintln(os.Stderr, "matrix: no run is kept of a build with tags")
		return 1
	}
	var remove func()
	var err error
	if godwit, commit, remove, err = lab.BuildCommit(*keepFlag != "", "-tags="+*tagsFlag); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		return 1
	}
	defer remove()
	code := m.Run()
	if tried > 0 {
		fmt.Printf("matrix: %d cells, %d held\n", tried, held)
	}
	return code
}

// kept is a run as it is kept.
type kept struct {
	Commit  string   `json:"commit"`
	Command string   `json:"command"`
	Load    string   `json:"load,omitempty"` // of the machine at its end
	Seconds float64  `json:"seconds"`
	Cells   []result `json:"cells"`
}

// result is a cell as it went.
type result struct {
	Phase     string   `json:"phase"`
	Fault     string   `json:"fault"`
	Held      bool     `json:"held"`
	Outcome   string   `json:"outcome,omitempty"`
	Migration string   `json:"migration,omitempty"` // how it ended
	Settled   float64  `json:"settled"`             // seconds from the fault's end
	Bound     float64  `json:"bound"`
	Misses    int      `json:"misses,omitempty"` // strikes that came too late
	Problems  []string `json:"problems,omitempty"`
	Seconds   float64  `json:"seconds"` // that it took, misses included
}

func TestMatrix(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	t.Parallel()
	all, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	n, seed := *cellsFlag, *seedFlag
	if n < 0 {
		n, seed = ciCells, ciSeed
	}
	if short := slices.DeleteFunc(slices.Clone(all), cell.long); n > 0 && n <= len(short) {
		all = short
	}
	if *onlyFlag != "" {
		n = 0
		if all = slices.DeleteFunc(all, func(c cell) bool { return !strings.Contains(c.String(), *onlyFlag) }); len(all) == 0 {
			t.Fatalf("no cell has %q in its name", *onlyFlag)
		}
	}
	begun := time.Now()
	todo := make(chan cell, len(all))
	for _, c := range pick(all, n, seed) {
		todo <- c
		tried++
	}
	close(todo)
	var mu sync.Mutex
	var results []result
	t.Run("cells", func(t *testing.T) {
		for i := range *atFlag {
			t.Run(fmt.Sprintf("cluster %d", i+1), func(t *testing.T) {
				t.Parallel() // a cell waits most of the time
				work(t, todo, func(r result) {
					mu.Lock()
					defer mu.Unlock()
					results = append(results, r)
				})
			})
		}
	})
	for _, r := range results {
		if r.Held {
			held++
		}
	}
	if *keepFlag == "" {
		return
	}
	k := kept{
		Commit: commit, Command: fmt.Sprintf("make matrix CELLS=%d SEED=%d AT=%d", *cellsFlag, *seedFlag, *atFlag), Seconds: round(time.Since(begun)), Cells: results,
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		k.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	slices.SortFunc(k.Cells, func(a, b result) int { return strings.Compare(a.Phase+a.Fault, b.Phase+b.Fault) })
	text, err := json.MarshalIndent(k, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*keepFlag, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keptMin is how many cells a kept run has at least.
const keptMin = 100

// TestTheKeptRunIsWhole holds the kept run to have enough cells, all of the table as it is now and all held, by a build of a commit that anybody can make.
func TestTheKeptRunIsWhole(t *testing.T) {
	const path = "../results/matrix.json"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if k.Commit == "" || strings.HasSuffix(k.Commit, "-dirty") {
		t.Errorf("it was run by a build of %q, which nobody can make again", k.Commit)
	}
	all, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	ran := map[string]result{}
	for _, r := range k.Cells {
		ran[r.Phase+", "+r.Fault] = r
	}
	if len(ran) != len(k.Cells) {
		t.Errorf("%d cells were run more than once", len(k.Cells)-len(ran))
	}
	if len(ran) < keptMin {
		t.Errorf("it has %d cells, and should have %d at least", len(ran), keptMin)
	}
	for _, c := range all {
		r, ok := ran[c.String()]
		delete(ran, c.String())
		switch {
		case !ok: // a run of some of the cells
		case !r.Held || len(r.Problems) > 0:
			t.Errorf("%s: was not held: %.300s", c, strings.Join(r.Problems, "; "))
		case !slices.Contains(c.allowed, r.Outcome):
			t.Errorf("%s: came to %q, and the table allows %q", c, r.Outcome, c.allowed)
		case r.Settled > c.bound.Seconds():
			t.Errorf("%s: settled after %vs, and its bound is %v", c, r.Settled, c.bound)
		}
	}
	for name := range ran {
		t.Errorf("%s: is not in the table", name)
	}
	if t.Failed() {
		t.Log("keep it anew: make matrix")
	}
}

// work runs cells on a cluster of its own; one that a cell broke is replaced.
func work(t *testing.T, todo <-chan cell, done func(result)) {
	t.Helper()
	var f *field
	end := func() {
		if f == nil {
			return
		}
		if err := f.close(); err != nil {
			t.Errorf("the cluster's end: %v", err)
		}
		f = nil
	}
	defer end()
	for c := range todo {
		if t.Context().Err() != nil {
			return
		}
		if f == nil {
			var err error
			if f, err = newField(t.Context()); err != nil {
				t.Fatalf("the cluster does not come up: %v", err)
			}
		}
		r, story := run(t.Context(), f, c)
		done(r)
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", text)
		if !r.Held {
			t.Errorf("%s: %s\n  %s", c, strings.Join(r.Problems, "; "), strings.Join(story, "\n  "))
			for _, h := range f.Hosts {
				t.Logf("log of %s:\n%s", h.Name, tail(h))
			}
			end()
		} else if testing.Verbose() {
			t.Logf("its story:\n  %s", strings.Join(story, "\n  "))
		}
	}
}

// run tries a cell until its strike does not miss.
func run(ctx context.Context, f *field, c cell) (r result, story []string) {
	r = result{Phase: c.phase, Fault: c.fault, Bound: c.bound.Seconds()}
	begun := time.Now()
	ends := f.logEnds()
	for {
		t := &trial{f: f, c: c}
		err := t.run(ctx, &r)
		story = append(story, t.story...)
		if errors.Is(err, errMissed) && r.Misses < missesMax {
			r.Misses++
			story = append(story, err.Error())
			if err := t.clear(ctx); err == nil {
				continue
			} else {
				r.Problems = append(r.Problems, "after a miss: "+err.Error())
			}
		}
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		break
	}
	r.Problems = append(r.Problems, f.alarms(ends)...)
	r.Held = len(r.Problems) == 0
	r.Seconds = round(time.Since(begun))
	return r, story
}

// clear removes the VM of a strike that missed, when its migration has ended.
func (t *trial) clear(ctx context.Context) error {
	_, err := t.settle(ctx, time.Now(), &result{})
	if err != nil {
		return err
	}
	return t.destroy(ctx)
}

// tailMax is how much of each host's log a cell that was not held shows.
const tailMax = 12 << 10

func tail(h *lab.Host) string {
	text, err := os.ReadFile(h.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-tailMax):])
}

// round is a time in seconds, as it is kept.
func round(d time.Duration) float64 {
	return float64(d.Round(10*time.Millisecond)) / float64(time.Second)
}
