package matrix

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// tablePath is what the machines allow.
const tablePath = "../../internal/policy/handover/testdata/matrix.table"

// cell is a line of the table.
type cell struct {
	phase, fault string
	allowed      []string
	bound        time.Duration
}

func (c cell) String() string { return c.phase + ", " + c.fault }

// long says that the fault lasts for half a minute.
func (c cell) long() bool { return strings.HasSuffix(c.fault, "QEMU stands 30s") }

// readTable reads all cells.
func readTable() ([]cell, error) {
	text, err := os.ReadFile(tablePath)
	if err != nil {
		return nil, err
	}
	var all []cell
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "|")
		if len(fields) != 4 {
			return nil, fmt.Errorf("%s: %q has not four columns", tablePath, line)
		}
		c := cell{phase: strings.TrimSpace(fields[0]), fault: strings.TrimSpace(fields[1])}
		for o := range strings.SplitSeq(fields[2], ",") {
			c.allowed = append(c.allowed, strings.TrimSpace(o))
		}
		if c.bound, err = time.ParseDuration(strings.TrimSpace(fields[3])); err != nil {
			return nil, fmt.Errorf("%s: %w", tablePath, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// pick returns n cells in an order that follows from the seed; 0: all of them.
func pick(all []cell, n int, seed uint64) []cell {
	all = slices.Clone(all)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) //nolint:gosec // to be had again from the seed
	if n > 0 && n < len(all) {
		all = all[:n]
	}
	return all
}

// TestTableCanBeRun holds the runner to know every phase and fault of the table, and no others.
func TestTableCanBeRun(t *testing.T) {
	all, err := readTable()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range all {
		seen[c.phase], seen[c.fault] = true, true
		if _, ok := phases[c.phase]; !ok {
			t.Errorf("nobody knows how to come to phase %q", c.phase)
		}
		if _, ok := faults[c.fault]; !ok {
			t.Errorf("nobody knows how to strike with %q", c.fault)
		}
	}
	for name := range phases {
		if !seen[name] {
			t.Errorf("the table has no phase %q", name)
		}
	}
	for name := range faults {
		if !seen[name] {
			t.Errorf("the table has no fault %q", name)
		}
	}
}
