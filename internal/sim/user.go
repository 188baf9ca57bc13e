package sim

import (
	"errors"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// ops is what a VM's user knows of it.
type ops struct {
	told  bool // an answer has come
	off   bool // the last thing that the user was told: it is off
	doubt bool // an operation since then was begun and not answered, or is under way
}

// use begins what users do: power VMs off and on, move them, and read what the store has.
func (w *world) use(until moment) {
	w.after(w.between(3*time.Second, 15*time.Second), nil, func() {
		if w.now > until {
			return
		}
		v := w.vms[w.rng.IntN(len(w.vms))]
		switch n := w.rng.IntN(100); {
		case n < 50:
			w.move(v)
		case n < 75:
			w.power(v)
		default:
			w.read(v)
		}
		w.use(until)
	})
}

// power asks the owner's agent for the other power state, and remembers the answer.
func (w *world) power(v *vm) {
	s := w.etcd
	run, _ := s.records.run[v.i].last()
	h := w.hosts[number(run.Owner)]
	a := h.agent
	if a == nil || !a.p.runs(w.now) || !a.ready || a.loops[v.i].busy || a.loops[v.i].src != nil || a.loops[v.i].tgt != nil {
		return
	}
	l := &a.loops[v.i]
	off := run.Wanted == inventory.PowerOn
	_, revision := s.records.run[v.i].last()
	v.askedAt = w.now
	w.say("user", "powers %s on %s %s", v.id, h.id, map[bool]string{true: "off", false: "on"}[off])
	before := v.ops
	v.ops.doubt = true
	v.asked++
	n := v.asked
	l.busy = true
	s.do(h, a.p, storeTimeout, true, func() error {
		run, now := s.records.run[v.i].last()
		switch {
		case !s.records.epochIs(h.i, a.epoch):
			return errEpoch
		case now != revision || run.Owner != h.id || !run.Heir.IsZero(): // late: it would undo what was done since
			return errConflict
		}
		run.Wanted = inventory.PowerOn
		if off {
			run.Wanted = inventory.PowerOff
		}
		s.records.run[v.i].put(s.records.next(), run)
		return nil
	}, func(err error) {
		l.busy = false
		told := func() {
			if v.asked == n { // else another was begun since, perhaps at another host: this answer says nothing of what comes of that
				v.ops = ops{told: true, off: off}
			}
		}
		switch {
		case errors.Is(err, errUnknown):
			return // nobody knows; the user is told just that
		case err != nil:
			if v.asked == n {
				v.ops = before
			}
			return
		}
		if !off {
			told()
			a.step(v)
			return
		}
		a.quit(v, h.vms[v.i], func(bool) { told() })
	})
}

// read is a linearizable read of one VM by a user at some host: S9. Since the order of all writes is known here, the history is linearizable
// exactly when every read has a value that was the last one at some moment between its call and its answer.
func (w *world) read(v *vm) {
	s := w.etcd
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	if h.agent == nil || !h.agent.p.runs(w.now) {
		return
	}
	called := w.now
	var seen int64
	s.do(h, h.agent.p, storeTimeout, false, func() error {
		_, seen = s.records.run[v.i].asOf(s.visible)
		return nil
	}, func(err error) {
		if err != nil {
			return
		}
		for _, rev := range s.records.run[v.i].revs {
			if rev > seen && s.records.times[rev] < called {
				w.breaks("S9", "a read of %s at %s gives revision %d, and %d was written before it was called", v.id, h.id, seen, rev)
			}
		}
	})
}

// blocked is when the leader cannot prove a host dead. Somebody looks after half a minute, and says what is true.
func (w *world) blocked(l *leader, i int, f authority.Finding) {
	h := w.hosts[i]
	if h.on || w.now-h.down < 30*time.Second || h.confirmed == f.Revision {
		return
	}
	h.confirmed = f.Revision
	w.say("operator", "confirms that %s is dead", h.id)
	boots := h.boots
	w.after(w.between(0, 200*time.Millisecond), l.p, func() {
		if !l.obs.ConfirmDead(h.id, f.Revision, "an operator has confirmed it") {
			w.say("leader", "%s has renewed since (boot %d)", h.id, boots)
		}
	})
}

// stale makes reads of the store show what one member has, where a defect says so.
func (s *etcd) stale(m *member, writes bool, apply func() error, reply func(error)) bool {
	if writes || !defect.Seeded.StaleRead() {
		return false
	}
	s.visible = m.seen
	err := apply()
	s.visible = 1 << 62
	reply(err)
	return true
}
