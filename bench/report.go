package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// schema numbers the layout of the JSON; a change that a reader must know of raises it.
const schema = 1

// The goals.
const (
	ratioGoal = 1.15  // total time, by plain's
	pauseGoal = 3.0   // ms of STOP to RESUME, beyond plain's
	firstGoal = 300.0 // ms from the request until the copy begins
	agentGoal = 40.0  // MB
	allGoal   = 150.0
	startGoal = 1000.0 // ms
)

// megabyte is the unit of the memory goals in MiB.
const megabyte = 1e6 / (1 << 20)

// Report is everything that was measured.
type Report struct {
	Schema     int         `json:"schema"`
	Machine    Machine     `json:"machine"`
	Bandwidth  int64       `json:"bandwidth_limit"` // bytes a second, 0: none
	Downtime   float64     `json:"downtime_limit_ms"`
	First      float64     `json:"first_downtime_limit_ms"` // in the first round; 0: of an older report, the same
	Cases      []Case      `json:"cases"`
	Starts     []float64   `json:"vm_start_ms"`
	Footprints []Footprint `json:"footprints"`
	Goals      []Goal      `json:"goals"`
}

// Goal is a figure that the project wants to reach, and what it is.
type Goal struct {
	Name string  `json:"name"`
	Want float64 `json:"want"` // at most
	Got  float64 `json:"got"`
	Unit string  `json:"unit"`
	Met  bool    `json:"met"`
}

func newReport(ctx context.Context, o options, a qemu.Abilities) *Report {
	return &Report{
		Schema: schema, Machine: machine(ctx, o.binary, a), Bandwidth: int64(o.bandwidth),
		Downtime: milliseconds(oneLimit(o).parameters.DowntimeMax), First: milliseconds(sameAsGodwit(o).parameters.DowntimeMax),
	}
}

// judge fills in the goals. A case without a pair in which both ended makes none.
func (r *Report) judge() {
	r.Goals = nil
	add := func(name string, want, got float64, unit string) {
		r.Goals = append(r.Goals, Goal{name, want, got, unit, got <= want})
	}
	for _, c := range r.Cases {
		if ratio := c.ratios(godwit, plainTuned, total); ratio.N > 0 {
			add(c.String()+": total time by plain's", ratioGoal, ratio.Median, "x")
			add(c.String()+": STOP to RESUME beyond plain's", pauseGoal, c.differences(godwit, plainTuned, pause).Median, "ms")
			add(c.String()+": request to first page", firstGoal, c.figures(godwit, waited).Median, "ms")
		}
	}
	agent, all := r.footprint()
	if all > 0 {
		add("agent's resident memory", agentGoal, agent/megabyte, "MB")
		add("all four processes' resident memory", allGoal, all/megabyte, "MB")
	}
	if len(r.Starts) > 0 {
		add("vm start of the tiny guest", startGoal, spread(r.Starts).Median, "ms")
	}
}

// footprint returns the largest agent and the largest sum of a host in MiB.
func (r *Report) footprint() (agent, all float64) {
	sums := map[string]float64{}
	for _, f := range r.Footprints {
		sums[f.Host] += f.Resident
		all = max(all, sums[f.Host])
		if f.Role == "agent" {
			agent = max(agent, f.Resident)
		}
	}
	return agent, all
}

// String names a case.
func (c Case) String() string {
	if c.DirtyMiB == 0 {
		return fmt.Sprintf("%d MiB idle", c.MemoryMiB)
	}
	return fmt.Sprintf("%d MiB at %d MiB/s", c.MemoryMiB, c.DirtyMiB)
}

