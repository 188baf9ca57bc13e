package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

const gib = inventory.GiB

// The story: a host with a watchdog dies. It is fenced after the wait, its VM that is wanted on starts on the host with the most free memory that
// can run it, the one that is off goes there and stays off, and each thing is told once.
func TestDeadHost(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByWatchdog, 8*gib)
	s.begin("host-3", "boot-3", inventory.FencedByWatchdog, 4*gib)
	on := s.vm("on", inventory.VMRun{Owner: "host-2", Generation: 3, Wanted: inventory.PowerOn})
	off := s.vm("off", inventory.VMRun{Owner: "host-2", Generation: 5})
	stays := s.vm("stays", inventory.VMRun{Owner: "host-1", Generation: 1, Wanted: inventory.PowerOn})
	s.lead("host-1")
	until(t, "host-2 is seen", func() bool { _, err := s.store.Leader(t.Context()); return err == nil })
	died := time.Now()
	s.host["host-2"].die()
	until(t, "both have a new owner", func() bool { return s.run(on).Run.Owner == "host-3" && s.run(off).Run.Owner == "host-3" })
	took := time.Since(died)
	t.Logf("new owners after %v", took.Round(time.Millisecond))
	if took < quick().Lease {
		t.Errorf("new owners after %v: the old ones may run for %v", took, quick().Lease)
	}
	vm := s.run(on)
	if vm.Run.Generation != 5 || vm.Run.Wanted != inventory.PowerOn || vm.Place.Restart.Generation != 5 || vm.Place.Restart.From != "host-2" || vm.Place.Restarts != 1 ||
		!strings.Contains(vm.Place.Restart.Why, "host-2 is dead: it was silent for") {
		t.Errorf("%+v %+v", vm.Run, vm.Place)
	}
	if vm := s.run(off); vm.Run.Generation != 7 || vm.Run.Wanted != inventory.PowerOff || vm.Place.Restarts != 0 || vm.Place.Restart.Generation != 0 {
		t.Errorf("%+v %+v", vm.Run, vm.Place)
	}
	if vm := s.run(stays); vm.Run.Owner != "host-1" || vm.Run.Generation != 1 {
		t.Errorf("%+v", vm.Run)
	}
	until(t, "the standing is written", func() bool { return s.standing("host-2").State == "fenced" })
	for kind, object := range map[string]string{"host.silent": "host-2", "host.fenced": "host-2", "vm.reassigned": string(on)} {
		if n := s.told(kind, object); n != 1 {
			t.Errorf("%s of %s was told %d times", kind, object, n)
		}
	}
	s.begin("host-2", "boot-2b", inventory.FencedByWatchdog, 8*gib)
	until(t, "it is back", func() bool { return s.standing("host-2").State == "up" })
	if vm := s.run(on); vm.Run.Owner != "host-3" || vm.Run.Generation != 5 || s.told("host.back", "host-2") != 1 {
		t.Errorf("%+v after its host came back", vm.Run)
	}
}

