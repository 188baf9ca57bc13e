package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Options say what a run is like; the zero value takes all from the seed.
type Options struct {
	Story   bool  // keep what happened, in words
	Hosts   int   // 0: the seed decides
	Without []int // leave out the faults of these numbers, from 1
}

// Stats is what a run, or many, came to.
type Stats struct {
	Time      time.Duration // virtual
	Faults    int
	Crashes   int
	Fences    int
	Pauses    int
	Kills     int
	Moves     int
	Moved     int
	Guarded   int // of those that moved: whose storage arbitrates
	LocksLost int
	Runs      int
	Stalls    int             // of Calm
	Elections int             // of Calm
	Restarts  []time.Duration // from a crash until the VM ran again, where nothing else was wrong
}

// Result is one run.
type Result struct {
	Seed   uint64
	Tried  int    // faults that were tried, those that came to nothing included
	Hash   uint64 // of all that happened, in order
	Stats  Stats
	Broken *Violation // nil: every promise was kept
	Story  string
}

// Run runs one cluster from one seed.
func Run(seed uint64, o Options) Result {
	w := newWorld(seed, o)
	trouble := w.between(200*time.Second, 400*time.Second)
	w.end = trouble + 20*time.Second + bootMax + convergeMax
	w.start()
	w.use(trouble)
	w.trouble(trouble)
	w.at(trouble+20*time.Second, nil, w.heal)
	w.at(w.end, nil, w.final)
	w.run()
	return w.result()
}

// Shrink runs a seed that broke a promise again without one fault after the other, for as long as the same promise is broken. It returns what is
// left, with its story.
func Shrink(r Result) Result {
	var without []int
	for n := r.Tried; n > 0; n-- {
		try := append(slices.Clone(without), n)
		if again := Run(r.Seed, Options{Without: try}); again.Broken != nil && again.Broken.Invariant == r.Broken.Invariant {
			without = try
		}
	}
	return Run(r.Seed, Options{Story: true, Without: without})
}

func (w *world) result() Result {
	w.stats.Time = w.now
	r := Result{Seed: w.seed, Tried: w.strikes, Stats: w.stats, Broken: w.broken}
	r.Hash = (w.hash ^ uint64(w.events)) * hashPrime
	if w.story != nil {
		r.Story = w.story.String()
	}
	return r
}

// newWorld makes a cluster that is switched off.
func newWorld(seed uint64, o Options) *world {
	w := &world{
		seed: seed, opts: o, rng: rand.New(rand.NewPCG(seed, 0x60d317)), hash: hashStart, settings: authority.Default(),
		activeHost: -1,
	}
	if o.Story {
		w.story = &strings.Builder{}
	}
	hosts := []int{2, 3, 3, 3, 5}[w.rng.IntN(5)]
	if o.Hosts != 0 {
		hosts = o.Hosts
	}
	witnesses := 0
	if hosts == 2 {
		witnesses = 1
	}
	vms := 3 + w.rng.IntN(8)
	w.nodes = hosts + witnesses + 1
	w.net = newNetwork(w.nodes)
	for i := range hosts {
		h := newHost(w, i)
		h.hasDog = w.chance(85)
		h.clock.wall = w.between(-time.Hour, time.Hour)
		w.hosts = append(w.hosts, h)
	}
	room := 0
	for i := range vms {
		v := &vm{w: w, i: i, id: inventory.VMID(fmt.Sprintf("vm-%d", i+1)), memory: 1 + w.rng.IntN(3), arbiter: authority.LeaseArbitrates}
		if w.chance(25) {
			v.arbiter = authority.StorageArbitrates
		}
		room += v.memory
		w.vms = append(w.vms, v)
	}
	w.etcd = &etcd{w: w, leader: -1, visible: 1 << 62}
	w.etcd.records = newRecords(w, hosts, vms)
	for n := range hosts + witnesses {
		m := &member{node: n, p: &proc{}}
		w.etcd.members = append(w.etcd.members, m)
		if n < hosts {
			w.hosts[n].store = m
		}
	}
	for _, h := range w.hosts {
		h.memory = room/(hosts-1) + 3
	}
	return w
}

// start switches the cluster on, with its VMs wanted on.
func (w *world) start() {
	free := make([]int, len(w.hosts))
	for i, v := range w.vms {
		best := w.rng.IntN(len(w.hosts))
		for h := range free {
			if w.hosts[best].memory-free[best] < v.memory || w.hosts[h].memory-free[h] > w.hosts[best].memory-free[best]+2 {
				best = h
			}
		}
		free[best] += v.memory
		w.etcd.records.run[i].put(w.etcd.records.next(), inventory.VMRun{Owner: w.hosts[best].id, Generation: 1, Wanted: inventory.PowerOn})
		w.etcd.records.place[i].put(w.etcd.records.next(), inventory.VMPlace{})
	}
	w.etcd.pulse()
	for _, h := range w.hosts {
		w.after(w.between(0, time.Second), nil, h.boot)
	}
}

// heal ends every fault that lasts, and gives everybody a minute.
func (w *world) heal() {
	w.say("fault", "no more")
	w.etcd.full = false
	for _, m := range w.etcd.members {
		m.stalled = min(m.stalled, w.now)
		m.p.stopped = min(m.p.stopped, w.now)
	}
	for _, h := range w.hosts {
		h.asleep, h.watchLag = min(h.asleep, w.now), 0
		if h.agent != nil {
			h.agent.p.stopped = min(h.agent.p.stopped, w.now)
		}
		if h.warden != nil {
			h.warden.p.stopped = min(h.warden.p.stopped, w.now)
		}
		for _, q := range h.vms {
			if q != nil {
				q.hung, q.stuck = min(q.hung, w.now), min(q.stuck, w.now)
			}
		}
		h.touch()
		h.boot()
		if h.on && h.warden.p.dead {
			h.startWarden()
		}
	}
}

// Restart is the longest restart of so many percent of them, to the hundredth of a second; 0: there was none.
func (s *Stats) Restart(percent int) time.Duration {
	if len(s.Restarts) == 0 {
		return 0
	}
	all := slices.Sorted(slices.Values(s.Restarts))
	return all[(len(all)-1)*percent/100].Round(10 * time.Millisecond)
}

// Add adds what another run came to.
func (s *Stats) Add(o Stats) {
	s.Time += o.Time
	s.Faults += o.Faults
	s.Crashes += o.Crashes
	s.Fences += o.Fences
	s.Pauses += o.Pauses
	s.Kills += o.Kills
	s.Moves += o.Moves
	s.Moved += o.Moved
	s.Guarded += o.Guarded
	s.LocksLost += o.LocksLost
	s.Runs += o.Runs
	s.Restarts = append(s.Restarts, o.Restarts...)
}
