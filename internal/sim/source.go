package sim

import (
	"errors"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// source is an agent's drive of the source's end of a migration: control/migrate's Source.
type source struct {
	a       *agent
	mv      *move
	m       handover.Source
	q       *qemu // nil: gone
	told    bool  // QEMU was told to migrate
	sending bool
	inbox   []handover.SourceEvent
	acting  bool
	cancels bool
	over    bool
}

func (s *source) w() *world { return s.a.h.w }

// give gives the machine an event once it has done what followed from those before.
func (s *source) give(e handover.SourceEvent) {
	if s.over || s.a.p.dead {
		return
	}
	s.inbox = append(s.inbox, e)
	if !s.acting {
		s.next()
	}
}

func (s *source) next() {
	for len(s.inbox) > 0 && !s.acting {
		e := s.inbox[0]
		s.inbox = s.inbox[1:]
		e.Authority = s.a.left()
		before := s.m.State
		m, actions := s.m.Step(e)
		s.m = m
		if before != m.State {
			s.w().say(string(s.a.h.id), "source of %s: %s -> %s (%s)", s.mv.id, before, m.State, e.Kind)
		}
		s.acting = true
		s.act(actions)
	}
	if !s.acting && s.m.Final() && !s.over {
		s.end()
	}
	if s.m.State == handover.SourceGate {
		s.w().after(gateMax, s.a.p, func() {
			if s.m.State == handover.SourceGate {
				s.give(handover.SourceEvent{Kind: handover.SourceAbort})
			}
		})
	}
}

// act does actions in order; one that fails leaves out the rest, and becomes the next event.
func (s *source) act(actions []handover.SourceAction) {
	if len(actions) == 0 {
		s.acting = false
		return
	}
	do, rest := actions[0], actions[1:]
	w, h := s.w(), s.a.h
	then := func() {
		s.act(rest)
		if !s.acting {
			s.next()
		}
	}
	fails := func(e handover.SourceEventKind) {
		s.acting = false
		s.inbox = append([]handover.SourceEvent{{Kind: e}}, s.inbox...)
		s.next()
	}
	switch do.Kind {
	case handover.ContinueSwitchover:
		if s.q != nil && !s.q.dead && s.q.state == gate && s.q.hung <= w.now {
			s.q.inactivate()
			s.mv.device()
		} else {
			fails(handover.SourceAbort)
			return
		}
	case handover.CancelCopy:
		if !s.told {
			s.inbox = append(s.inbox, handover.SourceEvent{Kind: handover.SourceFailed})
		} else {
			s.cancel()
		}
	case handover.SourceJournal:
		w.nickAgent(h)
		w.after(w.between(20*time.Microsecond, time.Millisecond), s.a.p, func() {
			fault := w.rng.IntN(200) == 0
			if !fault || w.chance(50) {
				h.run.journals[s.mv.vm.i] = append(h.run.journals[s.mv.vm.i], do.Entry)
			}
			if fault {
				fails(handover.SourceJournalFailed)
				return
			}
			w.after(w.between(20*time.Microsecond, 300*time.Microsecond), s.a.p, then)
		})
		return
	case handover.SendRelease:
		w.nickAgent(h)
		w.nick(h, 2, func() {
			// What it has sent comes when it is back, if TCP tries that long.
			w.say("fault", "%s is cut off as it releases %s", h.id, s.mv.vm.id)
			w.heals(w.isolate(h, true, true, management), w.between(8600*time.Millisecond, 12*time.Second))
		})
		s.call(s.answered, func(t *agent, reply func(handover.Answer)) { t.release(s.mv, reply) })
	case handover.SendDiscard:
		s.call(s.holds, func(t *agent, reply func(handover.Answer)) { t.discard(s.mv, reply) })
	case handover.ResumeHere:
		s.resume()
		s.act(rest)
		return
	case handover.KillSource:
		if s.q != nil && !s.q.dead {
			s.q.kill()
		}
	case handover.FreeSource:
		h.run.journals[s.mv.vm.i] = nil
	case handover.ClearHeir:
		s.clearHeir()
	case handover.SendPullLost, handover.ResumePull: // of post-copy, which is not simulated
	case handover.RecordDiscarded:
		s.record(do.Record)
	case handover.SourceReport:
		if do.Phase == inventory.Released {
			s.record(do.Record)
		}
	case handover.SourceViolation:
		w.breaks("S6", "source of %s: %s", s.mv.id, do.Why)
	case handover.RefuseCancel:
	}
	s.act(rest)
}

// resume lets the own vCPUs run again.
func (s *source) resume() {
	if s.a.left() < handover.AuthorityMargin || s.q == nil || s.q.dead {
		s.inbox = append(s.inbox, handover.SourceEvent{Kind: handover.SourceResumeFailed})
		return
	}
	s.a.cont(s.mv.vm, s.q, func(ok bool) {
		e := handover.SourceResumeFailed
		if ok {
			e = handover.SourceResumed
		}
		s.give(handover.SourceEvent{Kind: e})
	})
}

// end is when the machine has nothing left to do.
func (s *source) end() {
	s.over = true
	w, l := s.w(), &s.a.loops[s.mv.vm.i]
	if l.src == s {
		l.src = nil
	}
	w.say(string(s.a.h.id), "source of %s is over: %s %s", s.mv.id, s.m.Ends, s.m.Why)
	if s.m.Ends == inventory.Completed {
		w.stats.Moved++
		if s.mv.vm.arbiter == authority.StorageArbitrates {
			w.stats.Guarded++
		}
	} else {
		w.settles(s.mv)
	}
	if q := s.a.h.vms[s.mv.vm.i]; q != nil && !q.dead && q.state == paused {
		l.held = true
	}
	s.finish()
}

// finish writes the end into the record, until that succeeds.
func (s *source) finish() {
	s.record(func(r *inventory.MigrationStatus) { r.Phase = s.m.Ends })
	s.w().after(callTimeout+time.Second, s.a.p, func() {
		if r, _ := s.w().etcd.records.move[s.mv.i].last(); !r.Phase.Final() {
			s.finish()
		}
	})
}

// record changes the migration's record.
func (s *source) record(change func(*inventory.MigrationStatus)) {
	e, h := s.w().etcd, s.a.h
	e.do(h, s.a.p, callTimeout, true, func() error {
		if !e.records.epochIs(h.i, s.a.epoch) {
			return errEpoch
		}
		r, _ := e.records.move[s.mv.i].last()
		next := r
		change(&next)
		r, err := r.Next(s.mv.id, next)
		e.records.move[s.mv.i].put(e.records.next(), r)
		return err
	}, func(error) {})
}

// begin has the target get ready, and then copies.
func (s *source) begin() {
	w, mv := s.w(), s.mv
	s.tick()
	answered := false
	w.after(prepareMax, s.a.p, func() {
		if !answered {
			answered = true
			s.give(handover.SourceEvent{Kind: handover.SourceAbort})
		}
	})
	w.send(s.a.h.node, mv.target.node, nil, func() {
		t := mv.target.agent
		if t == nil || !t.p.runs(w.now) {
			return
		}
		t.prepare(mv, func(ok bool) {
			w.send(mv.target.node, s.a.h.node, s.a.p, func() {
				switch {
				case answered:
				case !ok || s.m.State != handover.SourceCopying || s.q.dead || s.q.state != running:
					answered = true
					s.give(handover.SourceEvent{Kind: handover.SourceAbort})
				default:
					answered = true
					s.copies()
				}
			})
		})
	})
	if w.chance(8) {
		w.after(w.between(0, 12*time.Second), s.a.p, func() { s.give(handover.SourceEvent{Kind: handover.SourceCancel}) })
	}
}

func (s *source) copies() {
	w := s.w()
	s.told = true
	s.q.out = s.mv
	s.q.set(copying)
	lasts := w.between(300*time.Millisecond, 12*time.Second)
	s.mv.copy(lasts)
	w.after(w.between(0, lasts), s.a.p, s.setHeir)
}

// setHeir names the heir while the guest runs still, or waits at the gate.
func (s *source) setHeir() {
	w, e, h, mv := s.w(), s.w().etcd, s.a.h, s.mv
	if defect.Seeded.OwnerAfterCont() || s.m.Heir || s.over || s.m.State != handover.SourceCopying && s.m.State != handover.SourceGate {
		return
	}
	e.do(h, s.a.p, callTimeout, true, func() error {
		if !e.records.epochIs(h.i, s.a.epoch) {
			return errEpoch
		}
		there, _ := e.records.epoch[mv.target.i].last()
		return e.records.change(mv.vm.i, func(run inventory.VMRun) (inventory.VMRun, error) {
			return mv.attempt().SetHeir(run, there.sign())
		})
	}, func(err error) {
		switch {
		case err == nil:
			s.give(handover.SourceEvent{Kind: handover.SourceHeirSet})
		case errors.Is(err, errUnknown):
			w.after(heirRetry, s.a.p, s.setHeir)
		default:
			s.give(handover.SourceEvent{Kind: handover.SourceHeirRefused})
		}
	})
}

// cancel asks QEMU to give up until it says how that ended.
func (s *source) cancel() {
	if s.cancels {
		return
	}
	s.cancels = true
	w := s.w()
	var ask func()
	ask = func() {
		q := s.q
		switch {
		case s.over || q == nil || q.dead:
			s.cancels = false
		case q.hung > w.now || q.frozen:
			w.after(100*time.Millisecond, s.a.p, ask)
		case q.state == complete:
			s.cancels = false
			s.give(handover.SourceEvent{Kind: handover.SourceCompleted})
		default:
			s.cancels = false
			if q.state == copying || q.state == gate || q.state == device {
				q.back()
				s.mv.cut()
			}
			s.give(handover.SourceEvent{Kind: handover.SourceFailed})
		}
	}
	w.after(w.between(time.Millisecond, 100*time.Millisecond), s.a.p, ask)
}

// call asks the target's agent, one question at a time.
func (s *source) call(hears func(handover.Answer), ask func(t *agent, reply func(handover.Answer))) {
	w, mv := s.w(), s.mv
	if s.sending {
		return
	}
	s.sending = true
	done := false
	end := func(a handover.Answer) {
		if done {
			return
		}
		done, s.sending = true, false
		if a != "" {
			hears(a)
		}
	}
	w.after(callTimeout, s.a.p, func() { end("") })
	w.send(s.a.h.node, mv.target.node, nil, func() {
		if t := mv.target.agent; t != nil && !t.p.dead && t.ready {
			w.after(10*time.Microsecond, t.p, func() {
				ask(t, func(a handover.Answer) { w.send(mv.target.node, s.a.h.node, s.a.p, func() { end(a) }) })
			})
		}
	})
}

func (s *source) answered(a handover.Answer) {
	s.give(handover.SourceEvent{Kind: handover.SourceAnswered, Answer: a})
}

// holds holds the answer to a discard against the run record.
func (s *source) holds(a handover.Answer) {
	if a == handover.AnswerDiscarded {
		s.answered(a)
		return
	}
	e, mv := s.w().etcd, s.mv
	var run inventory.VMRun
	e.do(s.a.h, s.a.p, callTimeout, false, func() error {
		run, _ = e.records.run[mv.vm.i].last()
		return nil
	}, func(err error) {
		if err == nil {
			s.give(mv.attempt().SourceHears(a, run))
		}
	})
}

func (s *source) clearHeir() {
	e, h, mv := s.w().etcd, s.a.h, s.mv
	e.do(h, s.a.p, callTimeout, true, func() error {
		if !e.records.epochIs(h.i, s.a.epoch) {
			return errEpoch
		}
		return e.records.change(mv.vm.i, mv.attempt().ClearHeir)
	}, func(err error) {
		switch {
		case err == nil:
			s.give(handover.SourceEvent{Kind: handover.SourceHeirCleared})
		case errors.Is(err, handover.ErrRefused):
			s.readStore(handover.SourceEnding)
		}
	})
}

// tick looks at what no event tells, and says that a wait has lasted.
func (s *source) tick() {
	w := s.w()
	if s.over {
		return
	}
	w.after(tickEvery, s.a.p, s.tick)
	switch s.m.State { //nolint:exhaustive // the others wait for nothing that is looked at here
	case handover.SourceSwitching, handover.SourceCopying:
		if s.mv.stalled != 0 && w.now-s.mv.stalled > stallMax {
			s.give(handover.SourceEvent{Kind: handover.SourceAbort})
		}
	}
	if s.q != nil && s.q.dead {
		s.q = nil
		s.give(handover.SourceEvent{Kind: handover.SourceGone})
	}
	if s.m.State.Reads() {
		s.readStore(s.m.State)
	}
	s.give(handover.SourceEvent{Kind: handover.SourceTick})
}

// readStore tells the machine what the store says of owner and heir, and of the target's life.
func (s *source) readStore(state handover.SourceState) {
	e, h, mv := s.w().etcd, s.a.h, s.mv
	var run inventory.VMRun
	var there epochRecord
	e.do(h, s.a.p, callTimeout, false, func() error {
		run, _ = e.records.run[mv.vm.i].last()
		there, _ = e.records.epoch[mv.target.i].last()
		return nil
	}, func(err error) {
		if err != nil {
			return
		}
		for _, told := range mv.attempt().SourceReads(state, run, there.sign()) {
			s.give(told)
		}
	})
}

// restored is the first event of a source that an earlier agent drove.
func (s *source) restored(q *qemu, run inventory.VMRun) {
	mv := s.mv
	s.tick()
	if q != nil && q == mv.a {
		s.q = q
	}
	found := handover.QEMURuns
	switch {
	case s.q == nil:
		found = handover.QEMUGone
	case s.q.state == complete:
		found = handover.QEMUCompleted
	case s.q.state == copying || s.q.state == gate || s.q.state == device:
		found = handover.QEMUMigrates
	}
	s.give(mv.attempt().SourceFound(run, found, s.a.h.boots != mv.sourceBoot))
}

// short is when the authority ends: what was not released stays here.
func (s *source) short() { s.give(handover.SourceEvent{Kind: handover.SourceAbort}) }
