package authority

import (
	"math"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
)

// AgentEventKind names what happened at the agent.
type AgentEventKind string

// The events of the agent. Each carries the moment at which it is given.
const (
	AgentTick     AgentEventKind = "tick"   // at NextTick, or any other time
	RenewalAcked  AgentEventKind = "acked"  // the store did the renewal that was sent at Sent
	RenewalFailed AgentEventKind = "failed" // no answer in RenewTimeout, or the store is away: it may have been done
	EpochOver     AgentEventKind = "epoch"  // the store refused it: the host was fenced, or its agent was started again
	PlanRestart   AgentEventKind = "plan"   // a planned restart wants the longer authority
	RenewNow      AgentEventKind = "now"    // there is something new to say
)

// AgentEvent is one thing that happened at the agent.
type AgentEvent struct {
	Kind AgentEventKind
	Now  Moment
	Sent Moment // of RenewalAcked and RenewalFailed: what Renew carried
	// Lease is that of the renewal that was acknowledged, as Renew carried it.
	Lease time.Duration
	// Unsent says of RenewalFailed that the renewal was not sent, because the warden did not take the ShortenWarden before it.
	Unsent bool
}

// AgentActionKind names what the agent is to do.
type AgentActionKind string

// The actions of the agent.
const (
	// Renew sends a renewal of Lease; Sent is to come back with its outcome. It is never sent while another is under way.
	Renew AgentActionKind = "renew"
	// TellWarden says until when the authority lasts, under which fence count.
	TellWarden AgentActionKind = "tell"
	// ShortenWarden says that the authority lasts no longer than Until, if it lasts that long. It is done, and the warden has taken it,
	// before the renewal that follows is sent: an observer that sees a shorter lease waits less from then on. Where the warden does
	// not take it, that renewal is not sent and counts as failed.
	ShortenWarden AgentActionKind = "shorten"
	// StopVMs stops the vCPUs of every VM on lease-arbitrated storage, and tells the warden of each whose QEMU has answered that
	// its vCPUs stand and its disks are quiet.
	StopVMs AgentActionKind = "stop"
	// ResumeVMs lets those run on that StopVMs stopped, unless they were wanted stopped anyway. The warden was told before.
	ResumeVMs AgentActionKind = "resume"
	// GiveUp tells the warden that the authority is over for good, ends every VM on lease-arbitrated storage, and then the agent:
	// its successor begins a new epoch.
	GiveUp AgentActionKind = "give-up"
)

// AgentAction is one thing for the agent to do.
type AgentAction struct {
	Kind   AgentActionKind
	Sent   Moment        // of Renew
	Lease  time.Duration // of Renew
	Until  Moment        // of TellWarden and ShortenWarden
	Fences uint64        // of TellWarden
}

// Agent is how a host's agent keeps its host's authority. Take NewAgent; it is a value, and whoever drives it keeps the last one.
type Agent struct {
	Settings Settings
	Fences   uint64 // how often the host had been fenced when its epoch began

	Until   Moment // end of the authority; 0: none yet
	Renewed bool   // this agent has sent a renewal, and the warden knows of no longer authority than the agent
	Sending bool   // a renewal is under way
	Next    Moment // when the next renewal is due
	Stopped bool   // VMs were told to stop
	Over    bool   // for good
	Plan    bool   // the longer lease is wanted, to the agent's end
}

// NewAgent returns the authority of an agent that began its epoch. until is the end of the authority that its predecessor left, as
// the warden knows it, if that was of the same fence count, and 0 otherwise: then there is none before the first renewal was
// acknowledged.
func NewAgent(s Settings, fences uint64, until, now Moment) Agent {
	if defect.Seeded.RestartOutlives() && until != 0 {
		until = now + s.Lease
	}
	return Agent{Settings: s, Fences: fences, Until: until, Next: now}
}

// Left returns how long the host may still let VMs run: up to when it would stop them, not to the end of the lease.
// Zero or less: it may not.
func (a Agent) Left(now Moment) time.Duration {
	if a.Over || a.Until == 0 {
		return 0
	}
	return a.Settings.stopAt(a.Until) - now
}

// Never is what NextTick returns when only an outcome, and no time, changes anything.
const Never Moment = math.MaxInt64

// NextTick returns when the next tick is due at the latest, Never when none is: a renewal is under way, and nothing is left to be stopped.
func (a Agent) NextTick() Moment {
	at := a.Next
	if a.Sending || a.Over {
		at = Never
	}
	if !a.Over && !a.Stopped && a.Until != 0 {
		at = min(at, a.Settings.stopAt(a.Until))
	}
	return at
}

// Step takes an event and returns what follows.
func (a Agent) Step(e AgentEvent) (Agent, []AgentAction) {
	if a.Over {
		return a, nil
	}
	var do []AgentAction
	switch e.Kind {
	case RenewalAcked:
		a.Sending = false
		// Never later than what was acknowledged, and never earlier than what an older renewal gave: tick has shortened that already.
		if defect.Seeded.SentAfterAck() {
			e.Sent = e.Now
		}
		if defect.Seeded.ShortenLate() {
			a.Until = min(a.Until, e.Sent+e.Lease)
			do = append(do, AgentAction{Kind: ShortenWarden, Until: a.Until})
		}
		a.Until = max(a.Until, e.Sent+e.Lease)
		do = append(do, AgentAction{Kind: TellWarden, Until: a.Until, Fences: a.Fences})
		if a.Stopped && a.Left(e.Now) > 0 {
			a.Stopped = false
			do = append(do, AgentAction{Kind: ResumeVMs})
		}
	case RenewalFailed:
		a.Sending = false
		if e.Unsent {
			a.Renewed = false // the warden may still count on more: it is told again before anything is sent
		}
	case EpochOver:
		a.Over, a.Sending = true, false
		return a, append(do, AgentAction{Kind: GiveUp})
	case PlanRestart:
		a.Plan, a.Next = true, e.Now
	case RenewNow:
		a.Next = e.Now
	case AgentTick:
	}
	return a.tick(e.Now, do)
}

// tick stops VMs in time and sends the next renewal.
func (a Agent) tick(now Moment, do []AgentAction) (Agent, []AgentAction) {
	if !a.Stopped && a.Until != 0 && a.Left(now) <= 0 {
		a.Stopped = true
		do = append(do, AgentAction{Kind: StopVMs})
	}
	if a.Sending || now < a.Next {
		return a, do
	}
	lease := a.Settings.Lease
	if a.Plan {
		lease = a.Settings.Planned
	}
	if until := now + lease; (until < a.Until || !a.Renewed) && !defect.Seeded.ShortenLate() {
		// From the moment this renewal is done, whether or not its answer arrives, an observer waits for this lease only.
		if a.Until != 0 {
			a.Until = min(a.Until, until)
		}
		do = append(do, AgentAction{Kind: ShortenWarden, Until: until})
	}
	a.Sending, a.Renewed, a.Next = true, true, now+a.Settings.RenewEvery
	return a, append(do, AgentAction{Kind: Renew, Sent: now, Lease: lease})
}
