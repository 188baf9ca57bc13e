package main

import (
	"math"
	"slices"
	"time"
)

// Sample is one migration as it was measured. Times are milliseconds since the request.
type Sample struct {
	Variant  string  `json:"variant"`
	Failed   string  `json:"failed,omitempty"` // why it did not end in time; the guest ran on at its source
	Total    float64 `json:"total_ms"`         // until the guest ran at the target and nothing was left at the source
	Running  float64 `json:"running_ms"`       // until the guest ran at the target
	Copy     float64 `json:"copy_ms"`          // the stream alone: from QEMU's migrate command to its completed
	Pause    float64 `json:"stop_to_resume_ms"`
	Downtime float64 `json:"qemu_downtime_ms"` // whole milliseconds, as QEMU reports it
	Bytes    int64   `json:"bytes"`            // as QEMU counts what it sent
	Rounds   int     `json:"rounds"`
	Phases   []Phase `json:"phases"`

	Dirty    float64 `json:"dirty_mib_s"`            // what the guest wrote in the second before
	Waited   float64 `json:"first_byte_ms"`          // until the copy began
	AgentCPU float64 `json:"agent_cpu_ms,omitempty"` // of both agents together, while it lasted
	Load     float64 `json:"load"`                   // of the machine, 1 minute
	Memory   string  `json:"memory"`                 // the guest's verdict on its own memory afterwards
	Equal    bool    `json:"memory_equal"`
}

// Phase is when something was first seen.
type Phase struct {
	Name string  `json:"name"`
	At   float64 `json:"at_ms"`
}

// Pair is one migration of each variant, one after the other.
type Pair []Sample

// of returns the pair's sample of a variant; false when it has none that counts.
func (p Pair) of(variant string) (Sample, bool) {
	i := slices.IndexFunc(p, func(s Sample) bool { return s.Variant == variant && s.Failed == "" })
	if i < 0 {
		return Sample{}, false
	}
	return p[i], true
}

// Case is one size of guest at one dirty rate.
type Case struct {
	MemoryMiB int    `json:"memory_mib"`
	DirtyMiB  int    `json:"dirty_asked_mib_s"`
	SetMiB    int    `json:"working_set_mib"` // random pages, all of them filled; what else the guest has in memory is its kernel
	Pairs     []Pair `json:"pairs"`
}

// figure names one number of a sample.
type figure func(Sample) float64

// Spread is a figure over the pairs.
type Spread struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spread returns the zero Spread for no values.
func spread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	middle := v[len(v)/2]
	if len(v)%2 == 0 {
		middle = (v[len(v)/2-1] + middle) / 2
	}
	return Spread{N: len(v), Median: middle, Min: v[0], Max: v[len(v)-1]}
}

// figures returns a variant's own numbers.
func (c Case) figures(variant string, f figure) Spread {
	var values []float64
	for _, p := range c.Pairs {
		if s, ok := p.of(variant); ok {
			values = append(values, f(s))
		}
	}
	return spread(values)
}

// compared goes through the pairs in which both variants ended, and returns what join makes of their numbers.
func (c Case) compared(ours, theirs string, f figure, join func(a, b float64) float64) Spread {
	var values []float64
	for _, p := range c.Pairs {
		a, ok := p.of(ours)
		b, also := p.of(theirs)
		if ok && also {
			values = append(values, join(f(a), f(b)))
		}
	}
	return spread(values)
}

// ratios returns ours divided by theirs, pair by pair.
func (c Case) ratios(ours, theirs string, f figure) Spread {
	return c.compared(ours, theirs, f, func(a, b float64) float64 { return a / b })
}

// differences returns ours less theirs, pair by pair.
func (c Case) differences(ours, theirs string, f figure) Spread {
	return c.compared(ours, theirs, f, func(a, b float64) float64 { return a - b })
}

// The figures that are compared.
func total(s Sample) float64   { return s.Total }
func running(s Sample) float64 { return s.Running }
func copying(s Sample) float64 { return s.Copy }
func pause(s Sample) float64   { return s.Pause }
func waited(s Sample) float64  { return s.Waited }
func sent(s Sample) float64    { return float64(s.Bytes) / (1 << 20) }

// milliseconds rounds to a microsecond, so that the JSON stays readable.
func milliseconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }
