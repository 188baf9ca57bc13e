package sim

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// followEvery is how often an agent compares what is with what should be; a watch would tell it sooner, or later.
const followEvery = time.Second

// vmLoop is what an agent's goroutine of one VM remembers.
type vmLoop struct {
	busy     bool                 // a start or an end is under way
	taken    bool                 // memory is promised to it, though it has no QEMU yet
	stopping int                  // stops that QEMU, or whose outcome the warden, has not acknowledged
	held     bool                 // stopped for want of authority, not by a user
	again    moment               // no start before that, since the last one went wrong
	spent    inventory.Generation // given up here, or about to be: no start with it
	src      *source
	tgt      *target
}

// adopt takes up what an earlier agent of this host left: every QEMU is shown to the warden, migrations go on, VMs are followed.
func (a *agent) adopt() {
	h := a.h
	if a.ready {
		return
	}
	a.ready = true
	for _, q := range h.vms {
		if q == nil || q.dead {
			continue
		}
		stands := q.state != running && q.state != copying
		a.tellVM(q.vm, stands, ignore)
		if q.state == paused {
			a.loops[q.vm.i].held = true
		}
	}
	a.restoreMoves()
	a.follow()
	a.campaign()
}

// look reads a VM's records as this host's watch has them: as late as the watch is.
func (a *agent) look(v *vm) (inventory.VMRun, inventory.VMPlace) {
	h, s := a.h, a.h.w.etcd
	run, _ := s.records.run[v.i].asOf(h.seen)
	place, _ := s.records.place[v.i].asOf(h.seen)
	return run, place
}

// watch brings this host's view of the store forward, if a member that is up to date can be reached.
func (h *host) watchStore() {
	s := h.w.etcd
	for _, m := range s.members {
		if s.up(m) && h.w.net.reaches(management, m.node, h.node) {
			h.seen = max(h.seen, min(m.seen, s.records.at(h.w.now-h.watchLag)))
		}
	}
}

// follow is level-triggered: it takes one step for each VM that is not as it should be.
func (a *agent) follow() {
	h := a.h
	h.w.after(followEvery, a.p, a.follow)
	h.watchStore()
	for _, v := range h.w.vms {
		a.step(v)
	}
}

func (a *agent) step(v *vm) {
	h, l := a.h, &a.loops[v.i]
	if l.busy || l.src != nil || l.tgt != nil {
		return
	}
	run, place := a.look(v)
	q := h.vms[v.i]
	lives := q != nil && !q.dead
	mine := run.Owner == h.id
	switch {
	case lives && !mine && run.Generation >= q.generation, lives && mine && place.Restart.Generation > q.generation:
		h.w.say(string(h.id), "ends its old copy of %s", v.id)
		a.quit(v, q, ignore)
	case lives && mine && run.Wanted == inventory.PowerOff:
		a.quit(v, q, ignore)
	case lives && l.held && q.state == paused && a.left() > 0 && !a.m.Stopped:
		a.letRun(v, q)
	case lives && mine && q.state == failedIO && a.left() > 0:
		a.quit(v, q, ignore)
	case !lives && mine && run.Wanted == inventory.PowerOn && run.Heir.IsZero() && h.w.now >= l.again && a.left() >= handover.AuthorityMargin:
		a.start(v, func(bool) {})
	}
}

// quit ends a QEMU and waits for that.
func (a *agent) quit(v *vm, q *qemu, done func(bool)) {
	l := &a.loops[v.i]
	l.busy, l.held = true, false
	finish := func() {
		if a.p.dead || !l.busy {
			return
		}
		l.busy = false
		a.gone(v)
		done(true)
	}
	if q == nil || q.dead {
		finish()
		return
	}
	q.whenGone = append(q.whenGone, finish)
	q.kill()
}

// start starts a VM whose owner this host is, cold: number, lock record, QEMU with its vCPUs standing, a last look at the lock records and
// at the authority, the word to the warden, and then cont.
func (a *agent) start(v *vm, done func(bool)) {
	h, w, s, l := a.h, a.h.w, a.h.w.etcd, &a.loops[v.i]
	l.busy = true
	fail := func(why string) {
		w.say(string(h.id), "does not start %s: %s", v.id, why)
		l.busy, l.taken, l.again = false, false, w.now+w.between(time.Second, 3*time.Second)
		done(false)
	}
	if h.free()-h.promised() < v.memory {
		a.giveUp(v)
		fail("no memory is free")
		return
	}
	var g inventory.Generation
	l.taken = true
	s.do(h, a.p, storeTimeout, true, func() error {
		run, _ := s.records.run[v.i].last()
		place, _ := s.records.place[v.i].last()
		if !s.records.epochIs(h.i, a.epoch) {
			return errEpoch
		}
		if run.Owner != h.id || run.Wanted != inventory.PowerOn || !run.Heir.IsZero() {
			return errConflict
		}
		if !place.Restart.Gave(run) || v.disk.taken(run.Generation) || run.OwnerGaveUp() || l.spent == run.Generation {
			run.Generation++
			s.records.run[v.i].put(s.records.next(), run)
		}
		g = run.Generation
		return nil
	}, func(err error) {
		if err != nil {
			fail(err.Error())
			return
		}
		w.after(w.between(2*time.Millisecond, 20*time.Millisecond), a.p, func() {
			if !h.reaches() || !v.disk.lock(g, h.i) {
				fail("no lock record")
				return
			}
			l.taken = false
			q := h.spawn(v, g, paused)
			a.tellVM(v, true, func(ok bool) {
				w.after(w.between(200*time.Millisecond, 700*time.Millisecond), a.p, func() { a.run(v, q, ok, fail, done) })
			})
		})
	})
}

