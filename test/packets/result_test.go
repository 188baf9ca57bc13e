package packets

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/guest/stream"
)

// result is what is kept of a run.
type result struct {
	Driver     string  `json:"driver"` // "user-space", or "bridge"
	Rate       int     `json:"rate"`   // packets a second that each way had to have
	Migrations []event `json:"migrations"`
	Aborts     []event `json:"aborts"`
	Misses     int     `json:"misses"` // blows that came too late: those migrations completed
	ToGuest    way     `json:"to_guest"`
	FromGuest  way     `json:"from_guest"`
	// Drops are what each place on the way has counted, those without any left out. Not each is a loss: what is sent twice is dropped once.
	Drops   map[string]uint64 `json:"drops,omitempty"`
	Stalls  stalls            `json:"stalls_ms"`
	Verdict string            `json:"verdict"` // "none lost", "measured", "invalid", or "failed"
	Wrong   []string          `json:"wrong,omitempty"`
	Seconds float64           `json:"seconds"` // in which both senders sent
	Commit  string            `json:"commit"`
	Command string            `json:"command"`
	Load    string            `json:"load,omitempty"` // of the machine before and after
	Nice    int               `json:"nice"`           // of every process of the run
}

// event is a migration as it went.
type event struct {
	Kind    string  `json:"kind,omitempty"` // of an abort: what was done to it, and in which phase
	From    string  `json:"from"`
	To      string  `json:"to"`
	Ended   string  `json:"ended"` // the phase
	Seconds float64 `json:"seconds"`
	PauseMS float64 `json:"pause_ms,omitempty"` // STOP to RESUME
	// Lost are the packets that had not come when the next one began, by way.
	Lost []uint64 `json:"lost_to_from,omitempty"`
}

// way is what became of the packets of one direction.
type way struct {
	Sent    uint64        `json:"sent"`
	Got     uint64        `json:"got"`
	PerSec  float64       `json:"per_second"` // sent, by this machine's clock
	Lost    uint64        `json:"lost"`
	Doubled uint64        `json:"doubled"`
	Late    uint64        `json:"late"`            // came after one with a higher number
	Holes   []stream.Hole `json:"holes,omitempty"` // the first times that numbers were skipped
}

// stalls are the longest times in milliseconds in which an end did not get to work, each by its own clock.
type stalls struct {
	Station int64 `json:"station"`
	Guest   int64 `json:"guest"`
}

func wayOf(sent uint64, t stream.Tally) way {
	return way{Sent: sent, Got: t.Received, Lost: t.Missing + sent - min(sent, t.Next), Doubled: t.Doubled, Late: t.Late, Holes: t.Holes}
}

// judge says what is wrong with the result.
func (r *result) judge(migrations, aborts int) {
	wrong := func(format string, args ...any) { r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...)) }
	if done, given := len(r.Migrations), len(r.Aborts); done != migrations || given != aborts {
		wrong("%d migrations completed and %d were aborted, not %d and %d", done, given, migrations, aborts)
	}
	for _, w := range []struct {
		name string
		way
	}{{"to the guest", r.ToGuest}, {"from the guest", r.FromGuest}} {
		if w.Lost+w.Doubled+w.Late > 0 {
			wrong("%s: %d of %d packets lost, %d came twice, %d late; first holes %v", w.name, w.Lost, w.Sent, w.Doubled, w.Late, w.Holes)
		}
	}
	switch {
	case r.ToGuest.PerSec < float64(r.Rate) || r.FromGuest.PerSec < float64(r.Rate):
		r.Verdict = "invalid"
		wrong("%.0f packets a second were sent to the guest and %.0f from it, not %d: the machine is too busy to say anything",
			r.ToGuest.PerSec, r.FromGuest.PerSec, r.Rate)
	case r.Driver == "bridge" && len(r.Migrations) == migrations && len(r.Aborts) == aborts:
		r.Verdict = "measured"
	case len(r.Wrong) > 0:
		r.Verdict = "failed"
	default:
		r.Verdict = "none lost"
	}
}

func keep(path string, r result) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil { //nolint:gosec // a result is for everybody
		return err
	}
	return os.Rename(path+".new", path)
}

