package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Violation is a promise that was broken.
type Violation struct {
	Invariant string // S1 to S10, L1 to L4
	What      string
	At        time.Duration
}

func (v Violation) String() string {
	return fmt.Sprintf("%s at %.3fs: %s", v.Invariant, v.At.Seconds(), v.What)
}

// The bounds of what is to happen in time, and how long no other fault may have lasted for that to be owed.
const (
	restartMax  = 25 * time.Second // L1, for 99 of 100; a run of many seeds is held to it as a whole
	restartLast = 45 * time.Second // L1, for each
	convergeMax = 60 * time.Second // L2
	bootMax     = 35 * time.Second
	settleMax   = 10 * time.Second // S6
	calmFor     = 20 * time.Second
)

// breaks ends the run with a violation.
func (w *world) breaks(invariant, format string, args ...any) {
	if w.broken != nil {
		return
	}
	w.broken = &Violation{Invariant: invariant, What: fmt.Sprintf(format, args...), At: w.now}
	w.say("VIOLATION", "%s: %s", invariant, w.broken.What)
}

// began is when vCPUs begin to run that can write: S1, S4, S5, S7, and the end of L1's wait.
func (w *world) began(q *qemu) {
	v := q.vm
	for _, o := range v.copies {
		if o != q && o.runs {
			w.breaks("S1", "%s runs on %s (generation %d) and on %s (generation %d)", v.id, o.host.id, o.generation, q.host.id, q.generation)
		}
	}
	if q.doomed {
		w.breaks("S7", "%s runs on at %s, though its warden has to end what was here when the host was fenced", v.id, q.host.id)
	}
	// Where storage arbitrates, a copy on a host that nobody hears keeps its lock, and runs until it hears of its new owner; that one had been told
	// to stay off.
	run, _ := w.etcd.records.run[v.i].last()
	old := v.arbiter == authority.StorageArbitrates && q.ran && q.generation < run.Generation
	if v.ops.off && !v.ops.doubt && !old {
		w.breaks("S4", "%s was powered off, and its user told so, and runs again on %s", v.id, q.host.id)
	}
	if !q.ran && q.from == nil {
		q.counter = v.disk.written // a guest that boots reads its disk
	}
	switch {
	case (q.ran || q.from != nil) && q.turn != v.turns:
		w.breaks("S5", "%s goes on at %s with memory of turn %d, and has run for %d turns: its disk is newer", v.id, q.host.id, q.turn, v.turns)
	case q.counter < v.disk.flushed:
		w.breaks("S5", "%s starts at %s and sees write %d, but %d was flushed", v.id, q.host.id, q.counter, v.disk.flushed)
	}
	if q.host.late && v.arbiter == authority.LeaseArbitrates {
		w.breaks("S7", "%s begins to run on %s, whose authority is over", v.id, q.host.id)
	}
	v.turns++
	q.turn, q.ran = v.turns, true
	if v.lostAt != 0 {
		if v.lostSerial == w.serial && w.active <= 1 {
			w.stats.Restarts = append(w.stats.Restarts, w.now-v.lostAt)
		}
		v.lostAt = 0
	}
	w.stats.Runs++
}

// landed is when a write comes to the disk: S2.
func (w *world) landed(q *qemu, n uint64) {
	v := q.vm
	if v.arbiter == authority.StorageArbitrates && v.disk.holder != q {
		if !q.dead && q.state == running {
			q.set(failedIO) // the write fails, and QEMU stops the guest (werror); one that copies goes on with that
		}
		return
	}
	if q.generation < v.disk.last {
		w.breaks("S2", "a write of generation %d of %s lands after one of %d", q.generation, v.id, v.disk.last)
	}
	v.disk.last = q.generation
	v.disk.written = max(v.disk.written, n)
	if !q.dead {
		v.disk.flushed = max(v.disk.flushed, n)
	}
}

