package authority

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// do gives the agent events at their moments, each with the kinds of action that it is to answer.
type do struct {
	event AgentEvent
	want  []AgentActionKind
}

func at(kind AgentEventKind, now Moment) AgentEvent { return AgentEvent{Kind: kind, Now: now} }

func acked(sent, now, lease Moment) AgentEvent {
	return AgentEvent{Kind: RenewalAcked, Now: now, Sent: sent, Lease: lease}
}

const ms, sec = time.Millisecond, time.Second

func TestAgentSteps(t *testing.T) {
	first := do{at(AgentTick, 10*sec), []AgentActionKind{ShortenWarden, Renew}}
	for name, steps := range map[string][]do{
		"first renewal gives authority": {
			first,
			{acked(10*sec, 10*sec+5*ms, 8*sec), []AgentActionKind{TellWarden}},
			{at(AgentTick, 10*sec+500*ms), nil},
			{at(AgentTick, 11*sec), []AgentActionKind{Renew}},
		},
		"one renewal at a time": {
			first,
			{at(AgentTick, 11*sec), nil},
			{at(RenewalFailed, 11*sec), []AgentActionKind{Renew}},
		},
		"silence stops VMs at 4 s, once, and an answer lets them run": {
			first,
			{acked(10*sec, 10*sec, 8*sec), []AgentActionKind{TellWarden}},
			{at(AgentTick, 11*sec), []AgentActionKind{Renew}},
			{at(RenewalFailed, 11*sec+900*ms), nil},
			{at(AgentTick, 14*sec-1), []AgentActionKind{Renew}},
			{at(AgentTick, 14*sec), []AgentActionKind{StopVMs}},
			{at(RenewalFailed, 14*sec+500*ms), nil},
			{at(AgentTick, 15*sec), []AgentActionKind{Renew}},
			{acked(15*sec, 15*sec+200*ms, 8*sec), []AgentActionKind{TellWarden, ResumeVMs}},
		},
		"an answer that comes too late lets nothing run": {
			first,
			{acked(10*sec, 14*sec+100*ms, 8*sec), []AgentActionKind{TellWarden, StopVMs, Renew}},
		},
		"a planned restart has the longer lease at once, and keeps it": {
			first,
			{acked(10*sec, 10*sec, 8*sec), []AgentActionKind{TellWarden}},
			{at(PlanRestart, 10*sec+300*ms), []AgentActionKind{Renew}},
			{acked(10*sec+300*ms, 10*sec+301*ms, 60*sec), []AgentActionKind{TellWarden}},
			{at(AgentTick, 12*sec), []AgentActionKind{Renew}},
		},
		"news do not wait for the next second": {
			first,
			{acked(10*sec, 10*sec, 8*sec), []AgentActionKind{TellWarden}},
			{at(RenewNow, 10*sec+100*ms), []AgentActionKind{Renew}},
			{at(AgentTick, 11*sec), nil},
		},
		"a plan waits for the renewal that is under way": {
			first,
			{at(PlanRestart, 10*sec+300*ms), nil},
			{acked(10*sec, 10*sec+400*ms, 8*sec), []AgentActionKind{TellWarden, Renew}},
		},
		"a refused renewal is the end": {
			first,
			{at(EpochOver, 10*sec+100*ms), []AgentActionKind{GiveUp}},
			{at(AgentTick, 20*sec), nil},
			{acked(10*sec, 20*sec, 8*sec), nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := NewAgent(Default(), 0, 0, 10*sec)
			for i, s := range steps {
				next, actions := a.Step(s.event)
				var kinds []AgentActionKind
				for _, x := range actions {
					kinds = append(kinds, x.Kind)
				}
				if !slices.Equal(kinds, s.want) {
					t.Fatalf("step %d, %s at %v: %v, not %v", i, s.event.Kind, s.event.Now, kinds, s.want)
				}
				a = next
			}
		})
	}
}

// What the agent inherits counts at once, and what it sends first shortens a longer lease of its predecessor.
func TestAgentInherits(t *testing.T) {
	a := NewAgent(Default(), 3, 60*sec, 10*sec)
	if left := a.Left(10 * sec); left != 46*sec {
		t.Errorf("left %v of a minute's lease whose last 4 s are kept", left)
	}
	a, actions := a.Step(at(AgentTick, 10*sec))
	if len(actions) != 2 || actions[0].Kind != ShortenWarden || actions[0].Until != 18*sec || a.Until != 18*sec {
		t.Fatalf("%+v, until %v", actions, a.Until)
	}
	if left := a.Left(10 * sec); left != 4*sec {
		t.Errorf("left %v after the lease was shortened", left)
	}
	if a.NextTick() != 14*sec {
		t.Errorf("next tick at %v while a renewal is under way", a.NextTick())
	}
}