// giveUp spends the generation of a VM that finds no memory here, so that the leader may look for another host. It is spent here before it is in the
// store, and the record is changed only as it was read: a proposal that is late must not give up what runs by then.
func (a *agent) giveUp(v *vm) {
	h, s := a.h, a.h.w.etcd
	read, revision := s.records.run[v.i].last()
	a.loops[v.i].spent = read.Generation
	s.do(h, a.p, storeTimeout, true, func() error {
		run, now := s.records.run[v.i].last()
		switch {
		case !s.records.epochIs(h.i, a.epoch):
			return errEpoch
		case now != revision || run.Owner != h.id || run.Wanted != inventory.PowerOn || !run.Heir.IsZero():
			return errConflict
		case !run.OwnerGaveUp():
			run.GivenUp = run.Generation
			s.records.run[v.i].put(s.records.next(), run)
		}
		return nil
	}, func(error) {})
}

// run is the last part of a start.
func (a *agent) run(v *vm, q *qemu, told bool, fail func(string), done func(bool)) {
	h, l := a.h, &a.loops[v.i]
	drop := func(why string) {
		a.quit(v, q, func(bool) { fail(why) })
	}
	switch {
	case !told || q.dead:
		drop("the warden does not answer")
		return
	case !h.reaches() || v.disk.highest() != q.generation:
		drop("another host has a newer lock record")
		return
	case a.left() < handover.AuthorityMargin:
		drop("the authority is short")
		return
	}
	a.cont(v, q, func(ok bool) {
		if !ok {
			drop("QEMU does not run")
			return
		}
		l.busy, l.held = false, false
		h.w.say(string(h.id), "runs %s, generation %d", v.id, q.generation)
		done(true)
	})
}

// cont lets vCPUs run after the warden has taken the word that they will.
func (a *agent) cont(v *vm, q *qemu, done func(bool)) {
	resume := func(ok bool) {
		if !ok || q.dead || a.left() <= 0 {
			a.tellVM(v, true, ignore)
			done(false)
			return
		}
		q.resume(a.p, func(ok bool) {
			if ok {
				a.h.w.announced(q)
			}
			done(ok)
		})
	}
	if defect.Seeded.ContUntold() {
		resume(true)
		return
	}
	a.tellVM(v, false, resume)
}

// stopVMs stops what runs on storage that the lease arbitrates, and tells the warden of each that has.
func (a *agent) stopVMs() {
	for _, q := range a.h.vms {
		if q == nil || q.dead || q.vm.arbiter != authority.LeaseArbitrates {
			continue
		}
		v, l := q.vm, &a.loops[q.vm.i]
		if l.src != nil {
			l.src.short()
		}
		if l.tgt != nil {
			l.tgt.short()
		}
		a.hold(v, q, l, 5)
	}
}

// hold stops one QEMU; one that still switches over is asked again.
func (a *agent) hold(v *vm, q *qemu, l *vmLoop, tries int) {
	if q.state == running || q.state == paused || q.state == loaded { // a cont of the last may be on its way
		l.held = true
	}
	// What the warden is told of a VM is told in the order in which it was done: a word "stopped" that comes after the "runs" of a cont that
	// followed it would let the warden freeze a VM that writes.
	l.stopping++
	q.stop(a.p, func(ok bool) {
		l.stopping--
		switch {
		case q.dead:
		case ok:
			l.held = true // also one that was copying when it was asked, and had given up by then
			l.stopping++
			a.tellVM(v, true, func(bool) { l.stopping-- })
		case tries > 0 && a.m.Stopped:
			a.h.w.after(100*time.Millisecond, a.p, func() {
				if a.m.Stopped { // it may be back by now
					a.hold(v, q, l, tries-1)
				}
			})
		}
	})
}

// resumeVMs lets those run on that stopVMs stopped. One that is busy, or whose stop is under way still, is asked again, as keepStandstill does.
func (a *agent) resumeVMs() {
	again := false
	for _, q := range a.h.vms {
		if q == nil || q.dead || !a.loops[q.vm.i].held {
			continue
		}
		l := &a.loops[q.vm.i]
		again = again || l.busy || l.stopping > 0
		if !l.busy {
			a.letRun(q.vm, q)
		}
	}
	if again {
		a.h.w.after(100*time.Millisecond, a.p, func() {
			if !a.m.Stopped && !a.m.Over {
				a.resumeVMs()
			}
		})
	}
}

func (a *agent) letRun(v *vm, q *qemu) {
	l := &a.loops[v.i]
	if q.state != paused || l.stopping > 0 && !defect.Seeded.ResumeLostEpoch() || l.src != nil || l.tgt != nil {
		return
	}
	l.busy = true
	a.cont(v, q, func(ok bool) {
		l.busy = false
		if ok && q.state != paused { // a stop that was sent after it has it stand again
			l.held = false
		}
	})
}

// taken reports whether a lock record has that number.
func (d *disk) taken(g inventory.Generation) bool {
	return int(g) <= len(d.locks) && d.locks[g-1] >= 0
}

// lock makes a lock record by link(2): never one below another, and never one that is there.
func (d *disk) lock(g inventory.Generation, host int) bool {
	if d.highest() >= g {
		return false
	}
	for len(d.locks) < int(g) {
		d.locks = append(d.locks, -1)
	}
	d.locks[g-1] = host
	return true
}

// highest is the number of the lock record that counts.
func (d *disk) highest() inventory.Generation { return inventory.Generation(len(d.locks)) }
