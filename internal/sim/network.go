package sim

import "time"

// The two planes: agents and etcd talk on one, disks on the other, and either may break alone.
const (
	management = iota
	storage
	planes
)

// network says who reaches whom. cut counts the faults that block a direction.
type network struct {
	nodes int
	cut   [planes][]int8
	lag   []time.Duration // of a node on the management plane: what comes from it is that late
	again int             // percent of the lost messages that TCP delivers after all, later
}

func newNetwork(nodes int) network {
	n := network{nodes: nodes, lag: make([]time.Duration, nodes), again: 50}
	for i := range n.cut {
		n.cut[i] = make([]int8, nodes*nodes)
	}
	return n
}

func (n *network) reaches(plane, from, to int) bool {
	return from == to || n.cut[plane][from*n.nodes+to] == 0
}

// both reports whether two nodes can talk with each other.
func (n *network) both(plane, a, b int) bool { return n.reaches(plane, a, b) && n.reaches(plane, b, a) }

func (n *network) block(plane, from, to int, by int8) { n.cut[plane][from*n.nodes+to] += by }

// delay is how long a message is under way when nothing is wrong.
func (w *world) delay(from, to int) time.Duration {
	if from == to {
		return 20 * time.Microsecond
	}
	d := 100*time.Microsecond + time.Duration(w.rng.Int64N(int64(900*time.Microsecond)))
	if lag := w.net.lag[from]; lag > 0 {
		d += time.Duration(w.rng.Int64N(int64(lag)))
	}
	return d
}

// send delivers a message on the management plane. One that meets a cut is lost, or comes when TCP gets it through, at most twenty seconds late.
func (w *world) send(from, to int, p *proc, do func()) {
	d := w.delay(from, to)
	if w.net.reaches(management, from, to) {
		w.after(d, p, do)
		return
	}
	if w.chance(w.net.again) {
		w.resend(from, to, p, do, w.now+w.between(0, 20*time.Second), 200*time.Millisecond)
	}
}

func (w *world) resend(from, to int, p *proc, do func(), until moment, wait time.Duration) {
	w.after(wait, nil, func() {
		switch {
		case w.now > until:
		case w.net.reaches(management, from, to):
			w.after(w.delay(from, to), p, do)
		default:
			w.resend(from, to, p, do, until, min(2*wait, 2*time.Second))
		}
	})
}