// The story: a host without a watchdog falls silent. Its VM is blocked with a word, and stays blocked under the next leader, until an operator says
// that the host is dead. A word about a host that gives signs of life again fails.
func TestBlockedHost(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByNobody, 8*gib)
	s.begin("host-3", "boot-3", inventory.FencedByWatchdog, 4*gib)
	vm := s.vm("web", inventory.VMRun{Owner: "host-2", Generation: 3, Wanted: inventory.PowerOn})
	end := s.lead("host-1")
	until(t, "there is a leader", func() bool { _, err := s.store.Leader(t.Context()); return err == nil })
	s.host["host-2"].die()
	blocked := func() bool { return strings.HasPrefix(s.run(vm).Place.Blocked, "host-2 cannot be proven dead") }
	until(t, "the VM is blocked", blocked)
	since := s.standing("host-2").Since

	end()
	s.lead("host-3")
	until(t, "host-3 leads", func() bool { h, err := s.store.Leader(t.Context()); return err == nil && h == "host-3" })
	p := s.confirm("host-2", "host-1")
	until(t, "the plan is done", func() bool {
		p, err := s.store.Plan(t.Context(), p.ID)
		return err == nil && p.State == inventory.PlanDone
	})
	until(t, "the VM has another host", func() bool { return s.run(vm).Run.Owner != "host-2" }) // the plan is done with the fence
	now := s.run(vm)
	if now.Run.Owner != "host-3" || now.Run.Generation != 5 || now.Place.Blocked != "" || !strings.Contains(now.Place.Restart.Why, "alice has confirmed that it is dead") {
		t.Errorf("%+v %+v", now.Run, now.Place)
	}
	if n := s.told("host.blocked", "host-2"); n != 1 || since.IsZero() {
		t.Errorf("blocked was told %d times, since %v", n, since)
	}

	s.begin("host-2", "boot-2b", inventory.FencedByNobody, 8*gib)
	until(t, "it is back", func() bool { return s.standing("host-2").State == "up" })
	early := s.renewal("host-2")
	until(t, "it renews", func() bool { return s.renewal("host-2").Revision != early.Revision })
	word, err := s.host["host-1"].CreatePlan(t.Context(), authority.ConfirmPlan(early, "alice", time.Now().UTC()))
	must(t, err)
	until(t, "the word has failed", func() bool {
		p, err := s.store.Plan(t.Context(), word.ID)
		return err == nil && p.State == inventory.PlanFailed && strings.Contains(p.Reason, "sign of life")
	})
	if r := s.renewal("host-2"); r.Fenced {
		t.Errorf("a living host was fenced on a word about an earlier life: %+v", r)
	}
}

// Nobody can take the VM: every reason is shown, and it is given away as soon as somebody can.
func TestNoHostFits(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByWatchdog, 100*inventory.MiB)
	s.begin("host-3", "boot-3", inventory.FencedByWatchdog, 8*gib)
	vm := s.vm("web", inventory.VMRun{Owner: "host-3", Generation: 1, Wanted: inventory.PowerOn})
	must(t, s.host["host-1"].PutHostSpec(t.Context(), inventory.HostSpec{QEMU: inventory.QEMU{Machines: []string{"pc-q35-10.0"}, CPUModels: []string{"Westmere"}}}))
	s.host["host-3"].die()
	s.confirm("host-3", "host-1")
	s.lead("host-1")
	until(t, "every reason is there", func() bool {
		why := s.run(vm).Place.Blocked
		return strings.Contains(why, "host-1 has not mounted datastore ds-1") && strings.Contains(why, "host-2 has 100 MiB of memory free")
	})
	must(t, s.host["host-2"].PutHostStatus(t.Context(), inventory.HostStatus{MemoryFree: gib}))
	until(t, "it is given away", func() bool {
		v := s.run(vm)
		return v.Run.Owner == "host-2" && v.Place.Blocked == "" && v.Run.Generation == 3
	})
}

// The story: a host dies, and the one that the leader gives its VM to has no room for it after all. It gives the VM up, though it lives, and the
// third one gets it. When no other host can take it, that is said, and the VM stays until one can.
func TestOwnerGivesUp(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByWatchdog, 8*gib)
	s.begin("host-3", "boot-3", inventory.FencedByWatchdog, 4*gib)
	s.begin("host-4", "boot-4", inventory.FencedByWatchdog, gib)
	vm := s.vm("web", inventory.VMRun{Owner: "host-4", Generation: 7, Wanted: inventory.PowerOn})
	off := s.vm("off", inventory.VMRun{Owner: "host-2", Generation: 7, GivenUp: 7})
	s.host["host-4"].die()
	s.confirm("host-4", "host-1")
	s.lead("host-1")
	giveUp := func(host inventory.HostID) {
		t.Helper()
		until(t, string(host)+" has it", func() bool { return s.run(vm).Run.Owner == host })
		_, err := s.host[host].UpdateRun(t.Context(), vm, func(r *inventory.VMRun) error { r.GivenUp = r.Generation; return nil })
		must(t, err)
	}
	giveUp("host-2")
	until(t, "host-3 has it", func() bool { return s.run(vm).Run.Owner == "host-3" })
	if now := s.run(vm); now.Run.Generation != 11 || now.Run.OwnerGaveUp() || now.Place.Restart.Generation != 11 || now.Place.Restart.Why != "host-2 could not start it" {
		t.Errorf("%+v %+v", now.Run, now.Place)
	}
	must(t, s.host["host-1"].PutHostStatus(t.Context(), inventory.HostStatus{MemoryFree: 1}))
	must(t, s.host["host-2"].PutHostStatus(t.Context(), inventory.HostStatus{MemoryFree: 1}))
	giveUp("host-3")
	until(t, "every reason is there", func() bool {
		why := s.run(vm).Place.Blocked
		return strings.Contains(why, "host-3 could not start it") && strings.Contains(why, "host-1 has 1 B of memory free") && strings.Contains(why, "host-2 has")
	})
	must(t, s.host["host-2"].PutHostStatus(t.Context(), inventory.HostStatus{MemoryFree: 8 * gib}))
	until(t, "host-2 has it again", func() bool { v := s.run(vm); return v.Run.Owner == "host-2" && v.Place.Blocked == "" })
	if now := s.run(off); now.Run.Owner != "host-2" || now.Run.Generation != 7 {
		t.Errorf("one that is off was moved: %+v", now.Run)
	}
}