// table is the report for people, in Markdown.
func (r *Report) table() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := r.Machine
	limit := "no bandwidth limit"
	if r.Bandwidth > 0 {
		limit = "a limit of " + inventory.BytesPerSecond(r.Bandwidth).String()
	}
	line("Measured %s at %s on %d CPUs (%s), %s %s %s, QEMU %s with %s, %s, nice %d, load %.1f to %.1f.\n",
		m.Date, m.Commit, m.CPUs, m.CPU, m.OS, m.Arch, m.Kernel, m.QEMU, m.Accelerator, m.Go, m.Nice, r.loads().Min, r.loads().Max)
	line("Both with %s and a downtime limit of %.0f ms, first %.0f ms. Medians; ratios and differences are medians of the pairs', with lowest and highest.\n",
		limit, r.Downtime, r.First)
	line("| guest | variant | ended | first byte ms | copy ms | runs after ms | total ms | STOP-RESUME ms | QEMU downtime ms | sent MiB | rounds | wrote MiB/s | agents' CPU ms |")
	line("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, c := range r.Cases {
		for _, variant := range variants {
			of := func(f figure) float64 { return c.figures(variant, f).Median }
			ended, tried := c.figures(variant, total).N, c.tried(variant)
			switch {
			case tried == 0:
			case ended == 0:
				line("| %s | %s | 0/%d | | | | | | | | | | |", c, variant, tried)
			default:
				line("| %s | %s | %d/%d | %.0f | %.0f | %.0f | %.0f | %.1f | %.0f | %.1f | %.0f | %.0f | %.0f |", c, variant, ended, tried,
					of(waited), of(copying), of(running), of(total), of(pause), of(func(s Sample) float64 { return s.Downtime }), of(sent),
					of(func(s Sample) float64 { return float64(s.Rounds) }), of(func(s Sample) float64 { return s.Dirty }),
					of(func(s Sample) float64 { return s.AgentCPU }))
			}
		}
	}
	line("\n| guest | pause of | median ms | lowest | highest | less plain's, ms |")
	line("|---|---|---|---|---|---|")
	for _, c := range r.Cases {
		for _, variant := range variants {
			if s := c.figures(variant, pause); s.N > 0 {
				line("| %s | %s | %.1f | %.1f | %.1f | %s |", c, variant, s.Median, s.Min, s.Max, c.differences(variant, plainOf(variant), pause).text("%+.1f"))
			}
		}
	}
	line("\n| guest | total by plain's | runs after, by plain's | copy by plain's | STOP-RESUME less plain's, ms | sent by plain's |")
	line("|---|---|---|---|---|---|")
	for _, c := range r.Cases {
		ratio := func(f figure) string { return c.ratios(godwit, plainTuned, f).text("%.2f") }
		line("| %s | %s | %s | %s | %s | %s |", c, ratio(total), ratio(running), ratio(copying),
			c.differences(godwit, plainTuned, pause).text("%+.1f"), ratio(sent))
	}
	line("\n| process | resident MiB | peak MiB |")
	line("|---|---|---|")
	for _, f := range r.Footprints {
		line("| %s %s | %.1f | %.1f |", f.Host, f.Role, f.Resident, f.Peak)
	}
	line("\n| goal | at most | measured | |")
	line("|---|---|---|---|")
	for _, g := range r.Goals {
		met := "missed"
		if g.Met {
			met = "met"
		}
		line("| %s | %g %s | %.2f %s | %s |", g.Name, g.Want, g.Unit, g.Got, g.Unit, met)
	}
	return b.String()
}

// plainOf returns the plain QEMU that was told what the variant's QEMUs were.
func plainOf(variant string) string {
	if variant == earlier || variant == plainOneLimit {
		return plainOneLimit
	}
	return plainTuned
}

// loads returns how busy the machine was.
func (r *Report) loads() Spread {
	var all []float64
	for _, c := range r.Cases {
		for _, p := range c.Pairs {
			for _, s := range p {
				all = append(all, s.Load)
			}
		}
	}
	return spread(all)
}

// tried counts the pairs that have a sample of the variant, however it ended.
func (c Case) tried(variant string) int {
	n := 0
	for _, p := range c.Pairs {
		if slices.ContainsFunc(p, func(s Sample) bool { return s.Variant == variant }) {
			n++
		}
	}
	return n
}

// text is the median with the range behind it.
func (s Spread) text(format string) string {
	if s.N == 0 {
		return "-"
	}
	return fmt.Sprintf(format+" ["+format+" "+format+"]", s.Median, s.Min, s.Max)
}

// write judges the goals, prints the table, and puts table, JSON and drawing into the folder.
func (r *Report) write(dir, name string) error {
	r.judge()
	fmt.Println(r.table())
	return save(dir, name, r, map[string]string{".md": r.table(), ".svg": r.drawing()})
}

// save writes figures as JSON, and the pages that show them, into the folder.
func save(dir, name string, figures any, pages map[string]string) error {
	text, err := json.MarshalIndent(figures, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	errs := []error{os.WriteFile(filepath.Join(dir, name+".json"), append(text, '\n'), 0o644)}
	for kind, content := range pages {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name+kind), []byte(content), 0o644))
	}
	return errors.Join(errs...)
}
