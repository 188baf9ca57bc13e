// Package converge is the arithmetic of a migration's rounds: from QEMU's figures, sample by sample, it tells how far the
// copying is, how long it still takes, how long a pause QEMU may take now, and when to hold the frames for the guest because its vCPUs are
// about to stop.
//
// It does not throttle the guest and decides nothing about the hand-over (policy/handover does). Track is its one type: a
// value without a clock, fed by whoever polls QEMU.
//
// What it rests on is how QEMU 10.0 ends the copying (migration_iteration_run): when less than bandwidth × downtime-limit is left
// of a round, it looks which pages were written meanwhile, and stops the vCPUs if what is left then still is less; else the next
// round begins.
package converge

import (
	"math"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// PageSize is the unit of QEMU's dirty-pages-rate on x86.
const PageSize = 4 * inventory.KiB

// The times of the advice on the ports. Frames that reach QEMU once its vCPUs have stopped are lost with it, so the ports are
// held a little before; a guest whose frames are held without need sees a delay of HoldMax at most. QEMU looks at its downtime limit
// every 100 ms only (migration_update_counters), and is told to stop the guest only when the ports are held.
const (
	Lead      = 40 * time.Millisecond  // how long before the predicted stop to hold: a poll of 10 to 20 ms and the way to the switch
	LeadMax   = 200 * time.Millisecond // the same where samples come late
	HoldMax   = 400 * time.Millisecond // a hold longer than that was wrong
	HoldPause = 300 * time.Millisecond // between a hold that lasted HoldMax and the next one
)

// The bounds of the downtime limit. QEMU's own default is 300 ms; its maximum is 2000 s.
const (
	// DowntimeFirst is the limit that a migration begins with, or its own where that is shorter: see downtime.
	DowntimeFirst   = 2 * time.Millisecond
	DowntimeDefault = 100 * time.Millisecond
	DowntimeMin     = time.Millisecond
	DowntimeMax     = 2000 * time.Second
)

// rateWindow is the span over which rates are measured: QEMU sends in portions of up to 50 ms, and figures over less jump.
const rateWindow = 200 * time.Millisecond

// etaMax is the longest time that is worth being called an estimate.
const etaMax = 24 * time.Hour

// Unknown is the ETA of a migration that does not get nearer to its end.
const Unknown time.Duration = -1

// Config is what a Track must know of its migration.
type Config struct {
	// Downtime is the longest predicted pause that the migration allows: see DowntimeLimit. QEMU is given less at first: Advice.Downtime.
	Downtime time.Duration
}

// Sample is one look at query-migrate.
type Sample struct {
	At          time.Duration   // since the migration began, by the caller's monotonic clock; one that goes back is skipped
	Total       inventory.Bytes // ram.total
	Remaining   inventory.Bytes // ram.remaining
	Transferred inventory.Bytes // ram.transferred
	DirtyPages  int64           // ram.dirty-pages-rate, pages of PageSize a second; known after the first round
	Mbps        float64         // ram.mbps, 10^6 bits a second; 0 before QEMU has measured it
	Passes      int             // ram.dirty-sync-count
	Predicted   time.Duration   // expected-downtime; 0: not known
	Throttle    int             // cpu-throttle-percentage
}

// PortAdvice says what to do with the guest's switch ports at the source.
type PortAdvice int

// The advice on the ports. Hold and Unhold are given once, when they begin to hold true.
const (
	Leave  PortAdvice = iota // as they are
	Hold                     // queue frames for the guest from now on: its vCPUs stop soon
	Unhold                   // they did not stop: let the queued frames through
)

// Advice is what follows from the samples so far.
type Advice struct {
	Progress inventory.Progress
	Port     PortAdvice
	// Downtime is the downtime-limit that QEMU is to have now. It never falls and never passes Config.Downtime.
	Downtime time.Duration
}

// Track follows one migration. The zero value is not usable: take New. It is a value; keep the last one that Step returned.
type Track struct {
	config  Config
	started bool
	last    Sample
	rounds  int           // the most that were seen
	passAt  time.Duration // when this round was first seen
	most    [2]float64    // bytes left, the most that was seen in the round before and in this one
	sent    meter         // of Transferred: what the link carries
	drained meter         // of Remaining, upside down, within one pass: zero pages cost nothing on the link
	late    time.Duration // the longest time between two samples; it wanes by a quarter of the time that passes
	holding bool          // the last advice on the ports was Hold
	heldAt  time.Duration // since when
	freeAt  time.Duration // no hold before that
}

// New returns a Track of a migration that has just begun.
func New(c Config) Track { return Track{config: c} }

// Step takes the next sample and returns the Track with it, and what follows from it.
func (t Track) Step(s Sample) (Track, Advice) {
	s.Remaining, s.DirtyPages = max(s.Remaining, 0), max(s.DirtyPages, 0)
	if t.started && s.At < t.last.At {
		s.At = t.last.At
	}
	if !t.started || s.Passes != t.last.Passes {
		t.drained, t.passAt = meter{}, s.At
	}
	t.sent = t.sent.step(s.At, float64(s.Transferred))
	t.drained = t.drained.step(s.At, -float64(s.Remaining))
	left := float64(s.Remaining)
	if t.started {
		gap := s.At - t.last.At
		t.late = max(gap, t.late-gap/4)
	}
	if t.started && s.Passes != t.last.Passes {
		t.most = [2]float64{t.most[1], left}
	}
	t.most[1] = max(t.most[1], left)
	t.started, t.last, t.rounds = true, s, max(t.rounds, s.Passes)

	eta := t.eta()
	var port PortAdvice
	t, port = t.port(eta)
	return t, Advice{Port: port, Downtime: t.downtime(), Progress: inventory.Progress{
		Round:      max(s.Passes, 1),
		Total:      s.Total,
		Remaining:  s.Remaining,
		Sent:       s.Transferred,
		DirtyRate:  rate(t.dirty()),
		SendRate:   rate(t.send()),
		ETA:        eta,
		Throttle:   s.Throttle,
		Elapsed:    s.At,
		DowntimeBy: t.pause(),
	}}
}

// send is the link's rate in bytes a second: as measured here, or as QEMU says while there is too little to measure; 0: unknown.
func (t Track) send() float64 {
	if r, ok := t.sent.rate(); ok && r > 0 {
		return r
	}
	return max(t.last.Mbps, 0) * 1e6 / 8
}

func (t Track) dirty() float64 { return float64(t.last.DirtyPages) * float64(PageSize) }

// eta predicts the time to the switchover: the rest of this round, and the rounds after it. The next one has to send what is written
// during this one, and each after that is smaller by dirty/send, so their sum is that of a geometric series.
func (t Track) eta() time.Duration {
	send := t.send()
	if send <= 0 {
		return Unknown
	}
	fall := send
	if r, ok := t.drained.rate(); ok && r > 0 {
		fall = r
	}
	fits := send * t.downtime().Seconds()
	seconds := max(0, float64(t.last.Remaining)-fits) / fall
	if t.rounds > 2 && max(t.most[0], t.most[1]) <= fits {
		return 0 // however often the guest writes them, what is left are few pages: QEMU stops it as soon as it may
	}
	if t.last.Passes > 1 { // in the first round QEMU does not know yet how fast the guest writes
		share := t.dirty() / send
		if share >= 1 {
			return Unknown
		}
		seconds += share * ((t.last.At - t.passAt).Seconds() + seconds) / (1 - share)
	}
	if !(seconds < etaMax.Seconds()) { // also when it is no number
		return Unknown
	}
	return time.Duration(seconds * float64(time.Second))
}

// Downtime is the downtime-limit that QEMU is to have before the first Step.
func (t Track) Downtime() time.Duration { return t.downtime() }

// downtime doubles the limit with each round until it is the migration's own. QEMU stops a guest as soon as what is left fits into its limit,
// also in the middle of the first round, so that a guest that writes nothing would stand for the whole of it; with a short one it stands for as
// long as its last pages need. One that writes more than fits gets what it needs some rounds later.
func (t Track) downtime() time.Duration {
	limit := DowntimeFirst
	for n := 1; n < t.rounds && limit < t.config.Downtime; n++ {
		limit *= 2
	}
	return min(limit, t.config.Downtime)
}

// pause is QEMU's own prediction, and before it has one the time that what is left takes on the link.
func (t Track) pause() time.Duration {
	if t.last.Predicted > 0 {
		return t.last.Predicted
	}
	send := t.send()
	if send <= 0 {
		return 0
	}
	return time.Duration(min(float64(t.last.Remaining)/send, etaMax.Seconds()) * float64(time.Second))
}

// lead is how long before the predicted stop the ports are held. The next sample may come as late as others did of late: on a busy machine that is
// longer than Lead, and the guest would stand before it.
func (t Track) lead() time.Duration { return min(max(Lead, 2*t.late), LeadMax) }

// port turns the prediction into advice. A hold ends when a new round shows that the end was not as near as it looked, and in any
// case after HoldMax; after that the ports are left alone for HoldPause.
func (t Track) port(eta time.Duration) (Track, PortAdvice) {
	at := t.last.At
	switch {
	case t.holding && at-t.heldAt >= HoldMax:
		t.holding, t.freeAt = false, at+HoldPause
		return t, Unhold
	case t.holding && (eta == Unknown || eta > 2*t.lead()):
		t.holding = false
		return t, Unhold
	case !t.holding && eta != Unknown && eta <= t.lead() && at >= t.freeAt:
		t.holding, t.heldAt = true, at
		return t, Hold
	}
	return t, Leave
}

// DowntimeLimit returns the downtime-limit to give QEMU for a migration whose spec asks for the given longest predicted pause, in
// whole milliseconds between DowntimeMin and DowntimeMax; 0 or less asks for DowntimeDefault.
func DowntimeLimit(asked time.Duration) time.Duration {
	if asked <= 0 {
		return DowntimeDefault
	}
	return min(max(asked.Truncate(time.Millisecond), DowntimeMin), DowntimeMax)
}

// meter measures the rate of a figure since a point that is half a rateWindow to a whole one back, once there is one.
type meter struct {
	set           bool
	old, mid, now point
}

type point struct {
	at    time.Duration
	value float64
}

func (m meter) step(at time.Duration, value float64) meter {
	m.now = point{at, value}
	switch {
	case !m.set:
		m.old, m.mid, m.set = m.now, m.now, true
	case at-m.mid.at >= rateWindow/2:
		m.old, m.mid = m.mid, m.now
	}
	return m
}

// rate returns the change a second; false while the points are too near to each other to tell.
func (m meter) rate() (float64, bool) {
	span := m.now.at - m.old.at
	if !m.set || span < rateWindow/10 {
		return 0, false
	}
	return (m.now.value - m.old.value) / span.Seconds(), true
}

func rate(r float64) inventory.BytesPerSecond {
	return inventory.BytesPerSecond(math.Round(min(r, math.MaxInt64/2)))
}