// request is a renewal that the store may still do.
type request struct {
	sent    Moment
	lease   time.Duration
	base    int  // revision that it compares
	applied bool // done; its answer is on its way
	unsent  bool // the warden did not take what comes before it
}

// world is a host, the store and an observer whose clocks go at rates of their own. Messages are late, lost, and overtake one another.
type world struct {
	settings Settings
	real     float64 // ns
	fast     float64 // rate of the host's clock
	slow     float64 // of the observer's
	agent    Agent
	warden   Moment // end of the authority, as the warden knows it
	deaf     bool   // it takes nothing
	awaited  *request
	late     []*request // nobody waits for them any more
	revision int        // of the host's renewal in the store
	lease    time.Duration
	seen     int // by the observer
	seenFor  time.Duration
	first    Moment
	fenced   bool
}

func (w *world) host() Moment     { return Moment(w.real * w.fast) }
func (w *world) observer() Moment { return Moment(w.real * w.slow) }

func (w *world) step(e AgentEvent) {
	e.Now = w.host()
	next, actions := w.agent.Step(e)
	w.agent = next
	unsent := false
	for _, a := range actions {
		switch a.Kind {
		case Renew:
			w.awaited = &request{sent: a.Sent, lease: a.Lease, base: w.revision, unsent: unsent}
		case TellWarden:
			if !w.deaf {
				w.warden = max(w.warden, a.Until)
			}
		case ShortenWarden:
			if unsent = w.deaf; !unsent && w.warden != 0 {
				w.warden = min(w.warden, a.Until)
			}
		case StopVMs, ResumeVMs, GiveUp:
		}
	}
}

// arrive has the store do a renewal, if what it compares is still so. One that is waited for is sent again where only that had changed.
func (w *world) arrive(r *request, waited bool) {
	if w.fenced || r.applied || r.unsent || r.base != w.revision && !waited {
		return
	}
	w.revision++
	w.lease, r.applied = r.lease, true
}

func (w *world) giveUpWaiting() {
	if w.awaited != nil {
		w.late = append(w.late, w.awaited)
		w.awaited = nil
	}
}

// Whatever is lost or late, and at whatever pace the clocks go within 500 ppm: when the observer fences, the host's authority is over by the
// host's own clock, at its agent and at its warden.
func TestFenceComesAfterAuthority(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Float64Range(-500e-6, 500e-6)
		w := &world{settings: Default(), fast: 1 + rate.Draw(t, "host's clock"), slow: 1 + rate.Draw(t, "observer's clock"), real: float64(time.Hour)}
		w.agent = NewAgent(w.settings, 0, 0, w.host())
		for range rapid.IntRange(20, 300).Draw(t, "steps") {
			w.real += float64(rapid.SampledFrom([]time.Duration{0, 10 * ms, 300 * ms, sec, 3 * sec}).Draw(t, "pause"))
			switch rapid.SampledFrom([]string{"tick", "arrive", "ack", "ack", "time out", "late", "look", "look", "plan", "restart", "warden"}).Draw(t, "what") {
			case "tick":
				w.step(AgentEvent{Kind: AgentTick})
			case "arrive":
				if w.awaited != nil {
					w.arrive(w.awaited, true)
				}
			case "ack":
				if r := w.awaited; r != nil {
					w.arrive(r, true)
					if r.applied {
						w.awaited = nil
						w.step(AgentEvent{Kind: RenewalAcked, Sent: r.sent, Lease: r.lease})
					}
				}
			case "time out":
				if r := w.awaited; r != nil {
					w.giveUpWaiting()
					w.step(AgentEvent{Kind: RenewalFailed, Sent: r.sent, Unsent: r.unsent})
				}
			case "late":
				if len(w.late) > 0 {
					w.arrive(w.late[rapid.IntRange(0, len(w.late)-1).Draw(t, "which")], false)
				}
			case "look":
				w.look(t)
			case "plan":
				w.step(AgentEvent{Kind: PlanRestart})
			case "warden":
				w.deaf = !w.deaf
			case "restart": // nothing of the old epoch arrives any more
				w.awaited, w.late = nil, nil
				w.agent = NewAgent(w.settings, 0, w.warden, w.host())
			}
			if w.fenced {
				return
			}
		}
	})
}

// look is what the observer does, and what must be so when it may fence.
func (w *world) look(t *rapid.T) {
	if w.revision == 0 {
		return
	}
	if w.seen != w.revision {
		w.seen, w.seenFor, w.first = w.revision, w.lease, w.observer()
		return
	}
	if w.observer()-w.first < w.settings.SilenceFor(w.seenFor) {
		return
	}
	w.fenced = true
	if left := w.agent.Left(w.host()); left > 0 || w.agent.Until > w.host() || w.warden > w.host() {
		t.Fatalf("fenced while the agent has %v left, until %v, the warden until %v, at %v", left, w.agent.Until, w.warden, w.host())
	}
}
