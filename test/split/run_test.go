package split

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// The bounds of a run.
const (
	startMax = 90 * time.Second // of a cluster, and of a VM in it
	healMax  = 60 * time.Second // from the end of a fault until all is well again
	gapMax   = 4 * time.Second  // without a block of a guest that nothing should trouble: its processor is emulated, and shared
	runMax   = 8 * time.Minute

	migrationMax = 2 * time.Second // from the beginning of a migration to the fault
)

// result is what is kept of a run.
type result struct {
	Seed     uint64   `json:"seed"`
	Hosts    int      `json:"hosts"`
	Watchdog bool     `json:"watchdogs"`
	Lost     string   `json:"lost_locks"` // what becomes of what a host writes that has lost its locks: "fail", or "pass"
	Faults   []struck `json:"faults"`
	Verdict  string   `json:"verdict"` // "one copy", or "failed"
	Problems []string `json:"problems,omitempty"`
	Blocks   int      `json:"blocks"`  // that guests wrote
	Calls    int      `json:"calls"`   // of clients
	History  string   `json:"history"` // of them
	Seconds  float64  `json:"seconds"` // that the run took
	Commit   string   `json:"commit"`
	Command  string   `json:"command"`
	Load     string   `json:"load,omitempty"` // of the machine at its end
}

// struck is a fault as it went.
type struck struct {
	Kind string `json:"kind"`
	Host string `json:"host,omitempty"`
	// Migration was under way when it struck, or had ended shortly before.
	Migration string  `json:"migration,omitempty"`
	At        float64 `json:"at"`  // seconds since the oracle began
	For       float64 `json:"for"` // seconds
	// Restart is the time from the fault, or from the operator's word that the host is dead, to the first block of the last of the host's VMs on
	// another host, in seconds; 0: none moved.
	Restart float64 `json:"restart,omitempty"`
	Moved   int     `json:"moved,omitempty"` // VMs that did
	// Blocked counts the VMs of the host that were rightly not restarted: nobody could know that it was dead.
	Blocked  int `json:"blocked,omitempty"`
	Resets   int `json:"resets,omitempty"`   // of hosts, by their watchdogs
	Operator int `json:"operator,omitempty"` // VMs that an operator had to restart: the storage took nothing more from their QEMUs
	// Well is the time from the fault's end until every VM wrote at one place, in seconds.
	Well float64 `json:"well"`
	// Gap is the longest time without a block of any guest while it lasted, in seconds.
	Gap float64 `json:"gap"`
}

// run is one run.
func run(ctx context.Context, seed uint64) (r result, story []string) {
	begin := time.Now()
	ctx, done := context.WithTimeout(ctx, runMax)
	defer done()
	r = result{Seed: seed, Verdict: "failed", Hosts: 3}
	if seed%8 == 7 {
		r.Hosts = 5
	}
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	w := newWorld(seed)
	r.Lost, r.Watchdog = "fail", w.watchdogs
	if w.lostPass {
		r.Lost = "pass"
	}
	if err := w.begin(ctx, r.Hosts); err != nil {
		problem("the cluster does not come up: %v", err)
		return r, nil
	}
	w.clients = startClients(ctx, seed, w.cluster.Hosts)
	first := kinds[int(seed)%len(kinds)] //nolint:gosec // seeds are small
	for _, k := range []kind{first, kinds[w.dice.IntN(len(kinds))]} {
		s, err := w.fault(ctx, k, w.victim())
		r.Faults = append(r.Faults, s)
		if err != nil {
			problem("%s: %v", k.name, err)
			break
		}
	}
	w.clients.stop()
	if len(r.Problems) == 0 {
		if err := lab.Until(ctx, healMax, func() error {
			if left := w.leftovers(ctx); len(left) > 0 {
				return fmt.Errorf("left behind: %q", left)
			}
			return nil
		}); err != nil {
			problem("%v", err)
		}
	}
	log := w.oracle.Log()
	r.Problems = append(r.Problems, oracle.Check(log, w.images())...)
	r.Problems = append(r.Problems, w.alarms()...)
	var bad []string
	r.History, r.Calls, bad = w.clients.history.judge()
	if bad != nil {
		problem("the clients' calls are %s:\n  %s", r.History, join(bad))
	}
	if w.clients.history.done() == 0 {
		problem("not one of the clients' %d calls was done: their history says nothing", r.Calls)
	}
	for _, e := range log {
		if e.Kind == oracle.Wrote && e.Number > 0 {
			r.Blocks++
		}
	}
	story = oracle.Story(log, w.images())
	if err := w.close(); err != nil {
		problem("its end: %v", err)
	}
	if left := w.cluster.Processes(); len(left) > 0 {
		problem("processes %v outlive their cluster", left)
	}
	if len(r.Problems) == 0 {
		r.Verdict = "one copy"
	}
	r.Seconds = round(time.Since(begin))
	return r, story
}

