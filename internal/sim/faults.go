package sim

import (
	"math/rand/v2"
	"slices"
	"time"
)

// fault is one kind of trouble. begin starts it and returns what ends it, nil when it is over at once; false: it cannot be done now.
type fault struct {
	name   string
	weight int
	lasts  [2]time.Duration
	begin  func(w *world, h *host, lasts time.Duration) (end func(), ok bool)
}

// The faults, and how long each lasts.
var faults = []fault{
	{"is cut off", 12, secs(0.5, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.isolate(h, true, true, management, storage), true
	}},
	{"is cut off from the others, not from its storage", 12, secs(1, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.isolate(h, true, true, management), true
	}},
	{"is cut off from its storage", 8, secs(1, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.isolate(h, true, true, storage), true
	}},
	{"is cut off from its storage, which gives its locks away", 6, secs(1, 60), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		planes := []int{storage}
		if w.chance(50) {
			planes = append(planes, management)
		}
		heal := w.isolate(h, true, true, planes...)
		w.after(w.between(0, lasts), nil, h.loseLocks)
		return heal, true
	}},
	{"sends and hears nothing", 5, secs(1, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.isolate(h, false, true, management), true
	}},
	{"hears and sends nothing", 5, secs(1, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.isolate(h, true, false, management), true
	}},
	{"sees only half of the others", 4, secs(1, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return w.bridge(h), true
	}},
	{"has a link that flaps", 6, secs(5, 40), func(w *world, h *host, _ time.Duration) (func(), bool) { return w.flap(h), true }},
	{"is cut off for as long as a leader waits, and the leader has a slow link", 8, [2]time.Duration{8200 * time.Millisecond, 9800 * time.Millisecond}, func(w *world, h *host, _ time.Duration) (func(), bool) {
		l, _ := w.etcd.records.leader.last()
		if l.by < 0 || l.by == h.i {
			return nil, false
		}
		heal, slow := w.isolate(h, true, true, management), w.hosts[l.by]
		w.net.lag[slow.node] = w.between(500*time.Millisecond, 1500*time.Millisecond)
		return func() {
			heal()
			w.after(3*time.Second, nil, func() { w.net.lag[slow.node] = 0 })
		}, true
	}},
	{"has a slow link, then none, and a QEMU that neither answers nor dies", 5, secs(12, 20), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		if !w.someQEMU(h, func(q *qemu) { q.stuck, q.hung = w.now+lasts, w.now+lasts }) {
			return nil, false
		}
		w.net.lag[h.node] = 850 * time.Millisecond
		heal, over := func() {}, false
		w.after(w.between(2*time.Second, 4*time.Second), nil, func() {
			if !over {
				heal = w.isolate(h, true, true, management)
			}
		})
		return func() {
			over = true
			heal()
			w.net.lag[h.node] = 0
		}, true
	}},
	{"has a slow link", 9, secs(2, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		w.net.lag[h.node] = w.between(100*time.Millisecond, 5*time.Second)
		return func() { w.net.lag[h.node] = 0 }, true
	}},
	{"loses power", 10, secs(5, 90), func(w *world, h *host, _ time.Duration) (func(), bool) {
		if !h.on {
			return nil, false
		}
		h.crash("its power is cut", 0)
		return h.boot, true
	}},
	{"is reset", 5, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		h.crash("somebody has reset it", w.between(5*time.Second, 25*time.Second))
		return nil, true
	}},
	{"stands still", 8, secs(0.2, 40), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		h.sleep(lasts)
		return nil, true
	}},
	{"has its agent killed", 6, secs(0, 0), func(_ *world, h *host, _ time.Duration) (func(), bool) { return nil, h.killAgent() }},
	{"has its agent stopped", 8, secs(0.1, 120), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		return nil, h.stopAgent(lasts)
	}},
	{"has its warden killed", 5, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return nil, h.killWarden(w.between(100*time.Millisecond, 2*time.Second))
	}},
	{"has its warden stopped", 6, secs(0.1, 60), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		if !h.on {
			return nil, false
		}
		h.warden.p.stopped = w.now + lasts
		return nil, true
	}},
	{"has its agent restarted in order", 8, secs(0.3, 40), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		return nil, h.restartAgent(lasts)
	}},
	{"has Godwit restarted in order, VMs run on", 5, secs(1, 90), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		return nil, h.restartAll(lasts)
	}},
	{"has its wall clock set", 4, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		h.clock.wall += w.between(-time.Hour, time.Hour)
		return nil, true
	}},
	{"has a QEMU that cannot be killed", 8, secs(3, 30), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		return nil, w.someQEMU(h, func(q *qemu) { q.stuck = w.now + lasts })
	}},
	{"has a QEMU that does not answer", 8, secs(1, 30), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		return nil, w.someQEMU(h, func(q *qemu) { q.hung = w.now + lasts })
	}},
	{"has a QEMU that crashes", 5, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		return nil, w.someQEMU(h, func(q *qemu) { q.kill() })
	}},
	{"has its store killed", 5, secs(1, 30), func(w *world, h *host, lasts time.Duration) (func(), bool) {
		if h.store == nil || !h.on {
			return nil, false
		}
		h.store.p.stopped = w.now + lasts
		return nil, true
	}},
	{"(its store's disk stalls)", 8, secs(0.5, 30), func(w *world, _ *host, lasts time.Duration) (func(), bool) {
		m := w.etcd.members[w.rng.IntN(len(w.etcd.members))]
		if w.etcd.leader >= 0 && w.chance(70) {
			m = w.etcd.members[w.etcd.leader]
		}
		m.stalled = w.now + lasts
		return nil, true
	}},
	{"(the store is full)", 3, secs(3, 40), func(w *world, _ *host, _ time.Duration) (func(), bool) {
		w.etcd.full = true
		return func() { w.etcd.full = false }, true
	}},
	{"(the store is away)", 4, secs(3, 60), func(w *world, _ *host, lasts time.Duration) (func(), bool) {
		until := w.now + lasts
		for _, m := range w.etcd.members {
			m.p.stopped = max(m.p.stopped, until)
		}
		return nil, true
	}},
	{"has an etcd lease that is revoked early", 4, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		h.leaseGone = w.now + 3*time.Second
		return nil, true
	}},
	{"(the etcd leader steps down)", 4, secs(0, 0), func(w *world, h *host, _ time.Duration) (func(), bool) {
		w.etcd.leader = -1
		h.leaseGone = w.now + 3*time.Second
		return nil, true
	}},
	{"has a slow watch", 3, secs(5, 60), func(w *world, h *host, _ time.Duration) (func(), bool) {
		h.watchLag = w.between(time.Second, 10*time.Second)
		return func() { h.watchLag = 0 }, true
	}},
}

