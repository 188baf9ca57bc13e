package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMediansLieBetweenTheEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 20).Draw(t, "values")
		s := spread(values)
		below, above := 0, 0
		for _, v := range values {
			if v < s.Median {
				below++
			}
			if v > s.Median {
				above++
			}
		}
		if s.N != len(values) || s.Median < s.Min || s.Median > s.Max || below > s.N/2 || above > s.N/2 {
			t.Fatalf("%v: %+v, %d below and %d above", values, s, below, above)
		}
	})
	if s := spread(nil); s != (Spread{}) {
		t.Errorf("nothing has the spread %+v", s)
	}
}

// story is a case of three pairs; in the second Godwit gave up, and the machine was three times as slow in the third.
func story() Case {
	sample := func(variant string, total, pause float64) Sample {
		return Sample{Variant: variant, Total: total, Running: total - 10, Copy: total - 50, Pause: pause, Bytes: 1 << 20, Load: total / 100}
	}
	return Case{MemoryMiB: 512, DirtyMiB: 20, SetMiB: 256, Pairs: []Pair{
		{sample(godwit, 110, 12), sample(plainTuned, 100, 10), sample(earlier, 120, 30), sample(plainOneLimit, 100, 14)},
		{sample(plainTuned, 100, 10), {Variant: godwit, Failed: tooLong}},
		{sample(godwit, 390, 40), sample(plainTuned, 300, 30)},
	}}
}

func TestOnlyPairsThatEndedAreCompared(t *testing.T) {
	c := story()
	if r := c.ratios(godwit, plainTuned, total); r.N != 2 || r.Min != 1.1 || r.Max != 1.3 {
		t.Errorf("ratios %+v", r)
	}
	if d := c.differences(godwit, plainTuned, pause); d.N != 2 || d.Median != 6 {
		t.Errorf("differences %+v", d)
	}
	if c.tried(godwit) != 3 || c.figures(godwit, total).N != 2 || c.tried(plainDefaults) != 0 {
		t.Errorf("%d tried, %+v", c.tried(godwit), c.figures(godwit, total))
	}
}

// told is a report with a case that has no pair to compare beside the story, and the footprints of two hosts.
func told() *Report {
	return &Report{
		Schema: schema, Cases: []Case{story(), {MemoryMiB: 1024, Pairs: []Pair{{{Variant: godwit, Failed: "failed: <why> & how"}}}}},
		Starts: []float64{900, 1100, 1200},
		Footprints: []Footprint{
			{Host: "host-1", Role: "agent", Resident: 30}, {Host: "host-1", Role: "store", Resident: 50}, {Host: "host-2", Role: "agent", Resident: 39},
		},
	}
}

func TestGoalsAreMetOrMissedByTheirOwnFigures(t *testing.T) {
	r := told()
	r.judge()
	want := map[string]bool{
		"512 MiB at 20 MiB/s: total time by plain's":         false, // 1.2
		"512 MiB at 20 MiB/s: STOP to RESUME beyond plain's": false, // 6 ms
		"512 MiB at 20 MiB/s: request to first page":         true,
		"agent's resident memory":                            false, // 39 MiB are 40.9 MB
		"all four processes' resident memory":                true,
		"vm start of the tiny guest":                         false,
	}
	if len(r.Goals) != len(want) {
		t.Errorf("%d goals: %+v", len(r.Goals), r.Goals)
	}
	for _, g := range r.Goals {
		if met, known := want[g.Name]; !known || met != g.Met {
			t.Errorf("%s: %.2f %s of %g, met: %v", g.Name, g.Got, g.Unit, g.Want, g.Met)
		}
	}
}

func TestLargestFootprintsAreKept(t *testing.T) {
	var r Report
	r.note(Footprint{Host: "host-1", Role: "agent", Resident: 30, Peak: 31})
	r.note(Footprint{Host: "host-1", Role: "agent", Resident: 28, Peak: 35})
	r.note(Footprint{Host: "host-2", Role: "agent", Resident: 20})
	if len(r.Footprints) != 2 || r.Footprints[0] != (Footprint{"host-1", "agent", 30, 35}) {
		t.Errorf("%+v", r.Footprints)
	}
}

func TestResultsCanBeReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	if err := told().write(dir, "x"); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var again Report
	if err := json.Unmarshal([]byte(read("x.json")), &again); err != nil {
		t.Fatal(err)
	}
	if again.Schema != schema || len(again.Cases) != 2 || again.Cases[0].Pairs[2][0].Total != 390 || len(again.Goals) != 6 {
		t.Errorf("read again: %+v", again)
	}
	for _, line := range []string{"| 512 MiB at 20 MiB/s | godwit | 2/3 |", "| 1024 MiB idle | godwit | 0/1 |", "1.20 [1.10 1.30]", "| before | 30.0 | 30.0 | 30.0 | +16.0 [+16.0 +16.0] |"} {
		if table := read("x.md"); !strings.Contains(table, line) {
			t.Errorf("the table lacks %q:\n%s", line, table)
		}
	}
	drawing := xml.NewDecoder(strings.NewReader(read("x.svg")))
	dots := 0
	for {
		token, err := drawing.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "circle" {
			dots++
			for _, a := range e.Attr {
				if x, err := strconv.ParseFloat(a.Value, 64); a.Name.Local == "cx" && (err != nil || x < drawLabel || x > drawWidth) {
					t.Errorf("a dot at %s is outside of its panel", a.Value)
				}
			}
		}
	}
	if dots != 4 { // two pairs in two panels
		t.Errorf("%d dots", dots)
	}
}

func TestAMissedPhaseIsTheNextOnes(t *testing.T) {
	c := clock{phases: []Phase{{"pre-copy", 80}, {"on-target", 500}, {"completed", 550}}}
	if at := c.at("released", "on-target", "completed"); at != 500 {
		t.Errorf("released at %g", at)
	}
	if at := c.at("failed"); at != 0 {
		t.Errorf("what never was, was at %g", at)
	}
}

func TestListsOfNumbers(t *testing.T) {
	if all, err := numbers("512,1024", guestMin); err != nil || len(all) != 2 || all[1] != 1024 {
		t.Error(all, err)
	}
	for _, bad := range []string{"", "128", "512;1024", "1G"} {
		if all, err := numbers(bad, guestMin); err == nil {
			t.Errorf("%q is read as %v", bad, all)
		}
	}
}