// renewed is when the store has done a renewal: S7 begins to count.
func (w *world) renewed(h *host, sent moment, lease time.Duration, f inventory.Fencing) {
	// The host's clock may be slower than real time.
	h.acked = sent + lease + lease/1000 + 5*time.Millisecond
	h.guarded = f != inventory.FencedByNobody
	h.late = h.guarded && w.now > h.acked
	if !h.watch {
		h.watch = true
		w.overdue(h)
	}
}

// overdue looks at the end of what the store has granted a host whether something runs there still.
func (w *world) overdue(h *host) {
	w.at(h.acked, nil, func() {
		if w.now < h.acked {
			w.overdue(h)
			return
		}
		h.watch = false
		if h.late = h.guarded; h.late {
			w.noneRuns(h, "S7", "the authority is over")
		}
	})
}

func (w *world) noneRuns(h *host, invariant, why string) {
	for _, q := range h.vms {
		if q != nil && q.runs && q.vm.arbiter == authority.LeaseArbitrates {
			w.breaks(invariant, "%s runs on %s, generation %d, and %s", q.vm.id, h.id, q.generation, why)
		}
	}
}

// fenced is when a host's epoch is ended: from now on nothing of it may run (S7).
func (w *world) fenced(i int, why string) {
	h := w.hosts[i]
	w.stats.Fences++
	w.say("leader", "fences %s: %s", h.id, why)
	w.noneRuns(h, "S7", "it is fenced")
	h.late = true
}

// contact is when an agent has the store's word again.
func (h *host) contact(sent moment) { h.sent = max(h.sent, sent) }

// killedBy is when the warden kills a VM: L3 and L4.
func (w *world) killedBy(q *qemu, why string) {
	h := q.host
	w.stats.Kills++
	if q.vm.arbiter == authority.StorageArbitrates && q.ran { // one that never ran is started again; the warden may not have heard of it
		w.breaks("L4", "the warden of %s kills %s (%s), though its storage arbitrates", h.id, q.vm.id, why)
	}
	q.doomed = q.doomed || w.vms[q.vm.i].arbiter == authority.LeaseArbitrates && slices.Contains(h.warden.m.Doomed(), q.vm.id)
	e, _ := w.etcd.records.epoch[h.i].last()
	if h.warden.stale {
		// Its predecessor stood still, so that what it wrote down is over, or ends before what the host has renewed since. To end VMs early is
		// safe; a watchdog, which nobody fed meanwhile, would have reset the host.
		return
	}
	if q.runs && w.now-h.sent < w.settings.Freeze-100*time.Millisecond && !e.Fenced && h.sentEpoch == e.Epoch {
		w.breaks("L3", "the warden of %s kills %s (%s), though the host had renewed %v ago", h.id, q.vm.id, why, w.now-h.sent)
	}
}

// stopped is when an agent stops its VMs.
func (w *world) stopped(*host) { w.stats.Pauses++ }

// settles is when a migration has failed: S6. Ten seconds later one side runs, or is about to.
func (w *world) settles(m *move) {
	v, serial := m.vm, w.serial
	w.after(settleMax, nil, func() {
		run, _ := w.etcd.records.run[v.i].last()
		h := w.hosts[number(run.Owner)]
		e, _ := w.etcd.records.epoch[h.i].last()
		if w.serial != serial || w.active > 0 || w.now-w.calmSince < calmFor || run.Wanted != inventory.PowerOn || !run.Heir.IsZero() || e.Fenced || !h.on ||
			w.now-h.sent > 2*w.settings.RenewEvery || w.now-v.askedAt < settleMax || !w.room0(v, run) {
			return
		}
		for _, q := range v.copies {
			if q.runs {
				return
			}
		}
		if h.agent != nil && h.agent.loops[v.i].busy {
			return // being started
		}
		w.breaks("S6", "%s has failed, and %v later %s does not run", m.id, settleMax, v.id)
	})
}