// While a heir stands the VM waits: for the heir's word when the owner is dead, for the owner's when the heir is. A heir that was
// booted since it was named is dead.
func TestHeirs(t *testing.T) {
	s := newScene(t)
	for i, free := range []inventory.Bytes{2 * gib, 4 * gib, 8 * gib} {
		s.begin(inventory.HostID(fmt.Sprintf("host-%d", i+1)), fmt.Sprintf("boot-%d", i+1), inventory.FencedByWatchdog, free)
	}
	heir := func(id string, owner, heir inventory.HostID, boot string) inventory.VMID {
		vm := s.vm(id, inventory.VMRun{Owner: owner, Generation: 1, Wanted: inventory.PowerOn, Heir: inventory.Heir{
			Host: heir, Generation: 2, Migration: inventory.MigrationID("mig-" + id), BootID: boot,
		}})
		must(t, s.host[owner].CreateMigration(t.Context(), inventory.Migration{
			ID: inventory.MigrationID("mig-" + id), Spec: inventory.MigrationSpec{VM: vm, VMName: id, Source: owner, Target: heir},
		}))
		return vm
	}
	asked := heir("asked", "host-3", "host-2", "boot-2")
	silent := heir("silent", "host-3", "host-1", "boot-1")
	running := heir("running", "host-3", "host-2", "boot-2")
	rebooted := heir("rebooted", "host-3", "host-2", "boot-0")
	told := heir("told", "host-2", "host-3", "boot-3")
	given := heir("given", "host-2", "host-1", "boot-0")
	s.heirs.says("mig-asked", true)
	s.heirs.says("mig-running", false)
	must(t, s.host["host-2"].PutMigrationStatus(t.Context(), "mig-given", inventory.MigrationStatus{Phase: inventory.Undecided, SourceDiscarded: true}))
	s.host["host-3"].die()
	s.confirm("host-3", "host-1")
	s.lead("host-1")
	for _, id := range []inventory.VMID{asked, rebooted, given} {
		// The last one may be given to host-3 a moment before that is fenced, and then to another: generation 4.
		until(t, string(id)+" has a new owner", func() bool { vm := s.run(id); return vm.Run.Generation >= 3 && vm.Run.Owner != "host-3" })
		if vm := s.run(id); !vm.Run.Heir.IsZero() || vm.Place.Restart.Generation != vm.Run.Generation || vm.Run.Generation > 3 && id != given {
			t.Errorf("%s: %+v %+v", id, vm.Run, vm.Place)
		}
	}
	until(t, "their migrations have ended, with the source gone", func() bool {
		m, err := s.store.Migration(t.Context(), "mig-asked")
		n, err2 := s.store.Migration(t.Context(), "mig-rebooted")
		return err == nil && err2 == nil && m.Status.Phase == inventory.Failed && n.Status.Phase == inventory.Failed
	})
	for _, id := range []inventory.VMID{silent, running, told} {
		if vm := s.run(id); vm.Run.Generation != 1 || vm.Run.Heir.IsZero() {
			t.Errorf("%s did not wait: %+v", id, vm.Run)
		}
	}
	s.heirs.says("mig-silent", true)
	must(t, s.host["host-2"].PutMigrationStatus(t.Context(), "mig-told", inventory.MigrationStatus{Phase: inventory.Undecided, SourceDiscarded: true}))
	_, err := s.host["host-2"].UpdateRun(t.Context(), running, func(r *inventory.VMRun) error {
		r.Owner, r.Generation, r.Heir = "host-2", 2, inventory.Heir{} // as the heir does
		return nil
	})
	must(t, err)
	until(t, "the others are settled too", func() bool { return s.run(silent).Run.Generation == 3 && s.run(told).Run.Generation == 3 })
	until(t, "a migration whose heir took over is completed", func() bool {
		m, err := s.store.Migration(t.Context(), "mig-running")
		return err == nil && m.Status.Phase == inventory.Completed
	})
	if vm := s.run(running); vm.Run.Generation != 2 || vm.Run.Owner != "host-2" || vm.Place.Restarts != 0 {
		t.Errorf("the heir's VM was taken away: %+v %+v", vm.Run, vm.Place)
	}
}