func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(text))[:2], " ")
}

// What the kept run has at least.
const (
	keptRate       = 10_000
	keptMigrations = 20
	keptAborts     = 10
)

// TestTheKeptRunIsWhole holds the kept run to be as long as promised, of a commit that anybody can build, and without a packet lost, doubled or
// late.
func TestTheKeptRunIsWhole(t *testing.T) {
	const path = "../results/packets.json"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	again := r
	again.Wrong = nil
	again.Rate = max(r.Rate, keptRate)
	again.judge(max(keptMigrations, len(r.Migrations)), max(keptAborts, len(r.Aborts)))
	if again.Verdict != "none lost" || r.Verdict != "none lost" || r.Driver != "user-space" {
		t.Errorf("the kept run of the driver %s is %q, and judged again %q: %s", r.Driver, r.Verdict, again.Verdict, strings.Join(again.Wrong, "; "))
	}
	for _, m := range r.Migrations {
		if m.Ended != "completed" {
			t.Errorf("a migration from %s to %s ended as %s", m.From, m.To, m.Ended)
		}
	}
	kinds := map[string]bool{}
	for _, a := range r.Aborts {
		kinds[a.Kind] = true
		if a.Ended != "failed" && a.Ended != "canceled" {
			t.Errorf("%s: the migration ended as %s", a.Kind, a.Ended)
		}
	}
	if len(kinds) < len(blows) {
		t.Errorf("migrations were aborted in %d ways, not in all %d", len(kinds), len(blows))
	}
	if r.ToGuest.Got != r.ToGuest.Sent || r.FromGuest.Got != r.FromGuest.Sent || min(r.ToGuest.Sent, r.FromGuest.Sent) < uint64(r.Seconds*keptRate) {
		t.Errorf("%d of %d and %d of %d packets in %.0f s", r.ToGuest.Got, r.ToGuest.Sent, r.FromGuest.Got, r.FromGuest.Sent, r.Seconds)
	}
	if r.Commit == "" || strings.HasSuffix(r.Commit, "-dirty") {
		t.Errorf("it was run by a build of %q, which nobody can make again", r.Commit)
	}
	if t.Failed() {
		t.Log("keep it anew: make packets")
	}
}

// A result with one packet lost, doubled or late is no good, and neither is one whose senders were slow.
func TestJudgeFindsEachFault(t *testing.T) {
	good := result{Driver: "user-space", Rate: 100, ToGuest: way{Sent: 9, Got: 9, PerSec: 101}, FromGuest: way{Sent: 9, Got: 9, PerSec: 101}}
	for name, c := range map[string]struct {
		spoil func(r *result)
		want  string
	}{
		"nothing":             {func(*result) {}, "none lost"},
		"lost":                {func(r *result) { r.ToGuest.Lost = 1 }, "failed"},
		"doubled":             {func(r *result) { r.FromGuest.Doubled = 1 }, "failed"},
		"late":                {func(r *result) { r.FromGuest.Late = 1 }, "failed"},
		"slow":                {func(r *result) { r.FromGuest.PerSec = 99.9 }, "invalid"},
		"slow and lost":       {func(r *result) { r.ToGuest.PerSec, r.ToGuest.Lost = 99, 1 }, "invalid"},
		"lost on a bridge":    {func(r *result) { r.Driver, r.ToGuest.Lost = "bridge", 1 }, "measured"},
		"a migration missing": {func(r *result) { r.Aborts = []event{{}} }, "failed"},
	} {
		r := good
		c.spoil(&r)
		r.judge(0, 0)
		if r.Verdict != c.want || (len(r.Wrong) == 0) != (name == "nothing") {
			t.Errorf("%s: %q, %q, want %q", name, r.Verdict, r.Wrong, c.want)
		}
	}
	if w := wayOf(10, stream.Tally{Next: 7, Missing: 2}); w.Lost != 5 {
		t.Errorf("%d lost of those that were skipped and those that never came, want 5", w.Lost)
	}
}

func tallyOf(p control.Packets) stream.Tally {
	return stream.Tally{Next: p.Next, Received: p.Received, Missing: p.Missing, Doubled: p.Doubled, Late: p.Late, Holes: p.Holes}
}