func secs(lo, hi float64) [2]time.Duration {
	return [2]time.Duration{time.Duration(lo * float64(time.Second)), time.Duration(hi * float64(time.Second))}
}

// trouble lets faults begin until a moment, some of them close together.
func (w *world) trouble(until moment) {
	chaos := rand.New(rand.NewPCG(w.seed, 0xfa0175)) // of its own, so that what strikes does not depend on what happens
	w.troubleEnds = until
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	var next func()
	next = func() {
		if w.now >= until {
			return
		}
		n := chaos.IntN(total)
		for _, f := range faults {
			if n -= f.weight; n < 0 {
				w.strike(f, w.hosts[chaos.IntN(len(w.hosts))], until)
				break
			}
		}
		pause := 5*time.Second + time.Duration(chaos.Int64N(int64(65*time.Second)))
		if chaos.IntN(100) < 35 {
			pause = time.Duration(chaos.Int64N(int64(6 * time.Second)))
		}
		w.after(pause, nil, next)
	}
	w.after(w.between(20*time.Second, 60*time.Second), nil, next)
}

// nick kills or stops an agent, now and then, at one of the steps where that is worst; wound does something else to its host.
func (w *world) nick(h *host, percent int, wound func()) {
	if w.now < 20*time.Second || w.now > w.troubleEnds-30*time.Second || !w.chance(percent) {
		return
	}
	w.serial++
	w.stats.Faults++
	w.calmSince = w.now
	w.after(w.between(0, 2*time.Millisecond), nil, wound)
}

// heals ends a fault after a while.
func (w *world) heals(end func(), after time.Duration) {
	w.active++
	w.after(after, nil, func() {
		end()
		w.active--
		w.calmSince = w.now
	})
}

// nickAgent kills the agent of a host within the next two milliseconds, or stops it for a while.
func (w *world) nickAgent(h *host) {
	w.nick(h, 2, func() {
		if w.chance(60) {
			w.say("fault", "%s has its agent killed at a step that matters", h.id)
			h.killAgent()
			return
		}
		d := w.between(100*time.Millisecond, 20*time.Second)
		w.say("fault", "%s has its agent stopped at a step that matters", h.id)
		h.stopAgent(d)
	})
}

// strike begins one fault, and ends it.
func (w *world) strike(f fault, h *host, until moment) {
	w.strikes++
	if slices.Contains(w.opts.Without, w.strikes) {
		return
	}
	outside := w.rng
	w.rng = rand.New(rand.NewPCG(w.seed, uint64(w.strikes)))
	defer func() { w.rng = outside }()
	lasts := max(0, min(w.between(f.lasts[0], f.lasts[1]), until-w.now))
	if f.lasts[1] >= 40*time.Second && w.chance(25) {
		lasts = min(w.between(6500*time.Millisecond, 11*time.Second), until-w.now) // when leaders make up their mind
	}
	w.serial++
	w.active++
	w.activeHost = h.i
	w.say("fault", "%s %s (fault %d)", h.id, f.name, w.strikes)
	end, ok := f.begin(w, h, lasts)
	if !ok {
		w.active--
		return
	}
	w.stats.Faults++
	w.after(max(lasts, 0), nil, func() {
		if end != nil {
			w.say("fault", "%s: it is over (%s)", h.id, f.name)
			end()
		}
		w.active--
		w.calmSince = w.now
	})
}

