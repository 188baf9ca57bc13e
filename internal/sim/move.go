package sim

import (
	"strconv"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// The waits of control/migrate.
const (
	tickEvery   = time.Second
	callTimeout = 3 * time.Second
	prepareMax  = 30 * time.Second
	heirRetry   = 300 * time.Millisecond
	gateMax     = 500 * time.Millisecond
	stallMax    = 5 * time.Second
	abandonMax  = 60 * time.Second
)

// move is one migration: its record's spec, and what both QEMUs know of each other.
type move struct {
	i          int
	id         inventory.MigrationID
	vm         *vm
	source     *host
	target     *host
	generation inventory.Generation // of the VM when it began; the heir has the next one
	sourceBoot int
	targetBoot int // 0: never prepared
	heirBoot   string
	a, b       *qemu
	stalled    moment // the stream has not moved since; 0: it moves
}

// move asks the owner's agent for a migration.
func (w *world) move(v *vm) {
	run, _ := w.etcd.records.run[v.i].last()
	h := w.hosts[number(run.Owner)]
	to := w.hosts[w.rng.IntN(len(w.hosts))]
	a, q := h.agent, h.vms[v.i]
	if to == h || a == nil || !a.p.runs(w.now) || !a.ready || q == nil || q.state != running || q.dead {
		return
	}
	l := &a.loops[v.i]
	if l.busy || l.src != nil || l.tgt != nil || !run.Heir.IsZero() {
		return
	}
	m := &move{
		i: len(w.moves), id: inventory.MigrationID("mig-" + strconv.Itoa(len(w.moves)+1)), vm: v, source: h, target: to,
		generation: run.Generation, sourceBoot: h.boots, a: q,
	}
	w.moves = append(w.moves, m)
	w.etcd.records.move = append(w.etcd.records.move, history[inventory.MigrationStatus]{})
	w.say("user", "moves %s from %s to %s, %s", v.id, h.id, to.id, m.id)
	w.stats.Moves++
	src := &source{a: a, mv: m, q: q, m: handover.NewSource(m.id)}
	l.src = src
	w.etcd.do(h, a.p, storeTimeout, true, func() error {
		if !w.etcd.records.epochIs(h.i, a.epoch) {
			return errEpoch
		}
		if _, rev := w.etcd.records.move[m.i].last(); rev == 0 {
			w.etcd.records.move[m.i].put(w.etcd.records.next(), inventory.MigrationStatus{})
		}
		return nil
	}, func(err error) {
		if err != nil {
			src.over = true
			if l.src == src {
				l.src = nil
			}
			return
		}
		if !src.over {
			src.begin()
		}
	})
}

// attempt is the hand-over as its records have it.
func (m *move) attempt() handover.Attempt {
	return handover.Attempt{Migration: m.id, Source: m.source.id, Target: m.target.id, Generation: m.generation, Boot: m.heirBoot}
}

// streams reports whether bytes can flow between the two hosts.
func (m *move) streams() bool {
	w := m.vm.w
	s, t := m.source, m.target
	return w.net.both(management, s.node, t.node) && s.agent != nil && s.agent.p.runs(w.now) && t.agent != nil && t.agent.p.runs(w.now)
}

// copy is the source's QEMU copying memory for a while, until it stops its guest.
func (m *move) copy(left time.Duration) {
	w, q := m.vm.w, m.a
	const part = 500 * time.Millisecond
	w.after(min(left, part), nil, func() {
		if q.dead || q.state != copying || q.out != m {
			return
		}
		switch {
		case m.b.dead:
			m.fails()
		case q.host.asleep > w.now || q.hung > w.now || !m.streams():
			m.standsStill()
			m.copy(left)
		case left > part:
			m.stalled = 0
			m.copy(left - part)
		default:
			m.stalled = 0
			q.set(gate)
			m.drain()
		}
	})
}

// drain waits for the writes under way: QEMU says that it has stopped when its disks are quiet.
func (m *move) drain() {
	switch q := m.a; {
	case q.dead || q.state != gate || q.out != m:
	case q.under > 0:
		m.vm.w.after(20*time.Millisecond, nil, m.drain)
	default:
		m.tellSource(handover.SourceStopped)
	}
}

func (m *move) standsStill() {
	if m.stalled == 0 {
		m.stalled = m.vm.w.now
	}
}

// device is the last part: pages and device state go over, the target has loaded, and the source's QEMU completes, or fails late.
func (m *move) device() {
	w, q := m.vm.w, m.a
	w.after(w.between(5*time.Millisecond, 300*time.Millisecond), nil, func() {
		switch {
		case q.dead || q.state != device || q.out != m:
		case m.b.dead:
			m.fails()
		case !m.streams() || q.host.asleep > w.now || m.b.host.asleep > w.now:
			m.standsStill()
			if w.chance(5) {
				m.fails()
				return
			}
			m.device()
		default:
			m.stalled = 0
			if m.b.state == incoming {
				m.b.state, m.b.from, m.b.turn, m.b.counter = loaded, q, m.vm.turns, q.counter
				m.tellTarget(handover.TargetLoaded)
			}
			w.after(w.between(0, 30*time.Millisecond), nil, func() {
				switch {
				case q.dead || q.state != device || q.out != m:
				case w.chance(5):
					m.fails()
				default:
					q.state = complete
					m.tellSource(handover.SourceCompleted)
				}
			})
		}
	})
}

// fails is the source's QEMU giving up: its guest runs on.
func (m *move) fails() {
	q := m.a
	if !q.dead && (q.state == copying || q.state == gate || q.state == device) {
		q.back()
	}
	m.tellSource(handover.SourceFailed)
}

// cut is the end of the stream, since an agent that carried it is gone. At pre-switchover QEMU does not notice.
func (m *move) cut() {
	w := m.vm.w
	w.after(w.between(time.Millisecond, 50*time.Millisecond), nil, func() {
		if m.a != nil && !m.a.dead && (m.a.state == copying || m.a.state == device) {
			m.fails()
		}
		if m.b != nil && !m.b.dead && m.b.state == incoming {
			m.b.vanish()
			m.tellTarget(handover.TargetGone)
		}
	})
}

// tellSource brings news of QEMU to the source's agent of the day, if it drives this migration.
func (m *move) tellSource(e handover.SourceEventKind) {
	a := m.source.agent
	if a == nil || a.p.dead {
		return
	}
	if s := a.loops[m.vm.i].src; s != nil && s.mv == m {
		m.vm.w.after(200*time.Microsecond, a.p, func() { s.give(handover.SourceEvent{Kind: e}) })
	}
}

func (m *move) tellTarget(e handover.TargetEventKind) {
	a := m.target.agent
	if a == nil || a.p.dead {
		return
	}
	if t := a.targetOf(m); t != nil {
		m.vm.w.after(200*time.Microsecond, a.p, func() { t.give(handover.TargetEvent{Kind: e}, nil) })
	}
}

// restoreMoves takes up the migration that an earlier agent of this host drove of each VM: the one whose heir stands, else the last one.
func (a *agent) restoreMoves() {
	records := &a.h.w.etcd.records
	last := make([]*move, len(a.h.w.vms))
	for _, m := range a.h.w.moves {
		if _, rev := records.move[m.i].last(); rev != 0 {
			last[m.vm.i] = m
		}
	}
	for i, m := range last {
		if run, _ := records.run[i].last(); !run.Heir.IsZero() {
			m = a.h.w.moves[number(run.Heir.Migration)]
		}
		if m != nil && (m.source == a.h || m.target == a.h) {
			a.restoreMove(m)
		}
	}
}

// restoreMove reads the store, then the journal, then what QEMU does.
func (a *agent) restoreMove(m *move) {
	h, w, s, v := a.h, a.h.w, a.h.w.etcd, m.vm
	if r, rev := s.records.move[m.i].last(); rev == 0 || r.Phase.Final() { // as of the records that this agent has listed
		return
	}
	l := &a.loops[v.i]
	if l.src != nil || l.tgt != nil {
		return
	}
	if m.source == h {
		l.src = &source{a: a, mv: m, m: handover.RestoreSource(m.id, h.run.journals[v.i]), told: true}
	} else {
		a.targets = append(a.targets, &target{a: a, mv: m, m: handover.RestoreTarget(m.id, h.run.journals[v.i])})
		l.tgt = a.targets[len(a.targets)-1]
	}
	src, tgt := l.src, l.tgt
	var vm inventory.VM
	s.do(h, a.p, storeTimeout, false, func() error {
		vm.Run, _ = s.records.run[v.i].last()
		vm.Place, _ = s.records.place[v.i].last()
		return nil
	}, func(err error) {
		if err != nil {
			if m.target == h {
				a.forget(tgt)
			}
			l.src, l.tgt = nil, nil
			w.after(time.Second, a.p, func() { a.restoreMove(m) })
			return
		}
		q := h.vms[v.i]
		if q != nil && q.dead {
			q = nil
		}
		switch { // either may have been ended meanwhile, by what the other side has asked
		case src != nil && !src.over:
			src.restored(q, vm.Run)
		case tgt != nil && !tgt.over:
			tgt.restored(q, vm)
		}
	})
}
