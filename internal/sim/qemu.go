package sim

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// vm is a VM as nobody inside of the cluster sees it: its disk, its copies, and what its user was told.
type vm struct {
	w          *world
	i          int
	id         inventory.VMID
	memory     int
	arbiter    authority.Arbiter
	disk       disk
	copies     []*qemu // that are not dead
	turns      int     // how often vCPUs began to run
	ops        ops
	lostAt     moment               // its host crashed then; 0: it has run since, or nothing is owed
	askedAt    moment               // a user asked last for another power state
	asked      int                  // how often a user did
	lostSerial int                  // of the last fault then
	heardGen   inventory.Generation // the last that was announced to the network
	heardHost  int
}

// disk is what survives a VM's hosts.
type disk struct {
	locks   []int // host by generation - 1: the lock records; -1: none
	holder  *qemu // of the image lock, where the storage arbitrates
	last    inventory.Generation
	written uint64 // the last write that is on it
	flushed uint64 // the last one that a guest was told is
}

// qemu states, as the hand-over sees them.
type qemuState int

const (
	paused   qemuState = iota // vCPUs stand: started with -S, or stopped over QMP
	running                   // vCPUs run
	copying                   // vCPUs run, memory is copied
	gate                      // stopped at pre-switchover
	device                    // the last pages and device state go over
	complete                  // migrated away: stopped
	incoming                  // waits for a stream
	loaded                    // has loaded one
	failedIO                  // its disk was taken away, and it stands
)

// qemu is one QEMU process in its cgroup.
type qemu struct {
	vm         *vm
	host       *host
	generation inventory.Generation
	state      qemuState
	dead       bool
	frozen     bool
	killed     bool
	doomed     bool   // by its warden, since the host was fenced
	hung       moment // QMP does not answer until then
	stuck      moment // it ignores SIGKILL and the freezer until then
	under      int    // writes under way
	out        *move  // what it copies for, or did last
	asked, did int    // QMP commands that were sent, and the last one of them that was done
	counter    uint64 // of the guest's writes
	from       *qemu  // incoming: whose memory
	ran        bool
	turn       int  // of the VM when it last ran, or when its memory was taken
	runs       bool // as of the last touch
	whenGone   []func()
}

func (h *host) spawn(v *vm, g inventory.Generation, s qemuState) *qemu {
	q := &qemu{vm: v, host: h, generation: g, state: s, counter: v.disk.written}
	h.vms[v.i] = q
	v.copies = append(v.copies, q)
	h.w.checkMemory(h)
	return q
}

// executes reports whether vCPUs run that could write to the VM's disk.
func (q *qemu) executes() bool {
	if q.dead || q.frozen || !q.host.on || q.host.asleep > q.host.w.now {
		return false
	}
	if q.vm.arbiter == authority.StorageArbitrates && q.vm.disk.holder != q {
		return false
	}
	return q.state == running || q.state == copying
}

// touch looks whether the vCPUs run now, and at what follows from that.
func (q *qemu) touch() {
	w, now := q.host.w, q.executes()
	if now == q.runs {
		return
	}
	q.runs = now
	if now {
		w.began(q)
		q.write()
	}
}

// set changes the state.
func (q *qemu) set(s qemuState) {
	q.state = s
	q.touch()
}

// cont lets the vCPUs run; false: QEMU refuses, since another one has the image lock.
func (q *qemu) cont() bool {
	v := q.vm
	if v.arbiter == authority.StorageArbitrates {
		if v.disk.holder != nil && v.disk.holder != q && !v.disk.holder.dead {
			return false
		}
		v.disk.holder = q
	}
	if !q.dead && (q.state == paused || q.state == loaded || q.state == complete || q.state == failedIO) {
		q.set(running)
	}
	return true
}

// inactivate is QEMU letting its images go as the last part of a migration begins: from now on the target may lock them.
func (q *qemu) inactivate() {
	q.state = device
	if q.vm.disk.holder == q {
		q.vm.disk.holder = nil
	}
}

// back lets the guest run on when its migration was given up. The images are locked again where they were let go; who cannot, since another
// one has them or the lock was lost before, has a guest that stands.
func (q *qemu) back() {
	v := q.vm
	if v.arbiter == authority.StorageArbitrates {
		if q.state == device && v.disk.holder == nil {
			v.disk.holder = q
		}
		if v.disk.holder != q {
			q.set(failedIO)
			return
		}
	}
	q.set(running)
}

// loseLocks is the storage taking the locks of a host that it does not hear. A guest there does not know yet: its next write fails.
func (h *host) loseLocks() {
	for _, q := range h.vms {
		if q == nil || q.dead || q.vm.arbiter != authority.StorageArbitrates || q.vm.disk.holder != q {
			continue
		}
		h.w.say("storage", "takes the lock of %s from %s", q.vm.id, h.id)
		h.w.stats.LocksLost++
		q.vm.disk.holder = nil
		q.touch()
		q.under++
		q.land(q.counter+1, h.w.between(200*time.Millisecond, 3*time.Second))
	}
}

// reaches reports whether the disk can be reached.
func (h *host) reaches() bool { return h.w.net.both(storage, h.node, h.w.nodes-1) }