// announced is when a host says to the network that a VM is here: S10.
func (w *world) announced(q *qemu) {
	v := q.vm
	switch {
	case q.generation == v.heardGen && q.host.i != v.heardHost, q.generation < v.heardGen:
		w.breaks("S10", "%s is announced by %s with generation %d, after host-%d with %d", v.id, q.host.id, q.generation, v.heardHost+1, v.heardGen)
	}
	v.heardGen, v.heardHost = q.generation, q.host.i
}

// checkMemory is when a QEMU is made: S8.
func (w *world) checkMemory(h *host) {
	if h.free() < 0 {
		w.breaks("S8", "the VMs of %s have more memory than the host: %d too much", h.id, -h.free())
	}
}

// crashed is when a machine is gone: L1 is owed if nothing else is wrong.
func (w *world) crashed(h *host) {
	w.stats.Crashes++
	if w.active > 1 || w.active == 1 && w.activeHost != h.i || w.now-w.calmSince < calmFor {
		return
	}
	if r, rev := w.etcd.records.alive[h.i].last(); rev == 0 || r.Fencing == inventory.FencedByNobody || r.Lease > w.settings.Lease {
		return
	}
	serial := w.serial
	for i, v := range w.vms {
		run, _ := w.etcd.records.run[i].last()
		if q := h.vms[i]; q == nil || !q.runs || run.Owner != h.id || run.Wanted != inventory.PowerOn || !run.Heir.IsZero() {
			continue
		}
		v.lostAt, v.lostSerial = w.now, serial
		w.after(restartLast, nil, func() {
			run, _ := w.etcd.records.run[i].last()
			if v.lostAt != 0 && v.lostSerial == w.serial && serial == w.serial && w.now-v.lostAt >= restartLast && run.Wanted == inventory.PowerOn && w.room(v) {
				w.breaks("L1", "%s does not run again %v after its host crashed", v.id, restartLast)
			}
		})
	}
}

// room reports whether a host that is on has memory for a VM.
func (w *world) room(v *vm) bool {
	for _, h := range w.hosts {
		used := 0
		for i := range w.vms {
			if run, _ := w.etcd.records.run[i].last(); run.Owner == h.id && run.Wanted == inventory.PowerOn {
				used += w.vms[i].memory
			}
		}
		if h.on && h.free() >= v.memory && h.memory-used >= v.memory {
			return true
		}
	}
	return false
}

// final is the look at a cluster that had a minute without faults: L2 and S3.
func (w *world) final() {
	for i, v := range w.vms {
		run, _ := w.etcd.records.run[i].last()
		if !v.ops.doubt && v.ops.told && (run.Wanted == inventory.PowerOn) == v.ops.off {
			w.breaks("S3", "the user of %s was told that it is off=%v, and the store wants %d", v.id, v.ops.off, run.Wanted)
		}
		n := 0
		for _, q := range v.copies {
			if q.runs {
				n++
			}
			if place, _ := w.etcd.records.place[i].last(); q.host.id != run.Owner || q.generation < place.Restart.Generation {
				w.breaks("L2", "%s has an orphan on %s with generation %d; it is %s's with %d", v.id, q.host.id, q.generation, run.Owner, run.Generation)
			}
		}
		switch {
		case !run.Heir.IsZero():
			w.breaks("L2", "%s still has the heir %s of %s", v.id, run.Heir.Host, run.Heir.Migration)
		case run.Wanted == inventory.PowerOff && len(v.copies) > 0:
			w.breaks("L2", "%s is wanted off and has a QEMU on %s", v.id, v.copies[0].host.id)
		case run.Wanted == inventory.PowerOn && n == 0 && (w.room0(v, run) || w.room(v)):
			w.breaks("L2", "%s is wanted on by %s with generation %d, and does not run", v.id, run.Owner, run.Generation)
		}
	}
}

// room0 reports whether the owner has memory for a VM that does not run.
func (w *world) room0(v *vm, run inventory.VMRun) bool {
	h := w.hosts[number(run.Owner)]
	return h.vms[v.i] != nil && !h.vms[v.i].dead || h.free() >= v.memory
}
