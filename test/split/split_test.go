package split

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

var (
	runsFlag = flag.Int("runs", 0, "how many runs; 0: the three of CI")
	seedFlag = flag.Uint64("seed", 0, "of the first run; the next ones follow")
	keepFlag = flag.String("keep", "", "file to append each run to, as JSON; it is made")
)

// ciSeeds are runs that strike at the heart. They go beside one another, as they wait most of the time.
var ciSeeds = []uint64{0, 8, 21}

// binary is godwit as these tests built it from the commit, without the race detector: that would be another machine's speed.
var binary, commit string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(main(m))
}

func main(m *testing.M) int {
	var remove func()
	var err error
	if binary, commit, remove, err = lab.BuildCommit(*keepFlag != ""); err != nil {
		fmt.Fprintln(os.Stderr, "split:", err)
		return 1
	}
	defer remove()
	return m.Run()
}

func TestNoTwoCopies(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	t.Parallel()
	seeds := ciSeeds
	if *runsFlag != 0 {
		seeds = nil
		for n := range *runsFlag {
			seeds = append(seeds, *seedFlag+uint64(n)) //nolint:gosec // not negative
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel() // a run waits most of the time; -parallel says how many go beside one another
			r, story := run(t.Context(), seed)
			r.Commit, r.Command = commit, fmt.Sprintf("make split RUNS=%d SEED=%d", *runsFlag, *seedFlag)
			if load, err := os.ReadFile("/proc/loadavg"); err == nil {
				r.Load = strings.Join(strings.Fields(string(load))[:3], " ")
			}
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", text)
			if r.Verdict != "one copy" {
				t.Errorf("%s\nits story:\n  %s\nagain: go test ./test/split -runs 1 -seed %d -v", strings.Join(r.Problems, "\n"), join(story), seed)
			} else if testing.Verbose() {
				t.Logf("its story:\n  %s", join(story))
			}
			if err := keep(*keepFlag, r); err != nil {
				t.Error(err)
			}
		})
	}
}

// kept is the file of runs.
type kept struct {
	Runs []result `json:"runs"`
}

// keeping is held over a change of the file.
var keeping sync.Mutex

// keep adds a run to the file, in place of an older one of the same seed. The file is whole at every moment.
func keep(path string, r result) error {
	if path == "" {
		return nil
	}
	keeping.Lock()
	defer keeping.Unlock()
	var all kept
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if err := json.Unmarshal(text, &all); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	at := 0
	for at < len(all.Runs) && all.Runs[at].Seed < r.Seed {
		at++
	}
	end := at
	if end < len(all.Runs) && all.Runs[end].Seed == r.Seed {
		end++
	}
	all.Runs = append(all.Runs[:at:at], append([]result{r}, all.Runs[end:]...)...)
	if text, err = json.MarshalIndent(all, "", " "); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil { //nolint:gosec // a result is for everybody
		return err
	}
	return os.Rename(path+".new", path)
}

// keptRuns is how many runs are kept, of the seeds from 0 on.
const keptRuns = 40

// TestTheKeptRunsAreWhole holds the kept runs to be of each seed, of one commit that anybody can build, and without a second copy.
func TestTheKeptRunsAreWhole(t *testing.T) {
	const path = "../results/split.json"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all kept
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	runs := map[uint64]result{}
	commits := map[string]int{}
	for _, r := range all.Runs {
		runs[r.Seed] = r
		commits[r.Commit]++
		if r.Commit == "" || strings.HasSuffix(r.Commit, "-dirty") {
			t.Errorf("seed %d was run by a build of %q, which nobody can make again", r.Seed, r.Commit)
		}
	}
	if len(commits) != 1 {
		t.Errorf("the runs are of the commits %v, and should be of one", commits)
	}
	for seed := range uint64(keptRuns) {
		if r, ok := runs[seed]; !ok {
			t.Errorf("seed %d was not run", seed)
		} else if r.Verdict != "one copy" {
			t.Errorf("seed %d: %s: %.300s", seed, r.Verdict, join(r.Problems))
		}
	}
	if t.Failed() {
		t.Logf("keep them anew: rm test/results/split.json && make split RUNS=%d", keptRuns)
	}
}
