package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPercentilesAreValuesThatWereMeasured(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 1e6), 1, 400).Draw(t, "values")
		p := rapid.IntRange(1, 100).Draw(t, "p")
		got := percentile(values, p)
		below := 0
		for _, v := range values {
			if v <= got {
				below++
			}
		}
		if !slices.Contains(values, got) || below*100 < p*len(values) {
			t.Fatalf("p%d of %v is %g, which %d do not exceed", p, values, got, below)
		}
	})
	for p, want := range map[int]float64{1: 1, 50: 2, 75: 3, 99: 4, 100: 4} {
		if got := percentile([]float64{4, 3, 2, 1}, p); got != want {
			t.Errorf("p%d is %g, want %g", p, got, want)
		}
	}
	if percentile(nil, 99) != 0 {
		t.Error("nothing has a percentile")
	}
}

func TestManyVMsAreJudgedByTheMedianRun(t *testing.T) {
	run := func(start, idle, cli, api float64) Run {
		return Run{
			Start: start, StartEach: []float64{start}, Idle: map[string]float64{"agent": idle}, ListCLI: []float64{cli}, ListAPI: []float64{api},
			Resident: map[string]float64{"agent": 40},
		}
	}
	m := &Many{Schema: schema, VMs: 100, Guest: "idle", Runs: []Run{run(10, 0.3, 40, 10), run(70, 2.5, 60, 20), run(59, 2.1, 45, 51)}}
	dir := t.TempDir()
	if err := m.write(dir, "many"); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"start all": true, "idle agent": false, "vm ls, the command, p99": true, "vm ls, the call, p99": true}
	if len(m.Goals) != len(want) {
		t.Errorf("%+v", m.Goals)
	}
	for _, g := range m.Goals {
		if met, known := want[g.Name]; !known || g.Met != met {
			t.Errorf("%+v", g)
		}
	}
	var again Many
	text, err := os.ReadFile(filepath.Join(dir, "many.json"))
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || len(again.Runs) != 3 || again.Runs[1].ListAPI[0] != 20 {
		t.Errorf("read again: %+v, %v", again, err)
	}
	for _, line := range []string{"| start all, s | 59.0 [10.0 70.0] |", "| idle agent | 2 % of a core | 2.10 % of a core | missed |"} {
		if !strings.Contains(m.table(), line) {
			t.Errorf("the table lacks %q:\n%s", line, m.table())
		}
	}
}

func TestAGuestThatDoesNotExistIsRefused(t *testing.T) {
	if _, err := measureMany(t.Context(), options{many: 1, guest: "busy", pairs: 1}); err == nil || !strings.Contains(err.Error(), "idle or heartbeat") {
		t.Errorf("%v", err)
	}
}
