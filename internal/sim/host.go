package sim

import (
	"strconv"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// host is a machine.
type host struct {
	w      *world
	i      int
	node   int
	id     inventory.HostID
	clock  clock
	memory int
	luck   bool // its last call to the store was answered

	on     bool
	boots  int
	asleep moment // suspended until then
	down   moment // when it went off; of interest while it is

	hasDog bool // a watchdog is built in
	dog    dog
	warden *warden
	agent  *agent
	store  *member // nil: no member here
	// What a restart of a process finds: the run directory, on tmpfs.
	run runDir
	vms []*qemu // by VM; nil: none

	// What the checks know of it.
	acked     moment // real time up to which the store's word allows its VMs to run
	watch     bool   // a check of that is under way
	sent      moment // real time of the last renewal that was acknowledged
	sentEpoch uint64 // of that renewal
	guarded   bool   // and said that the host can be fenced
	confirmed int64  // the renewal whose sender somebody said is dead
	late      bool   // the store's word is over, and it may not run VMs

	seen      int64         // the revision of the store that its watch has brought
	watchLag  time.Duration // of that watch
	leaseGone moment        // its etcd lease was revoked early, until then
}

// runDir is what outlives processes and dies with the machine.
type runDir struct {
	fences   uint64
	until    authority.Moment
	journals [][]handover.Entry // by VM
	said     []said             // by VM
}

// said is what an agent has told the warden of a VM: a warden that did not keep it would take every VM for one that the lease arbitrates and
// that runs.
type said struct{ known, stopped bool }

// dog is a watchdog: a timer outside of everything, which resets the machine. It counts on while the machine is suspended.
type dog struct {
	armed bool
	due   moment
	watch bool
}

// dogGrain is how late a watchdog fires at most, beyond its timeout.
const dogGrain = 500 * time.Millisecond

func newHost(w *world, i int) *host {
	return &host{w: w, i: i, node: i, id: inventory.HostID("host-" + strconv.Itoa(i+1)), luck: true}
}

func (h *host) bootID() string { return string(h.id) + "/" + strconv.Itoa(h.boots) }

func (h *host) now() authority.Moment { return h.clock.boot(h.w.now) }

// at lets do happen at a moment of the host's own clock.
func (h *host) at(t authority.Moment, p *proc, do func()) {
	h.w.after(h.clock.real(max(0, t-h.now())), p, do)
}

// boot starts the machine.
func (h *host) boot() {
	w := h.w
	if h.on {
		return
	}
	h.on, h.asleep = true, 0
	h.boots++
	h.clock = clock{booted: w.now, rate: w.rng.Int64N(2*rateMax+1) - rateMax, wall: h.clock.wall}
	h.run = runDir{journals: make([][]handover.Entry, len(w.vms)), said: make([]said, len(w.vms))}
	h.vms = make([]*qemu, len(w.vms))
	h.dog = dog{}
	w.say(string(h.id), "boots")
	if h.store != nil {
		h.store.p = &proc{host: h}
	}
	h.startWarden()
}

// crash takes the machine away between two instructions, and turns it on again after a while; off: it stays away.
func (h *host) crash(why string, again time.Duration) {
	w := h.w
	if !h.on {
		return
	}
	w.say(string(h.id), "is gone: %s", why)
	w.crashed(h)
	h.on, h.down = false, w.now
	h.dog = dog{}
	h.killProcs()
	if h.store != nil {
		h.store.p.dead = true
	}
	for _, q := range h.vms {
		if q != nil {
			q.vanish()
		}
	}
	if again > 0 {
		w.after(again, nil, h.boot)
	}
}

// killProcs ends warden and agent.
func (h *host) killProcs() {
	if h.agent != nil {
		h.agent.end()
	}
	if h.warden != nil {
		h.warden.p.dead = true
	}
}

// feed gives the watchdog another timeout.
func (h *host) feed() {
	if !h.hasDog {
		return
	}
	h.dog.armed = true
	h.dog.due = h.w.now + h.w.settings.Watchdog
	if !h.dog.watch {
		h.dog.watch = true
		h.watchDog()
	}
}

func (h *host) watchDog() {
	boot := h.boots
	h.w.at(h.dog.due, nil, func() {
		switch {
		case h.boots != boot || !h.on:
		case !h.dog.armed:
			h.dog.watch = false
		case h.w.now < h.dog.due:
			h.watchDog()
		default:
			h.w.after(h.w.between(0, dogGrain), nil, func() {
				if h.boots == boot && h.on && h.dog.armed && h.w.now >= h.dog.due {
					h.crash("its watchdog was not fed", h.w.between(15*time.Second, 30*time.Second))
				} else if h.boots == boot {
					h.dog.watch = false
					if h.dog.armed {
						h.dog.watch = true
						h.watchDog()
					}
				}
			})
		}
	})
}

// sleep suspends the machine; only its watchdog counts on.
func (h *host) sleep(d time.Duration) {
	h.asleep = max(h.asleep, h.w.now+d)
	h.touch()
	h.w.at(h.asleep, nil, h.touch)
}

// touch looks at every VM here, whose vCPUs may run or stand now.
func (h *host) touch() {
	for _, q := range h.vms {
		if q != nil {
			q.touch()
		}
	}
}

// free returns how much memory no QEMU here has.
func (h *host) free() int {
	free := h.memory
	for _, q := range h.vms {
		if q != nil && !q.dead {
			free -= q.vm.memory
		}
	}
	return free
}

// promised is how much memory of those that are free an agent has promised already.
func (h *host) promised() int {
	n := 0
	for i := range h.vms {
		if h.agent.loops[i].taken {
			n += h.w.vms[i].memory
		}
	}
	return n
}
