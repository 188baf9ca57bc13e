package sim

import (
	"errors"
	"time"
)

var errUnknown = errors.New("no answer: it may have been done")

// etcd is the store: linearizable, because every transaction is done at one moment of real time by the leader that has a quorum then. What
// is modelled of the members is when that can be: who reaches whom, whose process runs, whose disk stalls. A proposal may be done long
// after its sender has given up on it, and an answer may be lost.
type etcd struct {
	w       *world
	records records
	members []*member
	leader  int // index in members, -1: none
	lost    moment
	term    int
	full    bool  // the quota is used up: what writes is refused
	visible int64 // the revision that reads see; beyond all but where a member is asked that is behind
}

// member is one etcd process with its disk.
type member struct {
	node    int
	p       *proc
	stalled moment // its disk answers no fsync until then
	seen    int64  // the last revision that it has
}

// The times of etcd: its defaults, heartbeat 100 ms and election 1 s, and the client's.
const (
	pulseEvery   = 250 * time.Millisecond
	electionTime = time.Second
	proposeMax   = 7 * time.Second
	storeTimeout = 3 * time.Second
)

func (s *etcd) up(m *member) bool { return m.p.runs(s.w.now) && m.stalled <= s.w.now }

// quorum reports whether the member reaches more than half of all, itself included.
func (s *etcd) quorum(m *member) bool {
	n := 0
	for _, o := range s.members {
		if (o == m || s.up(o)) && s.w.net.both(management, m.node, o.node) {
			n++
		}
	}
	return n > len(s.members)/2
}

// pulse looks after leadership and after who has what.
func (s *etcd) pulse() {
	w := s.w
	if s.leader >= 0 {
		m := s.members[s.leader]
		ok := m.p.runs(w.now) && s.quorum(m) && m.stalled < w.now+electionTime
		switch {
		case ok:
			s.lost = 0
		case s.lost == 0:
			s.lost = w.now
		case w.now-s.lost >= electionTime:
			w.say("store", "has lost its leader on node %d", m.node+1)
			s.leader = -1
		}
	} else {
		var able []int
		for i, m := range s.members {
			if s.up(m) && s.quorum(m) {
				able = append(able, i)
			}
		}
		if len(able) > 0 && w.chance(60) {
			s.leader, s.lost = able[w.rng.IntN(len(able))], 0
			s.term++
			w.say("store", "node %d leads the members", s.members[s.leader].node+1)
		}
	}
	for _, m := range s.members {
		if s.leader >= 0 && s.up(m) && w.net.reaches(management, s.members[s.leader].node, m.node) {
			m.seen = s.records.rev
		}
	}
	w.after(pulseEvery, nil, s.pulse)
}

// endpoint picks the member that a host asks: its own, or one that it finds to be up.
func (s *etcd) endpoint(h *host) *member {
	for _, m := range s.members {
		if m.node == h.node && s.up(m) && h.luck {
			return m
		}
	}
	return s.members[s.w.rng.IntN(len(s.members))]
}

// do runs apply as one transaction on behalf of a process of host h, and done with its outcome there; errUnknown when there was none in
// time. A transaction that writes is refused while the store is full. A host's renewals and its other calls go the same way here, each
// on a connection of its own.
func (s *etcd) do(h *host, p *proc, timeout time.Duration, writes bool, apply func() error, done func(error)) {
	w := s.w
	ended := false
	end := func(err error) {
		if !ended {
			ended = true
			h.luck = !errors.Is(err, errUnknown)
			done(err)
		}
	}
	w.after(h.clock.real(timeout), p, func() { end(errUnknown) })
	m := s.endpoint(h)
	w.send(h.node, m.node, m.p, func() {
		s.propose(m, w.now, s.term, writes, apply, func(err error) {
			w.send(m.node, h.node, p, func() { end(err) })
		})
	})
}

// propose brings a transaction from a member to the leader and has it done there, at once or when that can.
func (s *etcd) propose(m *member, since moment, term int, writes bool, apply func() error, reply func(error)) {
	w := s.w
	if s.stale(m, writes, apply, reply) {
		return
	}
	again := func() {
		if w.now-since > proposeMax || s.term != term && w.chance(50) {
			return // lost with its leader, or given up
		}
		w.after(150*time.Millisecond, m.p, func() { s.propose(m, since, s.term, writes, apply, reply) })
	}
	if s.leader < 0 {
		again()
		return
	}
	l := s.members[s.leader]
	if !l.p.runs(w.now) || !w.net.both(management, m.node, l.node) || !s.quorum(l) {
		again()
		return
	}
	cost := w.delay(m.node, l.node) + w.delay(l.node, m.node) + time.Millisecond + time.Duration(w.rng.Int64N(int64(4*time.Millisecond)))
	w.at(max(w.now, l.stalled)+cost, nil, func() {
		if s.leader < 0 || s.members[s.leader] != l || !l.p.runs(w.now) || !s.quorum(l) || l.stalled > w.now {
			again()
			return
		}
		if writes && s.full {
			reply(errUnknown)
			return
		}
		err := apply()
		if w.net.reaches(management, l.node, m.node) {
			reply(err)
		}
	})
}
