package sim

import (
	"errors"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// agent is one life of a host's agent.
type agent struct {
	h  *host
	p  *proc
	m  authority.Agent
	on bool // it has an epoch, and m is set

	epoch     uint64
	sequence  uint64
	waitClear bool
	ready     bool // its VMs are adopted
	stopping  bool // an ordered end
	inbox     []authority.AgentEvent
	acting    bool
	ticks     int
	done      func(bool) // of a planned restart that waits for its longer lease

	loops   []vmLoop  // by VM
	targets []*target // that it drives or drove
	sawRev  int64     // of the election, as this host saw it last
	saw     authority.Moment
	lead    *leader // nil: another host leads
}

func newAgent(h *host) *agent {
	return &agent{h: h, p: &proc{host: h}, loops: make([]vmLoop, len(h.w.vms))}
}

// end is the end of the process, in whatever way.
func (a *agent) end() {
	a.p.dead = true
	for i := range a.loops {
		l := &a.loops[i]
		if l.src != nil {
			l.src.mv.cut()
		}
		if l.tgt != nil {
			l.tgt.mv.cut()
		}
		l.src, l.tgt = nil, nil
	}
	if a.lead != nil {
		a.lead.p.dead = true
	}
}

// left is how far this host may act for its VMs.
func (a *agent) left() time.Duration {
	if !a.on {
		return 0
	}
	return a.m.Left(a.h.now())
}

// begin starts the epoch; nothing comes before it.
func (a *agent) begin() {
	h, s := a.h, a.h.w.etcd
	var now epochRecord
	s.do(h, a.p, storeTimeout, true, func() error {
		e, _ := s.records.epoch[h.i].last()
		now = epochRecord{Epoch: e.Epoch + 1, Fences: e.Fences, Boot: h.bootID()}
		s.records.epoch[h.i].put(s.records.next(), now)
		return nil
	}, func(err error) {
		if err != nil {
			h.w.after(300*time.Millisecond, a.p, a.begin)
			return
		}
		a.begun(now)
	})
}

// begun takes over what the warden knows of this agent's predecessor, and renews.
func (a *agent) begun(e epochRecord) {
	h, wd := a.h, a.h.warden
	fences, until := wd.m.Fences, wd.m.Until
	a.epoch = e.Epoch
	if fences != e.Fences && (until == 0 || !defect.Seeded.ResumeLostEpoch()) {
		until = 0
	}
	if defect.Seeded.ResumeLostEpoch() && until != 0 {
		e.Fences = fences
	}
	a.m = authority.NewAgent(h.w.settings, e.Fences, until, h.now())
	a.on = true
	a.waitClear = until == 0
	if defect.Seeded.RestartOutlives() && until != 0 {
		a.word(func(m *authority.Warden) { m.Told(e.Fences, a.m.Until, h.cgroups()) }, ignore)
	}
	a.give(authority.AgentEvent{Kind: authority.AgentTick})
	if defect.Seeded.ResumeLostEpoch() && until != 0 {
		for _, q := range h.vms {
			if q != nil && q.state == paused {
				a.loops[q.vm.i].held = true // they run on when the renewal is acknowledged, and the store is asked for their owners later
			}
		}
		h.w.after(300*time.Millisecond, a.p, a.adopt)
		return
	}
	if !a.waitClear || defect.Seeded.ClearNotAwaited() {
		a.adopt()
	}
}

// clear is the warden's word that nothing of an earlier fence count lives.
func (a *agent) clear() {
	if a.on && a.waitClear && !a.ready {
		a.adopt()
	}
}

// give gives the machine an event, when it has done what followed from those before.
func (a *agent) give(e authority.AgentEvent) {
	a.inbox = append(a.inbox, e)
	if !a.acting {
		a.next()
	}
}

func (a *agent) next() {
	if len(a.inbox) == 0 {
		a.schedule()
		return
	}
	e := a.inbox[0]
	a.inbox = a.inbox[1:]
	e.Now = a.h.now()
	m, actions := a.m.Step(e)
	a.m = m
	if len(actions) == 0 {
		a.next()
		return
	}
	a.acting = true
	a.act(actions)
}

// schedule sets the timer of the next tick.
func (a *agent) schedule() {
	a.ticks++
	turn := a.ticks
	at := a.m.NextTick()
	if at == authority.Never {
		return
	}
	a.h.at(at, a.p, func() {
		if a.ticks == turn && !a.acting {
			a.give(authority.AgentEvent{Kind: authority.AgentTick})
		}
	})
}

// act does actions in order, each after the one before was done.
func (a *agent) act(actions []authority.AgentAction) {
	if len(actions) == 0 {
		a.acting = false
		a.next()
		return
	}
	do, rest := actions[0], actions[1:]
	then := func(bool) { a.act(rest) }
	switch do.Kind {
	case authority.Renew:
		a.renew(do)
		a.act(rest)
	case authority.TellWarden:
		wd := a.h.warden
		a.word(func(m *authority.Warden) {
			m.Told(do.Fences, do.Until, a.h.cgroups())
			wd.stale = false
		}, then)
	case authority.ShortenWarden:
		a.word(func(m *authority.Warden) { m.Shorten(do.Until) }, func(ok bool) {
			if !ok && len(rest) > 0 && rest[0].Kind == authority.Renew {
				// The warden has not taken it: a renewal of this lease must not go out.
				a.inbox = append(a.inbox, authority.AgentEvent{Kind: authority.RenewalFailed, Sent: rest[0].Sent, Lease: rest[0].Lease})
				rest = rest[1:]
			}
			a.act(rest)
		})
	case authority.StopVMs:
		a.h.w.say(string(a.h.id), "agent stops its VMs: the authority is short")
		a.h.w.stopped(a.h)
		a.stopVMs()
		a.act(rest)
	case authority.ResumeVMs:
		a.h.w.say(string(a.h.id), "agent lets its VMs run again")
		a.resumeVMs()
		a.act(rest)
	case authority.GiveUp:
		a.h.w.say(string(a.h.id), "agent gives up: its epoch is over")
		if defect.Seeded.ResumeLostEpoch() {
			a.end()
			a.h.startAgent()
			return
		}
		a.word(func(m *authority.Warden) { m.GivenUp(a.h.cgroups()) }, func(bool) {
			for _, q := range a.h.vms {
				if q != nil && !q.dead && q.vm.arbiter == authority.LeaseArbitrates {
					q.kill()
				}
			}
			a.end()
			a.h.startAgent()
		})
	}
}

// fencing is what this host promises about its own death.
func (a *agent) fencing() inventory.Fencing {
	h := a.h
	if !h.hasDog || !h.dog.armed || a.stopping && !defect.Seeded.PlanPromisesWatchdog() {
		return inventory.FencedByNobody
	}
	return inventory.FencedByWatchdog
}

// renew sends a renewal.
func (a *agent) renew(do authority.AgentAction) {
	h, s := a.h, a.h.w.etcd
	a.sequence++
	n, fencing := a.sequence, a.fencing()
	sent, wall := h.w.now, h.now()+h.clock.wall
	applied := false
	if last, _ := s.records.alive[h.i].last(); last.Lease > do.Lease {
		h.w.nick(h, 30, func() {
			// The renewal of a shorter lease is under way and done, its answer is lost, and nothing comes after it.
			h.w.say("fault", "%s is cut off as it sends a shorter lease", h.id)
			h.w.heals(h.w.isolate(h, true, true, management), h.w.between(10*time.Second, 20*time.Second))
		})
	}
	s.do(h, a.p, h.w.settings.RenewTimeout, true, func() error {
		err := s.records.renew(h.i, a.epoch, n, aliveRecord{Renewal: inventory.Renewal{Host: h.id, Lease: do.Lease, Fencing: fencing}, wall: wall})
		if err == nil && !applied {
			applied = true
			h.w.renewed(h, sent, do.Lease, fencing)
		}
		return err
	}, func(err error) {
		e := authority.AgentEvent{Kind: authority.RenewalAcked, Sent: do.Sent, Lease: do.Lease}
		switch {
		case errors.Is(err, errEpoch):
			e.Kind = authority.EpochOver
		case err != nil:
			e.Kind = authority.RenewalFailed
		default:
			h.contact(sent)
			h.sentEpoch = a.epoch
		}
		if done := a.done; done != nil && e.Kind == authority.RenewalAcked && (do.Lease == h.w.settings.Planned) {
			a.done = nil
			h.w.after(time.Millisecond, a.p, func() { done(true) })
		}
		a.give(e)
	})
}

// plan obtains the longer authority, for a second at most, and then goes on.
func (a *agent) plan(done func(bool)) {
	if !a.on {
		done(false)
		return
	}
	a.done = done
	a.h.w.after(1200*time.Millisecond, a.p, func() {
		if a.done != nil {
			a.done = nil
			done(false)
		}
	})
	a.give(authority.AgentEvent{Kind: authority.PlanRestart})
}