// isolate cuts a host's links on some planes, in the directions that are named.
func (w *world) isolate(h *host, from, to bool, plane ...int) func() {
	change := func(by int8) {
		for _, p := range plane {
			for n := range w.nodes {
				if n == h.node {
					continue
				}
				if from {
					w.net.block(p, n, h.node, by)
				}
				if to {
					w.net.block(p, h.node, n, by)
				}
			}
		}
	}
	change(1)
	return func() { change(-1) }
}

// bridge cuts the other hosts and witnesses into two halves that only h sees both of.
func (w *world) bridge(h *host) func() {
	var left, right []int
	for n := range w.nodes - 1 {
		if n == h.node {
			continue
		}
		if len(left) <= len(right) {
			left = append(left, n)
		} else {
			right = append(right, n)
		}
	}
	change := func(by int8) {
		for _, a := range left {
			for _, b := range right {
				w.net.block(management, a, b, by)
				w.net.block(management, b, a, by)
			}
		}
	}
	change(1)
	return func() { change(-1) }
}

// flap cuts a host off and lets it back, again and again.
func (w *world) flap(h *host) func() {
	over := false
	heal := func() {}
	var turn func(cut bool)
	turn = func(cut bool) {
		if over {
			return
		}
		if cut {
			heal = w.isolate(h, true, true, management)
		} else {
			heal()
			heal = func() {}
		}
		w.after(w.between(200*time.Millisecond, 5*time.Second), nil, func() { turn(!cut) })
	}
	turn(true)
	return func() {
		over = true
		heal()
	}
}

func (w *world) someQEMU(h *host, do func(*qemu)) bool {
	var some []*qemu
	for _, q := range h.vms {
		if q != nil && !q.dead {
			some = append(some, q)
		}
	}
	if len(some) == 0 {
		return false
	}
	do(some[w.rng.IntN(len(some))])
	return true
}

// killAgent ends the agent; the warden starts the next one.
func (h *host) killAgent() bool {
	if !h.on || h.agent == nil || h.agent.p.dead {
		return false
	}
	h.agent.end()
	h.startAgent()
	return true
}

// stopAgent stops the agent; its warden kills it when it was silent for too long.
func (h *host) stopAgent(d time.Duration) bool {
	a := h.agent
	if !h.on || a == nil || a.p.dead {
		return false
	}
	a.p.stopped = h.w.now + d
	if a.lead != nil {
		a.lead.p.stopped = a.p.stopped
	}
	h.w.after(silentMax, h.warden.p, func() {
		if h.agent == a && !a.p.dead && a.p.stopped > h.w.now {
			h.w.say(string(h.id), "warden kills its silent agent")
			h.killAgent()
		}
	})
	return true
}

// killWarden ends the warden, and with it the agent. Somebody starts it again; its watchdog runs on.
func (h *host) killWarden(again time.Duration) bool {
	if !h.on {
		return false
	}
	boot := h.boots
	h.killProcs()
	h.w.after(again, nil, func() {
		if h.on && h.boots == boot && h.warden.p.dead {
			h.startWarden()
		}
	})
	return true
}

// restartAgent is a planned restart of the agent: with the longer authority, if it gets that.
func (h *host) restartAgent(away time.Duration) bool {
	a := h.agent
	if !h.on || a == nil || !a.p.runs(h.w.now) || !a.on {
		return false
	}
	wd := h.warden
	a.plan(func(ok bool) {
		h.w.say(string(h.id), "agent ends in order, with the longer authority: %v", ok)
		a.end()
		wd.ending = true
		h.w.after(away, wd.p, func() {
			wd.ending = false
			h.startAgent()
		})
	})
	return true
}

// restartAll is a planned restart of everything but the VMs. The agent says in its last renewal that nobody can prove this host dead, and
// only then the warden disarms the watchdog and ends. Without the store's answer the VMs are not left alone: nothing ends.
func (h *host) restartAll(away time.Duration) bool {
	a := h.agent
	if !h.on || a == nil || !a.p.runs(h.w.now) || !a.on {
		return false
	}
	a.stopping = true
	wd, boot := h.warden, h.boots
	a.plan(func(ok bool) {
		if !ok {
			h.w.say(string(h.id), "does not end: the store has not taken its last word")
			a.stopping = false
			return
		}
		h.w.say(string(h.id), "ends in order, VMs run on")
		h.killProcs()
		h.dog.armed = false
		h.w.after(away, nil, func() {
			if h.on && h.boots == boot && h.warden == wd {
				h.startWarden()
			}
		})
	})
	return true
}
