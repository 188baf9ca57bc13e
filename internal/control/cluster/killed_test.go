package cluster_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// A host is confirmed dead, and the leader that deals with it is killed after its n-th transaction, without hearing of it, for every n from 0 that
// there is. The next leader ends the work, and whatever n was, each thing has happened once: one fence, one new owner per VM with the next
// generation, one event of each.
func TestLeaderKilledAtEachStep(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 8*gib)
	killed := 0
	for n := 0; ; n++ {
		if !s.killedAt(n) {
			break
		}
		killed++
	}
	t.Logf("a leader was killed at each of %d steps", killed)
	if killed < 7 { // before the first, and after: fence, two owners, standing, two steps of the plan
		t.Errorf("only %d steps were seen", killed)
	}
}

// killedAt plays the story with the first leader killed at its n-th step, and reports whether it came so far.
func (s *scene) killedAt(n int) bool {
	t := s.t
	host := inventory.HostID(fmt.Sprintf("dead-%d", n))
	s.begin(host, "boot", inventory.FencedByNobody, gib)
	on := s.vm(fmt.Sprintf("on-%d", n), inventory.VMRun{Owner: host, Generation: 1, Wanted: inventory.PowerOn})
	off := s.vm(fmt.Sprintf("off-%d", n), inventory.VMRun{Owner: host, Generation: 1})
	s.host[host].die()
	plan := s.confirm(host, "host-1")
	done := func() bool {
		p, err := s.store.Plan(t.Context(), plan.ID)
		must(t, err)
		return p.State.Final() && s.standing(host).State == "fenced" && s.run(off).Run.Owner != host
	}

	term := lead(t, s.store, s.host["host-1"].Writer)
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	killAt(ctx, kill, term, n)
	var all sync.WaitGroup
	for _, l := range s.loops() {
		all.Go(func() { _ = l.Run(ctx, term) })
	}
	until(t, "the work is done or the leader is dead", func() bool { return ctx.Err() != nil || done() })
	dead := ctx.Err() != nil
	kill()
	all.Wait()
	term.End()

	if dead {
		end := s.lead("host-1")
		until(t, fmt.Sprintf("the next leader ends the work, step %d", n), done)
		end()
	}
	epoch, err := s.store.Epoch(t.Context(), host)
	must(t, err)
	if epoch.Fences != 1 {
		t.Errorf("step %d: fenced %d times", n, epoch.Fences)
	}
	if vm := s.run(on); vm.Run.Owner != "host-1" || vm.Run.Generation != 3 || vm.Place.Restarts != 1 || vm.Place.Restart.Generation != 3 {
		t.Errorf("step %d: %+v %+v", n, vm.Run, vm.Place)
	}
	if vm := s.run(off); vm.Run.Owner != "host-1" || vm.Run.Generation != 3 || vm.Place.Restarts != 0 {
		t.Errorf("step %d: %+v %+v", n, vm.Run, vm.Place)
	}
	for kind, object := range map[string]string{"host.fenced": string(host), "plan.ended": string(host)} {
		if told := s.told(kind, object); told != 1 {
			t.Errorf("step %d: %s was told %d times", n, kind, told)
		}
	}
	for _, id := range []inventory.VMID{on, off} {
		if told := s.told("vm.reassigned", string(id)); told != 1 {
			t.Errorf("step %d: the new owner of %s was told %d times", n, id, told)
		}
	}
	return dead
}
