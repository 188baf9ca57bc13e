package sim

import (
	"errors"
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/ha"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// The leader's loops.
const (
	campaignEvery = time.Second
	pollEvery     = 500 * time.Millisecond
	leaderSilence = 2500 * time.Millisecond
)

// leader is one term of one host.
type leader struct {
	a         *agent
	p         *proc
	term      int64
	obs       authority.Observer
	beat      authority.Moment // when the last sign of life that was taken was sent
	polling   bool
	discarded map[inventory.MigrationID]bool // heirs that gave their final word
	asked     map[inventory.MigrationID]moment
	cache     []inventory.VMRun
}

// campaign looks at the election, and takes over when the leader has given no sign of life for so long, by this host's own sight. The former
// agent of this host is no more, so its term need not be waited for.
func (a *agent) campaign() {
	h, w, s := a.h, a.h.w, a.h.w.etcd
	pause := campaignEvery
	defer func() { w.after(pause, a.p, a.campaign) }()
	if a.lead != nil && !a.lead.p.dead || a.stopping {
		return
	}
	h.watchStore()
	l, rev := s.records.leader.asOf(h.seen)
	if rev != a.sawRev {
		a.sawRev, a.saw = rev, h.now()
	}
	quiet := h.now() - a.saw
	if l.by >= 0 && l.by != h.i && quiet < leaderSilence {
		pause = min(campaignEvery, max(leaderSilence-quiet, time.Millisecond))
		return
	}
	var term int64
	s.do(h, a.p, storeTimeout, true, func() error {
		if !s.records.epochIs(h.i, a.epoch) {
			return errEpoch
		}
		if _, now := s.records.leader.last(); now != rev {
			return errConflict
		}
		term = s.records.next()
		s.records.leader.put(term, leaderRecord{by: h.i, created: term})
		return nil
	}, func(err error) {
		if err != nil || a.lead != nil && !a.lead.p.dead {
			return
		}
		w.say(string(h.id), "leads the cluster, term %d", term)
		a.lead = &leader{
			a: a, p: &proc{host: h}, term: term, obs: authority.NewObserver(w.settings), beat: h.now(),
			discarded: map[inventory.MigrationID]bool{}, asked: map[inventory.MigrationID]moment{},
		}
		a.lead.keep()
		a.lead.poll()
	})
}

// over ends the term.
func (l *leader) over(why string) {
	if !l.p.dead {
		l.a.h.w.say(string(l.a.h.id), "ends its term %d: %s", l.term, why)
		l.p.dead = true
	}
}

// keep gives a sign of life every half second. The term may be over when that was not taken for too long.
func (l *leader) keep() {
	h, s := l.a.h, l.a.h.w.etcd
	if l.a.p.dead || h.now()-l.beat > leaderSilence {
		l.over("nobody has taken its signs of life")
		return
	}
	h.w.after(pollEvery, l.p, l.keep)
	sent := h.now()
	s.do(h, l.p, leaderSilence, true, func() error {
		if !s.records.termIs(h.i, l.term) {
			return errTerm
		}
		now, _ := s.records.leader.last()
		s.records.leader.put(s.records.next(), now)
		return nil
	}, func(err error) {
		switch {
		case err == nil:
			l.beat = max(l.beat, sent)
		case errors.Is(err, errTerm):
			l.over("another host leads")
		}
	})
}

// view is one linearizable read of what the leader decides on.
type view struct {
	alive []aliveRecord
	epoch []epochRecord
	run   []inventory.VMRun
	move  []inventory.MigrationStatus
}

// poll reads the renewals and the VMs, and acts on what it finds.
func (l *leader) poll() {
	h, s := l.a.h, l.a.h.w.etcd
	h.w.after(pollEvery, l.p, l.poll)
	if l.polling {
		return
	}
	l.polling = true
	v := view{}
	s.do(h, l.p, storeTimeout, false, func() error {
		for i := range h.w.hosts {
			r, rev := s.records.alive[i].asOf(s.visible)
			e, _ := s.records.epoch[i].asOf(s.visible)
			r.Host, r.Revision, r.Fenced, r.Epoch, r.BootID = h.w.hosts[i].id, rev, e.Fenced, e.Epoch, e.Boot
			v.alive, v.epoch = append(v.alive, r), append(v.epoch, e)
		}
		for i := range h.w.vms {
			run, _ := s.records.run[i].asOf(s.visible)
			v.run = append(v.run, run)
		}
		for i := range s.records.move {
			m, _ := s.records.move[i].last()
			v.move = append(v.move, m)
		}
		return nil
	}, func(err error) {
		l.polling = false
		if err == nil {
			l.act(v)
		}
	})
}

func (l *leader) act(v view) {
	h := l.a.h
	now := h.now()
	var all []inventory.Renewal
	for i, r := range v.alive {
		if v.epoch[i].Epoch == 0 {
			continue
		}
		all = append(all, r.Renewal)
		if defect.Seeded.StoredTime() && r.Revision != 0 {
			l.obs.Saw(r.Renewal, now-max(0, now+h.clock.wall-r.wall))
		}
	}
	l.obs.Read(all, now)
	life := make([]ha.Life, len(h.w.hosts))
	for _, f := range l.obs.Look(now) {
		i := number(f.Host)
		switch f.Standing {
		case authority.Up:
			life[i] = ha.Living
			if defect.Seeded.LeaseTrusted() && h.w.hosts[i].leaseGone > h.w.now {
				l.fence(i, f)
			}
		case authority.Fenced:
			life[i] = ha.Dead
		case authority.Blocked:
			life[i] = ha.Silent
			h.w.blocked(l, i, f)
		case authority.Silent:
			life[i] = ha.Silent
			l.fence(i, f)
		}
	}
	if defect.Seeded.CachedRestarts() {
		if len(l.cache) == 0 || h.w.chance(5) {
			l.cache = v.run
		}
		v.run = l.cache
	}
	for i := range v.run {
		l.recover(h.w.vms[i], v, life)
	}
}

// fence ends a silent host's epoch.
func (l *leader) fence(i int, f authority.Finding) {
	h, s := l.a.h, l.a.h.w.etcd
	done := false
	s.do(h, l.p, storeTimeout, true, func() error {
		e, _ := s.records.epoch[i].last()
		err := s.records.fence(h.i, l.term, i, f.Revision)
		if err == nil && !e.Fenced && !done {
			done = true
			h.w.fenced(i, f.Why)
		}
		return err
	}, func(error) {})
}

// recover does what is to be done about one VM.
func (l *leader) recover(vm *vm, v view, life []ha.Life) {
	run := v.run[vm.i]
	owner := number(run.Owner)
	if owner < 0 {
		return
	}
	var there inventory.Sign
	heir := number(run.Heir.Host)
	if heir >= 0 {
		there = v.epoch[heir].sign()
	}
	c := ha.NewCase(run, func(id inventory.HostID) ha.Life { return life[number(id)] }, there)
	if heir >= 0 {
		c.HeirDiscarded = l.discarded[run.Heir.Migration]
		c.OwnerDiscarded = v.move[number(run.Heir.Migration)].SourceDiscarded
	}
	d := ha.Decide(c)
	switch d.Kind {
	case ha.Restart, ha.Release:
		l.reassign(vm, run, d, c, v, life)
	case ha.AskDiscard:
		l.askDiscard(run)
	case ha.Leave, ha.Wait, ha.TellOwner: // the owner's agent sees the heir's epoch as the leader does
	}
}

// reassign gives a VM whose owner is dead, or could not start it, a new one, if some living host has room.
func (l *leader) reassign(vm *vm, run inventory.VMRun, d ha.Decision, c ha.Case, v view, life []ha.Life) {
	h, s := l.a.h, l.a.h.w.etcd
	used, count := make([]int, len(h.w.hosts)), make([]int, len(h.w.hosts))
	for i, r := range v.run {
		if o := number(r.Owner); o >= 0 && r.Wanted == inventory.PowerOn {
			used[o] += h.w.vms[i].memory
			count[o]++
		}
	}
	var all []ha.Candidate
	for i, at := range life {
		c := ha.Candidate{Host: h.w.hosts[i].id, Free: inventory.Bytes(h.w.hosts[i].memory - used[i]), VMs: count[i]}
		if at != ha.Living || int(c.Free) < vm.memory || run.OwnerGaveUp() && i == number(run.Owner) {
			c.Against = []string{"no"}
		}
		all = append(all, c)
	}
	to, _ := ha.Choose(all)
	if to == "" {
		return
	}
	v.run[vm.i].Owner = to // counts for those that come after it
	done := false
	s.do(h, l.p, storeTimeout, true, func() error {
		return s.records.reassign(h.i, l.term, vm.i, c.Dead(), func(now *inventory.VMRun, place *inventory.VMPlace) error {
			if *now != run && !defect.Seeded.CachedRestarts() {
				return errConflict
			}
			from := now.Owner
			*now, *place = d.Give(*now, *place, to, "its host is dead", time.Time{})
			if defect.Seeded.CachedRestarts() {
				now.Wanted = run.Wanted
			}
			if !done {
				done = true
				h.w.say("leader", "gives %s of %s to %s with generation %d: %s", vm.id, from, now.Owner, d.Generation, d.Kind)
			}
			return nil
		})
	}, func(error) {})
}

// askDiscard asks the heir for its final word.
func (l *leader) askDiscard(run inventory.VMRun) {
	h, w := l.a.h, l.a.h.w
	id := run.Heir.Migration
	if w.now-l.asked[id] < callTimeout && l.asked[id] != 0 {
		return
	}
	l.asked[id] = w.now
	m := w.moves[number(id)]
	w.send(h.node, m.target.node, nil, func() {
		if t := m.target.agent; t != nil && !t.p.dead && t.ready {
			w.after(10*time.Microsecond, t.p, func() {
				t.discard(m, func(a handover.Answer) {
					w.send(m.target.node, h.node, l.p, func() {
						if a == handover.AnswerDiscarded || a == handover.AnswerReturned {
							l.discarded[id] = true
						}
					})
				})
			})
		}
	})
}