// write is the guest's next write, and those after it.
func (q *qemu) write() {
	w := q.host.w
	w.after(w.between(200*time.Millisecond, 3*time.Second), nil, func() {
		if q.dead || !q.runs {
			return
		}
		q.counter++
		q.under++
		n := q.counter
		q.land(n, w.between(100*time.Microsecond, 4*time.Millisecond))
		q.write()
	})
}

// land brings a write to the disk, when that can be reached. As long as the kernel under it lives it tries again; what a machine that is
// gone had sent arrives within half a second or never.
func (q *qemu) land(n uint64, in time.Duration) {
	w, boot := q.host.w, q.host.boots
	var try func()
	try = func() {
		if q.host.boots != boot || !q.host.on {
			if w.chance(50) || w.now-q.host.down > 500*time.Millisecond {
				return
			}
		} else if q.host.asleep > w.now {
			w.at(q.host.asleep, nil, try)
			return
		} else if !q.host.reaches() {
			w.after(500*time.Millisecond, nil, try)
			return
		}
		q.under--
		w.landed(q, n)
		if q.under == 0 {
			q.quiet()
		}
	}
	w.after(in, nil, try)
	if defect.Seeded.BufferedDisk() && w.chance(30) {
		// In the page cache too: the kernel writes it once more when it likes, whether or not QEMU is there still.
		w.after(w.between(2*time.Second, 30*time.Second), nil, func() {
			if q.host.boots == boot && q.host.on && q.host.reaches() {
				w.landed(q, n)
			}
		})
	}
}

// quiet is when no write is under way any more.
func (q *qemu) quiet() {
	if q.killed && !q.dead {
		q.dies()
	}
}

// kill is SIGKILL. The process is there until its writes are settled, and while the kernel cannot end it.
func (q *qemu) kill() {
	w := q.host.w
	if q.dead || q.killed {
		return
	}
	q.killed = true
	w.after(w.between(time.Millisecond, 8*time.Millisecond), nil, q.dies)
}

func (q *qemu) dies() {
	w := q.host.w
	switch {
	case q.dead || !q.host.on:
	case q.stuck > w.now:
		w.at(q.stuck, nil, q.dies)
	case q.under > 0:
		// exit waits for the I/O of the process (kernel: exit_aio, io_uring cancel); quiet comes here again
	default:
		q.vanish()
	}
}

// vanish ends the process.
func (q *qemu) vanish() {
	if q.dead {
		return
	}
	q.dead = true
	q.touch()
	v := q.vm
	if v.disk.holder == q {
		v.disk.holder = nil
	}
	for i, o := range v.copies {
		if o == q {
			v.copies = append(v.copies[:i:i], v.copies[i+1:]...)
			break
		}
	}
	for _, do := range q.whenGone {
		q.host.w.after(time.Millisecond, nil, do)
	}
	q.whenGone = nil
}

// freeze is the freezer of its cgroup.
func (q *qemu) freeze(on bool) {
	w := q.host.w
	w.after(w.between(time.Millisecond, 10*time.Millisecond), nil, func() {
		if !q.dead && (q.stuck <= w.now || !on) {
			q.frozen = on
			q.touch()
		}
	})
}

// stop is QMP's stop: vCPUs stand and disks are quiet when it is answered.
func (q *qemu) stop(p *proc, done func(bool)) {
	w := q.host.w
	tries, stood := 0, false
	q.asked++
	n := q.asked
	var try func()
	try = func() {
		switch {
		case q.dead || tries > 60 || q.did > n: // a later cont was done since: QEMU takes them in order

			done(false)
		case q.frozen || q.hung > w.now:
			tries++
			w.after(50*time.Millisecond, p, try)
		case q.state == running && !stood || q.state == paused:
			stood, q.did = true, n
			q.set(paused) // at once; the answer waits for the writes under way
			if q.under == 0 {
				done(true)
				return
			}
			tries++
			w.after(50*time.Millisecond, p, try)
		default:
			q.did = max(q.did, n) // a cont that was sent before and waits in its monitor comes first, and stops again at once
			done(q.state != running && q.state != copying && q.state != gate && q.state != device)
		}
	}
	w.after(w.between(500*time.Microsecond, 3*time.Millisecond), p, try)
}

// resume is QMP's cont. Once sent it cannot be called back: a QEMU that hangs or is frozen does it when it can. done has whether QEMU
// took it, and comes to the process that asked, if that lives still.
func (q *qemu) resume(p *proc, done func(bool)) {
	w := q.host.w
	q.asked++
	n := q.asked
	var try func()
	try = func() {
		if !q.dead && (q.frozen || q.hung > w.now || q.host.asleep > w.now) {
			w.after(50*time.Millisecond, nil, try)
			return
		}
		if !q.dead && q.did > n && q.state == loaded {
			q.set(paused) // it ran, and a stop that was sent later has it stand again
		}
		ok := !q.dead && (q.did > n || q.cont())
		q.did = max(q.did, n)
		w.after(200*time.Microsecond, p, func() { done(ok && !q.dead) })
	}
	w.after(w.between(200*time.Microsecond, 2*time.Millisecond), nil, try)
}
