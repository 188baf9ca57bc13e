package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// moment is real time since the start of the run, which nobody in the cluster can see.
type moment = time.Duration

// world is one run.
type world struct {
	seed     uint64
	opts     Options
	rng      *rand.Rand
	now      moment
	end      moment
	queue    queue
	events   int
	hash     uint64
	story    *strings.Builder // nil: nobody reads it
	settings authority.Settings

	hosts       []*host
	nodes       int // hosts, then witnesses, then the storage
	etcd        *etcd
	net         network
	vms         []*vm
	moves       []*move
	active      int    // faults that last
	activeHost  int    // whose the last one is, -1: nobody's
	calmSince   moment // the end of the last fault
	troubleEnds moment
	strikes     int  // faults so far, those that were left out included
	serial      int  // of the last fault that began
	steal       bool // processes lose a fifth of their time
	broken      *Violation
	stats       Stats
}

// proc is one life of a process: what it was about to do dies with it.
type proc struct {
	host    *host
	dead    bool
	stopped moment // until then it does not run
}

// runs reports whether the process could do something right now.
func (p *proc) runs(now moment) bool {
	return !p.dead && p.stopped <= now && (p.host == nil || p.host.asleep <= now)
}

// entry is something that happens at a moment, to a process or, without one, to the world.
type entry struct {
	at  moment
	seq uint64
	p   *proc
	do  func()
}

// queue is a binary heap of entries, earliest first, and first come first served within one moment.
type queue struct {
	heap []entry
	seq  uint64
}

func (a *entry) before(b *entry) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (q *queue) push(e entry) {
	q.seq++
	e.seq = q.seq
	q.heap = append(q.heap, e)
	h, i := q.heap, len(q.heap)-1
	for i > 0 {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() entry {
	h := q.heap
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = entry{}
	q.heap = h[:last]
	h = q.heap
	for i := 0; ; {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1].before(&h[down]) {
			down++
		}
		if !h[down].before(&h[i]) {
			break
		}
		h[i], h[down] = h[down], h[i]
		i = down
	}
	return first
}

// at lets do happen at a moment of real time; with a process only while it lives, and when it was stopped then, as soon as it runs again.
func (w *world) at(t moment, p *proc, do func()) {
	if w.steal && p != nil && w.rng.IntN(5) == 0 {
		t += time.Duration(w.rng.Int64N(int64(200 * time.Millisecond)))
	}
	w.queue.push(entry{at: max(t, w.now), p: p, do: do})
}

// after is at, from now.
func (w *world) after(d time.Duration, p *proc, do func()) { w.at(w.now+d, p, do) }

// run works the queue off until the end, or until a promise is broken.
func (w *world) run() {
	for len(w.queue.heap) > 0 && w.broken == nil {
		e := w.queue.pop()
		if e.at > w.end {
			return
		}
		w.now = e.at
		if e.p != nil && !e.p.runs(w.now) {
			if !e.p.dead {
				wake := e.p.stopped
				if e.p.host != nil {
					wake = max(wake, e.p.host.asleep)
				}
				w.queue.push(entry{at: wake, p: e.p, do: e.do})
			}
			continue
		}
		w.events++
		w.hash = (w.hash ^ uint64(e.at)) * hashPrime
		e.do()
	}
}

// say writes a line of the story, and makes it part of the run's hash.
func (w *world) say(who, format string, args ...any) {
	for i := range len(who) {
		w.hash = (w.hash ^ uint64(who[i])) * hashPrime
	}
	for i := range len(format) {
		w.hash = (w.hash ^ uint64(format[i])) * hashPrime
	}
	if w.story != nil {
		fmt.Fprintf(w.story, "%9.3fs  %-9s %s\n", w.now.Seconds(), who, fmt.Sprintf(format, args...))
	}
}

// between returns a random duration from lo to hi.
func (w *world) between(lo, hi time.Duration) time.Duration {
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

// number is the place of a VM, host or migration in the world's list of them, from its id; -1: none.
func number[ID ~string](id ID) int {
	if id == "" {
		return -1
	}
	n := 0
	for _, c := range []byte(id[strings.IndexByte(string(id), '-')+1:]) {
		n = 10*n + int(c-'0')
	}
	return n - 1
}

// chance is true in so many of a hundred cases.
func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// The hash of a run is FNV-1a's.
const (
	hashStart = 14695981039346656037
	hashPrime = 1099511628211
)