// fault lets one thing go wrong and end again, and waits until all is well.
func (w *world) fault(ctx context.Context, k kind, h *lab.Host) (s struck, err error) {
	s = struck{Kind: k.name}
	if w.dice.IntN(2) == 0 {
		if s.Migration, err = w.migrate(ctx, h); err != nil {
			return s, err
		}
		if err := w.pass(ctx, time.Duration(w.dice.Int64N(int64(migrationMax)))); err != nil {
			return s, err
		}
	}
	vms := w.on(h)
	if len(vms) == 0 { // its only VM has just moved away: to strike here would try nothing
		h = w.victim()
		vms = w.on(h)
	}
	where := ""
	if !k.all {
		where, s.Host = h.Name, h.Name
	}
	if k.moves {
		if err := lab.Until(ctx, healMax, func() error { return w.quorumWithout(h) }); err != nil {
			return s, err
		}
	}
	begin := w.oracle.Now()
	s.At = round(begin)
	w.note(where, "fault: %s", k.name)
	heal, err := k.strike(ctx, w, h)
	if err != nil {
		return s, fmt.Errorf("strike: %w", err)
	}
	// The fault ends whatever the cluster does, so that what follows is seen, too.
	wrong := w.during(ctx, k, h, vms, begin, &s)
	ended := w.oracle.Now()
	s.For, s.Gap = round(ended-begin), round(w.gap(begin, ended))
	if k.calm && w.gap(begin, ended) > gapMax {
		wrong = errors.Join(wrong, fmt.Errorf("a guest wrote nothing for %vs, and nothing had happened to it", s.Gap))
	}
	w.note(where, "ends: %s", k.name)
	if err := heal(); err != nil {
		return s, errors.Join(wrong, fmt.Errorf("heal: %w", err))
	}
	ended = w.oracle.Now()
	if err := lab.Until(ctx, healMax, func() error {
		resets, err := w.revive(ctx)
		s.Resets += resets
		if err != nil {
			return err
		}
		if k.storage {
			restarted, err := w.restartStuck(ctx)
			s.Operator += restarted
			if err != nil {
				return err
			}
		}
		if bad := w.places(ctx); len(bad) > 0 {
			return fmt.Errorf("%q", bad)
		}
		return nil
	}); err != nil {
		return s, errors.Join(wrong, err)
	}
	well := w.oracle.Now()
	for _, v := range w.vms {
		wrong = errors.Join(wrong, w.writes(ctx, v, well, 2*gapMax))
	}
	if (k.calm || !w.watchdogs) && s.Resets > 0 {
		wrong = errors.Join(wrong, fmt.Errorf("%d hosts were reset, and nothing had happened to them", s.Resets))
	}
	s.Well = round(w.oracle.Now() - ended)
	return s, wrong
}

// during is what the cluster must do while the fault lasts.
func (w *world) during(ctx context.Context, k kind, h *lab.Host, vms []*vm, begin time.Duration, s *struck) error {
	if !k.moves {
		return w.pass(ctx, k.lasts)
	}
	// A VM that was on its way may have arrived elsewhere at once: the fault lasts for longer than the leader waits all the same.
	ends := begin + max(k.lasts, outage)
	if !w.watchdogs { // nobody may restart anything
		var err error
		if s.Blocked, err = w.blocked(ctx, h, vms); err != nil {
			return err
		}
		if !k.off {
			return w.pass(ctx, ends-w.oracle.Now())
		}
		w.note("", "an operator has seen that %s is off, and says so", h.Name)
		if err := lab.Until(ctx, fencedMax, func() error { // it is refused as long as the host counts as up
			_, err := w.others(h)[0].Godwit(ctx, "host", "confirm-dead", h.Name, "--yes")
			return err
		}); err != nil {
			return err
		}
		begin = w.oracle.Now()
	}
	for _, v := range vms {
		e, err := w.until(ctx, begin, fencedMax, func(e oracle.Entry) bool {
			return e.Kind == oracle.Wrote && e.File == v.file && e.Number > 0 && e.Host != h.Name
		})
		if err != nil {
			return fmt.Errorf("%s is not restarted within %v after its host fell silent: %w", v.name, fencedMax, err)
		}
		s.Moved++
		s.Restart = max(s.Restart, round(e.At-begin))
	}
	return w.pass(ctx, ends-w.oracle.Now())
}

// blocked waits until the VMs of a host that nobody can fence show why they are not restarted, and returns how many do: one that was on its way may
// have arrived elsewhere.
func (w *world) blocked(ctx context.Context, h *lab.Host, vms []*vm) (n int, err error) {
	err = lab.Until(ctx, fencedMax, func() error {
		n = 0
		for _, v := range vms {
			r, err := w.record(ctx, v)
			if err != nil {
				return err
			}
			if r.GetRun().GetOwner() != h.Name {
				continue
			}
			n++
			if why := r.GetPlace().GetBlocked(); !strings.Contains(why, h.Name+" cannot be proven dead") {
				return fmt.Errorf("%s, of the silent %s, shows %q, and should say that %s cannot be proven dead", v.name, h.Name, why, h.Name)
			}
		}
		return nil
	})
	return n, err
}

// pass lets time go by.
func (w *world) pass(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// gap is the longest time without a block of the same guest between two moments.
func (w *world) gap(from, to time.Duration) (longest time.Duration) {
	for _, v := range w.vms {
		last := from
		for _, e := range w.oracle.Log() {
			if e.Kind != oracle.Wrote || e.File != v.file || e.Number == 0 || e.At < from || e.At > to {
				continue
			}
			longest, last = max(longest, e.At-last), e.At
		}
		longest = max(longest, to-last)
	}
	return longest
}

// round is a time in seconds, as it is kept.
func round(d time.Duration) float64 {
	return float64(d.Round(10*time.Millisecond)) / float64(time.Second)
}

func join(lines []string) string {
	text := ""
	for i, l := range lines {
		if i > 0 {
			text += "\n  "
		}
		text += l
	}
	return text
}