// The story: an owner gave its copy up when the heir was lost, wrote that down, and fell silent, and nobody can prove it dead. Its word is final, so the
// VM does not wait for it.
func TestAnOwnerThatDiscardedIsNotWaitedFor(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByNobody, 8*gib)
	s.begin("host-3", "boot-3", inventory.FencedByWatchdog, 4*gib)
	vm := s.vm("web", inventory.VMRun{Owner: "host-2", Generation: 1, Wanted: inventory.PowerOn, Heir: inventory.Heir{
		Host: "host-3", Generation: 2, Migration: "mig-1", BootID: "boot-0",
	}})
	must(t, s.host["host-2"].CreateMigration(t.Context(), inventory.Migration{
		ID: "mig-1", Spec: inventory.MigrationSpec{VM: vm, VMName: "web", Source: "host-2", Target: "host-3"},
	}))
	s.lead("host-1")
	until(t, "there is a leader", func() bool { _, err := s.store.Leader(t.Context()); return err == nil })
	s.host["host-2"].die()
	until(t, "the VM waits", func() bool { return strings.HasPrefix(s.run(vm).Place.Blocked, "host-2 cannot be proven dead") })
	must(t, s.host["host-2"].PutMigrationStatus(t.Context(), "mig-1", inventory.MigrationStatus{Phase: inventory.Undecided, SourceDiscarded: true}))
	until(t, "the VM has a new owner", func() bool { return s.run(vm).Run.Owner != "host-2" })
	if now := s.run(vm); now.Run.Generation != 3 || !now.Run.Heir.IsZero() || now.Place.Blocked != "" || now.Place.Restart.Why != "host-3 was booted in the middle of a migration" {
		t.Errorf("%+v %+v", now.Run, now.Place)
	}
}

// A power-off that was acknowledged between the leader's look and its transaction is not undone.
func TestPowerOffIsNotUndone(t *testing.T) {
	s := newScene(t)
	s.begin("host-1", "boot-1", inventory.FencedByWatchdog, 2*gib)
	s.begin("host-2", "boot-2", inventory.FencedByWatchdog, 8*gib)
	vm := s.vm("web", inventory.VMRun{Owner: "host-2", Generation: 1, Wanted: inventory.PowerOn})
	s.host["host-2"].die()
	s.confirm("host-2", "host-1")
	term := lead(t, s.store, s.host["host-1"].Writer)
	ctx, end := context.WithCancel(t.Context())
	off := sync.OnceValue(func() error {
		_, err := s.host["host-1"].UpdateRun(context.Background(), vm, func(r *inventory.VMRun) error { r.Wanted = inventory.PowerOff; return nil })
		return err
	})
	term.Intercept(func(done bool) error {
		if r := s.renewal("host-2"); !done && r.Fenced {
			return off() // whatever transaction comes next, the user's is first
		}
		return nil
	})
	ended := make(chan struct{}, 3)
	for _, l := range s.loops() {
		go func() { _ = l.Run(ctx, term); ended <- struct{}{} }()
	}
	until(t, "it has a new owner", func() bool { return s.run(vm).Run.Owner == "host-1" })
	end()
	for range 3 {
		<-ended
	}
	if now := s.run(vm); now.Run.Wanted != inventory.PowerOff || now.Place.Restart.Generation != 0 || now.Place.Restarts != 0 {
		t.Errorf("%+v %+v", now.Run, now.Place)
	}
}
