package sim

import "time"

// Calm runs a cluster of three hosts for so long, in which nothing is broken and much is slow: the store's disks stall for a second, its leader is lost,
// processes wait for a processor in a fifth of the cases, up to 200 ms, and hosts are evacuated at line rate, so that
// messages take longer. No host may be stopped or fenced then: Pauses and Fences of the result are to be 0.
func Calm(seed uint64, d time.Duration) Result {
	w := newWorld(seed, Options{Hosts: 3})
	for _, h := range w.hosts {
		h.hasDog = true
	}
	w.end = d
	w.start()
	w.at(time.Minute, nil, func() {
		w.stats.Pauses, w.stats.Fences = 0, 0 // a cluster that starts has no authority yet
		w.steal = true
		w.stall()
		w.depose()
		w.evacuate()
	})
	w.run()
	return w.result()
}

// stall lets the disk of some member, mostly the leader's, stand still for a second, about every minute.
func (w *world) stall() {
	m := w.etcd.members[w.rng.IntN(len(w.etcd.members))]
	if w.etcd.leader >= 0 && w.chance(60) {
		m = w.etcd.members[w.etcd.leader]
	}
	m.stalled = w.now + time.Second
	w.stats.Stalls++
	w.after(w.between(20*time.Second, 100*time.Second), nil, w.stall)
}

// depose takes the leader from the store's members, about every half hour.
func (w *world) depose() {
	w.etcd.leader = -1
	w.stats.Elections++
	w.after(w.between(10*time.Minute, 50*time.Minute), nil, w.depose)
}

// evacuate moves the VMs of some host away, one after the other; what else goes over its link takes longer meanwhile. Renewals have
// connections of their own, and streams are paced below the line's rate, so that is milliseconds.
func (w *world) evacuate() {
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	w.net.lag[h.node] = 20 * time.Millisecond
	for i, v := range w.vms {
		w.after(time.Duration(i)*15*time.Second, nil, func() {
			if run, _ := w.etcd.records.run[v.i].last(); run.Owner == h.id {
				w.move(v)
			}
		})
	}
	w.after(time.Duration(len(w.vms))*15*time.Second, nil, func() { w.net.lag[h.node] = 0 })
	w.after(w.between(5*time.Minute, 20*time.Minute), nil, w.evacuate)
}
