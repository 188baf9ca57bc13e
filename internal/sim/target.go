package sim

import (
	"errors"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// target is an agent's drive of the target's end: control/migrate's Target.
type target struct {
	a       *agent
	mv      *move
	m       handover.Target
	q       *qemu
	inbox   []targetEvent
	acting  bool
	waiting []func(handover.Answer)
	began   moment
	over    bool // its VM's loop goes on without it; it answers still
}

type targetEvent struct {
	handover.TargetEvent
	reply func(handover.Answer)
}

func (t *target) w() *world { return t.a.h.w }

// targetOf finds the target's end of a migration; nil: this agent knows none.
func (a *agent) targetOf(m *move) *target {
	for _, t := range a.targets {
		if t.mv == m {
			return t
		}
	}
	return nil
}

// prepare makes this host ready: lock record, QEMU that waits for a stream.
func (a *agent) prepare(m *move, done func(bool)) {
	h, w, v := a.h, a.h.w, m.vm
	l := &a.loops[v.i]
	if known := a.targetOf(m); known != nil || !a.ready || a.stopping {
		return
	}
	if l.busy || l.src != nil || l.tgt != nil || h.vms[v.i] != nil && !h.vms[v.i].dead || h.free()-h.promised() < v.memory || a.left() < handover.AuthorityMargin {
		done(false)
		return
	}
	t := &target{a: a, mv: m, m: handover.NewTarget(m.id), began: w.now}
	a.targets = append(a.targets, t)
	l.tgt, l.taken = t, true
	h.run.journals[v.i] = nil // of finished migrations
	m.targetBoot, m.heirBoot = h.boots, h.bootID()
	w.after(w.between(100*time.Millisecond, 500*time.Millisecond), a.p, func() {
		l.taken = false
		if !h.reaches() || !v.disk.lock(m.generation+1, h.i) {
			done(false)
			t.give(handover.TargetEvent{Kind: handover.TargetDiscard}, nil)
			return
		}
		t.q = h.spawn(v, m.generation+1, incoming)
		m.b = t.q
		a.tellVM(v, true, func(ok bool) {
			if !ok {
				done(false)
				t.give(handover.TargetEvent{Kind: handover.TargetDiscard}, nil)
				return
			}
			t.give(handover.TargetEvent{Kind: handover.TargetPrepared}, nil)
			done(true)
		})
	})
	t.tick()
}

func (a *agent) forget(t *target) {
	a.targets = slices.DeleteFunc(a.targets, func(o *target) bool { return o == t })
}

// release and discard are the calls of the source's agent, and of the leader.
func (a *agent) release(m *move, reply func(handover.Answer)) {
	a.asked(m, handover.TargetReleased, reply)
}

func (a *agent) discard(m *move, reply func(handover.Answer)) {
	a.asked(m, handover.TargetDiscard, reply)
}

func (a *agent) asked(m *move, e handover.TargetEventKind, reply func(handover.Answer)) {
	t := a.targetOf(m)
	if t == nil {
		if q := a.h.vms[m.vm.i]; q != nil && !q.dead && q == m.b {
			return // being restored: its caller asks again
		}
		a.recall(m, e, reply)
		return
	}
	t.give(handover.TargetEvent{Kind: e}, reply)
}

// recall answers for a migration of which nothing is known here: what the store says to an owner, the journal, or a reboot is the answer.
func (a *agent) recall(m *move, e handover.TargetEventKind, reply func(handover.Answer)) {
	var run inventory.VMRun
	a.h.w.etcd.do(a.h, a.p, callTimeout, false, func() error {
		run, _ = a.h.w.etcd.records.run[m.vm.i].last()
		return nil
	}, func(err error) {
		if err != nil {
			return // its caller asks again
		}
		if word, ok := m.attempt().TargetSettled(run); ok {
			reply(word)
			return
		}
		t := a.targetOf(m)
		if t == nil {
			t = &target{a: a, mv: m, m: handover.RestoreTarget(m.id, a.h.run.journals[m.vm.i])}
			a.targets = append(a.targets, t)
			t.give(m.attempt().TargetFound(run, handover.QEMUGone, m.targetBoot != 0 && m.targetBoot != a.h.boots), nil)
		}
		t.give(handover.TargetEvent{Kind: e}, reply)
	})
}

func (t *target) give(e handover.TargetEvent, reply func(handover.Answer)) {
	if t.a.p.dead {
		return
	}
	t.inbox = append(t.inbox, targetEvent{e, reply})
	if !t.acting {
		t.next()
	}
}

func (t *target) next() {
	for len(t.inbox) > 0 && !t.acting {
		e := t.inbox[0]
		t.inbox = t.inbox[1:]
		e.Authority = t.a.left()
		if e.reply != nil {
			t.waiting = append(t.waiting, e.reply)
		}
		before := t.m.State
		m, actions := t.m.Step(e.TargetEvent)
		t.m = m
		if before != m.State {
			t.w().say(string(t.a.h.id), "target of %s: %s -> %s (%s)", t.mv.id, before, m.State, e.Kind)
		}
		t.acting = true
		t.act(actions)
	}
	if !t.acting && t.m.Final() && !t.over {
		t.over = true
		l := &t.a.loops[t.mv.vm.i]
		if l.tgt == t {
			l.tgt = nil
		}
		if q := t.a.h.vms[t.mv.vm.i]; t.m.State == handover.TargetOwner && q != nil && !q.dead && q.state == paused {
			l.held = true
		}
	}
}

func (t *target) act(actions []handover.TargetAction) {
	if len(actions) == 0 {
		t.acting = false
		return
	}
	do, rest := actions[0], actions[1:]
	w, h := t.w(), t.a.h
	then := func() {
		t.act(rest)
		if !t.acting {
			t.next()
		}
	}
	fails := func(e handover.TargetEventKind) {
		t.acting = false
		t.inbox = append([]targetEvent{{TargetEvent: handover.TargetEvent{Kind: e}}}, t.inbox...)
		t.next()
	}
	switch do.Kind {
	case handover.TargetJournal:
		w.nickAgent(h)
		w.after(w.between(20*time.Microsecond, time.Millisecond), t.a.p, func() {
			fault := w.rng.IntN(200) == 0
			if !fault || w.chance(50) {
				h.run.journals[t.mv.vm.i] = append(h.run.journals[t.mv.vm.i], do.Entry)
			}
			if fault {
				fails(handover.TargetJournalFailed)
				return
			}
			w.after(w.between(20*time.Microsecond, 300*time.Microsecond), t.a.p, then)
		})
		return
	case handover.Cont:
		if t.a.left() < handover.AuthorityMargin && !defect.Seeded.AuthorityUnchecked() {
			fails(handover.TargetContFailed)
			return
		}
		if t.q == nil || t.q.dead {
			fails(handover.TargetGone)
			return
		}
		q := t.q
		t.a.cont(t.mv.vm, q, func(ok bool) {
			e := handover.TargetContFailed
			switch {
			case ok:
				e = handover.TargetContOK
			case q.dead:
				e = handover.TargetGone
			}
			t.give(handover.TargetEvent{Kind: e}, nil)
		})
	case handover.SendAnswer:
		w.nickAgent(h)
		for _, reply := range t.waiting {
			reply(do.Answer)
		}
		t.waiting = nil
	case handover.KillTarget:
		if t.q != nil && !t.q.dead {
			waited := false
			end := func() {
				if !waited && !t.a.p.dead {
					waited = true
					then()
				}
			}
			t.q.whenGone = append(t.q.whenGone, end)
			w.after(10*time.Second, t.a.p, end) // one that the kernel cannot end stays; it never runs
			t.q.kill()
			return
		}
	case handover.FreeTarget:
		t.a.gone(t.mv.vm)
	case handover.OpenPort: // cont has announced it
	case handover.RecoverPull: // of post-copy, which is not simulated
	case handover.WriteOwner:
		t.writeOwner()
	case handover.TargetViolation:
		w.breaks("S6", "target of %s: %s", t.mv.id, do.Why)
	}
	t.act(rest)
}

// writeOwner makes this host the owner.
func (t *target) writeOwner() {
	e, h, mv := t.w().etcd, t.a.h, t.mv
	e.do(h, t.a.p, callTimeout, true, func() error {
		if !e.records.epochIs(h.i, t.a.epoch) {
			return errEpoch
		}
		return e.records.change(mv.vm.i, mv.attempt().TakeOwner)
	}, func(err error) {
		switch {
		case err == nil:
			t.give(handover.TargetEvent{Kind: handover.TargetOwnerWritten}, nil)
		case errors.Is(err, handover.ErrRefused):
			t.give(handover.TargetEvent{Kind: handover.TargetOwnerRefused}, nil)
		}
	})
}

func (t *target) tick() {
	w := t.w()
	if t.over {
		return
	}
	w.after(tickEvery, t.a.p, t.tick)
	if t.q != nil && t.q.dead {
		t.q = nil
		t.give(handover.TargetEvent{Kind: handover.TargetGone}, nil)
	}
	if t.m.State == handover.TargetIncoming && t.mv.a.state != copying && w.now-t.began > abandonMax {
		t.give(handover.TargetEvent{Kind: handover.TargetDiscard}, nil)
	}
	if t.a.left() < handover.AuthorityMargin {
		t.give(handover.TargetEvent{Kind: handover.TargetAuthorityShort}, nil)
	}
	if t.m.State.Reads() {
		t.readStore()
	}
	t.give(handover.TargetEvent{Kind: handover.TargetTick}, nil)
}

// readStore looks for the release in the migration's record, and whether this host may still take the VM.
func (t *target) readStore() {
	e, h, mv := t.w().etcd, t.a.h, t.mv
	var r inventory.MigrationStatus
	var run inventory.VMRun
	e.do(h, t.a.p, callTimeout, false, func() error {
		r, _ = e.records.move[mv.i].last()
		run, _ = e.records.run[mv.vm.i].last()
		return nil
	}, func(err error) {
		if err != nil || t.acting {
			return
		}
		if told := mv.attempt().TargetReads(t.m.State, run, r); told.Kind != "" { // by the state that it is in now: it may have gone on meanwhile
			t.give(told, nil)
		}
	})
}

// restored is the first event of a target that an earlier agent drove.
func (t *target) restored(q *qemu, vm inventory.VM) {
	mv := t.mv
	t.began = t.w().now
	t.tick()
	if q != nil && q == mv.b {
		t.q = q
	}
	found := handover.QEMURuns
	switch {
	case t.q == nil:
		found = handover.QEMUGone
	case t.q.state == incoming:
		found = handover.QEMUIncoming
	case t.q.state == loaded:
		found = handover.QEMULoaded
	}
	first := mv.attempt().TargetFound(vm.Run, found, mv.targetBoot != 0 && t.a.h.boots != mv.targetBoot)
	if first.Kind == handover.TargetOwnerWritten { // by this migration or by the leader: the VM is this host's
		if handover.LeftBehind(vm, found) {
			t.q.kill()
		}
		t.over = true
		t.a.loops[mv.vm.i].tgt = nil
		t.a.forget(t)
		return
	}
	t.give(first, nil)
}

// short is when the authority ends: a VM that was not released here is given up.
func (t *target) short() { t.give(handover.TargetEvent{Kind: handover.TargetAuthorityShort}, nil) }
