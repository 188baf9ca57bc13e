package sim

import (
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// calmWorld is a small cluster, half a minute after its start: its VMs run, and no fault strikes.
func calmWorld() *world {
	w := newWorld(3, Options{Hosts: 3, Story: true})
	for _, h := range w.hosts {
		h.hasDog = true
	}
	for _, v := range w.vms {
		v.arbiter = authority.LeaseArbitrates
	}
	w.end = 150 * time.Second
	w.start()
	w.at(w.end, nil, w.final)
	return w
}

// copyOf returns the only copy of the first VM, and a host that has none.
func copyOf(w *world) (q *qemu, other *host) {
	q = w.vms[0].copies[0]
	for _, h := range w.hosts {
		if h != q.host {
			other = h
		}
	}
	return q, other
}

func TestAClusterWithoutFaultsKeepsEveryPromise(t *testing.T) {
	w := calmWorld()
	if w.run(); w.broken != nil {
		t.Error(w.broken)
	}
}

// TestEveryCheckCanFail breaks each promise by hand: a check that cannot fail would hold nothing.
func TestEveryCheckCanFail(t *testing.T) {
	for _, c := range []struct {
		invariant string
		name      string
		mess      func(w *world)
	}{
		{"S1", "a second copy runs", func(w *world) {
			q, other := copyOf(w)
			other.spawn(q.vm, q.generation+1, paused).cont()
		}},
		{"S2", "an old write lands", func(w *world) {
			q, _ := copyOf(w)
			q.vm.disk.last = q.generation + 1
			w.landed(q, q.counter)
		}},
		{"S3", "the store forgets what a user was told", func(w *world) {
			w.vms[0].ops = ops{told: true, off: true} // and it runs on all the time
		}},
		{"S4", "a VM that is off runs", func(w *world) {
			q, _ := copyOf(w)
			q.set(paused)
			q.vm.ops = ops{told: true, off: true}
			q.cont()
		}},
		{"S5", "old memory runs", func(w *world) {
			q, _ := copyOf(w)
			q.set(paused)
			q.vm.turns++
			q.cont()
		}},
		{"S5", "a flushed write is not there", func(w *world) {
			q, other := copyOf(w)
			q.set(paused)
			n := other.spawn(q.vm, q.generation+1, loaded)
			n.from, n.turn, n.counter = q, q.vm.turns, 0
			q.vm.disk.flushed = 5
			n.cont()
		}},
		{"S6", "nobody runs after a migration", func(w *world) {
			q, other := copyOf(w)
			q.set(paused)
			w.settles(&move{id: "mig-1", vm: q.vm, source: q.host, target: other})
		}},
		{"S7", "a VM begins to run without authority", func(w *world) {
			q, _ := copyOf(w)
			q.set(paused)
			q.host.late = true
			q.cont()
		}},
		{"S7", "a VM runs while its host is fenced", func(w *world) {
			q, _ := copyOf(w)
			w.fenced(q.host.i, "for no reason")
		}},
		{"S7", "a VM runs when the authority ends", func(w *world) {
			q, _ := copyOf(w)
			q.host.agent.p.dead, q.host.warden.p.dead, q.host.dog.armed = true, true, false
		}},
		{"S8", "more memory than the host has", func(w *world) {
			q, other := copyOf(w)
			q.vm.memory = 1000
			other.spawn(q.vm, q.generation, paused)
		}},
		{"S9", "a read gives what was", func(w *world) {
			v := w.vms[0]
			run, _ := w.etcd.records.run[0].last()
			w.etcd.visible = w.etcd.records.rev
			w.etcd.records.run[0].put(w.etcd.records.next(), run)
			w.after(time.Second, nil, func() {
				for range 20 {
					w.read(v)
				}
			})
		}},
		{"S10", "two hosts announce one generation", func(w *world) {
			q, other := copyOf(w)
			n := &qemu{vm: q.vm, host: other, generation: q.generation}
			w.announced(n)
		}},
		{"L1", "nobody restarts what a dead host ran", func(w *world) {
			w.settings.Silence = time.Hour
			for _, h := range w.hosts {
				if h.agent.lead != nil {
					h.agent.lead.obs.Settings.Silence = time.Hour
				}
			}
			q, _ := copyOf(w)
			w.active, w.activeHost = 1, q.host.i
			q.host.crash("a test", 0)
		}},
		{"L2", "a VM is wanted on and nobody runs it", func(w *world) {
			q, _ := copyOf(w)
			q.host.agent.loops[q.vm.i].busy = true // for ever
			q.vanish()
		}},
		{"L2", "an orphan is left", func(w *world) {
			q, other := copyOf(w)
			other.agent.loops[q.vm.i].busy = true
			other.spawn(q.vm, q.generation-1, paused)
		}},
		{"L2", "a heir stands for ever", func(w *world) {
			run, _ := w.etcd.records.run[0].last()
			w.vms[0].ops.doubt = true
			run.Heir = inventory.Heir{Host: w.hosts[0].id, Migration: "mig-1", Generation: run.Generation + 1, BootID: w.hosts[0].bootID()}
			w.moves = append(w.moves, &move{id: "mig-1", vm: w.vms[0], source: w.hosts[1], target: w.hosts[0]})
			w.etcd.records.move = append(w.etcd.records.move, history[inventory.MigrationStatus]{})
			w.etcd.records.run[0].put(w.etcd.records.next(), run)
		}},
		{"L3", "the warden kills what has authority", func(w *world) {
			q, _ := copyOf(w)
			w.killedBy(q, "for no reason")
		}},
		{"L4", "the warden kills what its storage guards", func(w *world) {
			q, _ := copyOf(w)
			q.vm.arbiter = authority.StorageArbitrates
			w.killedBy(q, "for no reason")
		}},
	} {
		t.Run(c.invariant+" "+c.name, func(t *testing.T) {
			w := calmWorld()
			w.at(30*time.Second, nil, func() { c.mess(w) })
			if w.run(); w.broken == nil || w.broken.Invariant != c.invariant {
				t.Errorf("%v, want %s\n%s", w.broken, c.invariant, w.story)
			}
		})
	}
}
