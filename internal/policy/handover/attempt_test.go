package handover

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	failure "github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

const (
	from inventory.HostID = "host-1"
	to   inventory.HostID = "host-2"
)

// theTry is an attempt that began when the VM had generation 7.
var theTry = Attempt{Migration: testID, Source: from, Target: to, Generation: 7}

// someRuns are run records of all sorts: each owner, the generations around the attempt's, no heir and every heir that could stand.
func someRuns() []inventory.VMRun {
	var all []inventory.VMRun
	for _, owner := range []inventory.HostID{from, to, "host-3"} {
		for g := inventory.Generation(6); g <= 10; g++ {
			heirs := []inventory.Heir{{}}
			for _, host := range []inventory.HostID{from, to, "host-3"} {
				for _, id := range []inventory.MigrationID{testID, "mig-2"} {
					heirs = append(heirs, inventory.Heir{Host: host, Generation: g + 1, Migration: id, BootID: "boot-1"})
				}
			}
			for _, heir := range heirs {
				all = append(all, inventory.VMRun{Owner: owner, Generation: g, Heir: heir, Wanted: inventory.PowerOn, Restored: 3, GivenUp: g - 1})
			}
		}
	}
	return all
}

// What no change of the run record may do, whatever it finds: it is refused and changes nothing, or it is done and doing it again is too; a generation
// never goes back; what is not of the hand-over stays.
func TestChangesOfTheRunRecord(t *testing.T) {
	changes := map[string]struct {
		change func(inventory.VMRun) (inventory.VMRun, error)
		again  bool // once more changes nothing
	}{
		"set heir": {func(r inventory.VMRun) (inventory.VMRun, error) {
			return theTry.SetHeir(r, inventory.Sign{BootID: "boot-1"})
		}, true},
		"clear heir": {theTry.ClearHeir, false}, // each burns a generation
		"take owner": {theTry.TakeOwner, true},
	}
	for name, c := range changes {
		done := 0
		for _, run := range someRuns() {
			next, err := c.change(run)
			if err != nil {
				if next != run || !errors.Is(err, ErrRefused) || !failure.Is(err, failure.Conflict) {
					t.Errorf("%s of %+v: %+v, %v", name, run, next, err)
				}
				continue
			}
			if next != run {
				done++
			}
			if next.Generation < run.Generation || next.Generation < run.Heir.Generation && next.Heir != run.Heir {
				t.Errorf("%s of %+v gives a generation a second time: %+v", name, run, next)
			}
			rest := next
			rest.Owner, rest.Generation, rest.Heir = run.Owner, run.Generation, run.Heir
			if rest != run {
				t.Errorf("%s of %+v changes more: %+v", name, run, next)
			}
			if more, err := c.change(next); c.again && (err != nil || more != next) {
				t.Errorf("%s of %+v, once more: %+v, then %+v, %v", name, run, next, more, err)
			}
		}
		if done == 0 {
			t.Errorf("%s was never done", name)
		}
	}
}

// Each change, as it is meant and as it is refused.
func TestEachChange(t *testing.T) {
	heir := inventory.Heir{Host: to, Generation: 8, Migration: testID, BootID: "boot-1"}
	mine := inventory.VMRun{Owner: from, Generation: 7}
	named := inventory.VMRun{Owner: from, Generation: 7, Heir: heir}
	other := inventory.VMRun{Owner: from, Generation: 7, Heir: inventory.Heir{Host: "host-3", Generation: 8, Migration: "mig-2"}}
	taken := inventory.VMRun{Owner: to, Generation: 8}
	lives, rebooted := inventory.Sign{BootID: "boot-1"}, inventory.Sign{BootID: "boot-2"}
	set := func(s inventory.Sign) func(inventory.VMRun) (inventory.VMRun, error) {
		return func(r inventory.VMRun) (inventory.VMRun, error) { return theTry.SetHeir(r, s) }
	}
	sinceBoot := func(s inventory.Sign) func(inventory.VMRun) (inventory.VMRun, error) {
		ready := theTry
		ready.Boot = "boot-1"
		return func(r inventory.VMRun) (inventory.VMRun, error) { return ready.SetHeir(r, s) }
	}
	for _, c := range []struct {
		name     string
		change   func(inventory.VMRun) (inventory.VMRun, error)
		run, got inventory.VMRun
		refused  bool
	}{
		{"an heir is named", set(lives), mine, named, false},
		{"and named again, after a boot: nothing runs there by this attempt", set(rebooted), named, named, false},
		{"and named again, after its fence", set(inventory.Sign{BootID: "boot-1", Fenced: true}), named, named, false},
		{"a fenced host is not named", set(inventory.Sign{Fenced: true, Why: "it was silent"}), mine, mine, true},
		{"nor one that was removed", set(inventory.Sign{Removed: true}), mine, mine, true},
		{"that in which it got ready", sinceBoot(lives), mine, named, false},
		{"nor one that was booted since it got ready: it cannot say any more that nothing ran there", sinceBoot(rebooted), mine, mine, true},
		{"another heir stands", set(lives), other, other, true},
		{"it was started again", set(lives), inventory.VMRun{Owner: from, Generation: 8}, inventory.VMRun{Owner: from, Generation: 8}, true},
		{"it is the target's already", set(lives), taken, taken, true},

		{"the heir goes, and its generation is burnt", theTry.ClearHeir, named, inventory.VMRun{Owner: from, Generation: 8}, false},
		{"also where none was named: the target may have its lock record", theTry.ClearHeir, mine, inventory.VMRun{Owner: from, Generation: 8}, false},
		{"another attempt's heir stays", theTry.ClearHeir, other, other, false},
		{"the target has taken it", theTry.ClearHeir, taken, taken, true},

		{"the heir takes it", theTry.TakeOwner, named, taken, false},
		{"and takes it again", theTry.TakeOwner, taken, taken, false},
		{"the heir was cleared", theTry.TakeOwner, inventory.VMRun{Owner: from, Generation: 8}, inventory.VMRun{Owner: from, Generation: 8}, true},
		{"another is heir", theTry.TakeOwner, other, other, true},
		{"the leader gave it to the target, for a cold start", theTry.TakeOwner, inventory.VMRun{Owner: to, Generation: 9}, inventory.VMRun{Owner: to, Generation: 9}, true},
	} {
		got, err := c.change(c.run)
		if got != c.got || errors.Is(err, ErrRefused) != c.refused || (err != nil) != c.refused {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// What a read of the store is to a source, in each state: nothing where it does not ask, and never two words about the owner.
func TestWhatASourceReads(t *testing.T) {
	heir := inventory.Heir{Host: to, Generation: 8, Migration: testID, BootID: "boot-1"}
	lives, fenced := inventory.Sign{BootID: "boot-1"}, inventory.Sign{BootID: "boot-1", Fenced: true, Why: "it was silent"}
	asks := []SourceState{SourceDone, SourceReleased, SourceMoved, SourceWithdrawing, SourceDropped, SourceSwitched, SourceServing}
	for _, s := range allSourceStates {
		if s.Reads() != slices.Contains(asks, s) {
			t.Errorf("%s reads: %t", s, s.Reads())
		}
	}
	const done, ending, dropped, rest = 1, 2, 4, 8 // who hears of it
	for _, c := range []struct {
		name string
		run  inventory.VMRun
		sign inventory.Sign
		want SourceEventKind
		who  int
	}{
		{"all is as it was", inventory.VMRun{Owner: from, Generation: 7, Heir: heir}, lives, "", done | ending | dropped | rest},
		{"the heir is fenced", inventory.VMRun{Owner: from, Generation: 7, Heir: heir}, fenced, SourceTargetFenced, done | rest},
		{"the heir was booted", inventory.VMRun{Owner: from, Generation: 7, Heir: heir}, inventory.Sign{BootID: "boot-2"}, SourceTargetFenced, done | rest},
		{"no heir stands", inventory.VMRun{Owner: from, Generation: 8}, fenced, SourceHeirCleared, dropped | rest},
		{"the target has taken it", inventory.VMRun{Owner: to, Generation: 8}, lives, SourceOwnerTarget, ending | dropped | rest},
		{"and was fenced after that", inventory.VMRun{Owner: to, Generation: 8}, fenced, SourceOwnerTarget, ending | dropped | rest},
		{"the leader gave it to a third", inventory.VMRun{Owner: "host-3", Generation: 9}, lives, SourceOwnerOther, ending | dropped | rest},
		{"the leader gave it to the target", inventory.VMRun{Owner: to, Generation: 9}, lives, SourceOwnerOther, ending | dropped | rest},
		{"the leader gave it to the source, which has come back", inventory.VMRun{Owner: from, Generation: 9}, lives, SourceOwnerOther, ending | dropped | rest},
	} {
		for s, who := range map[SourceState]int{
			SourceDone: done, SourceEnding: ending, SourceDropped: dropped, SourceReleased: rest, SourceMoved: rest, SourceWithdrawing: rest,
			SourceSwitched: rest, SourceServing: rest,
		} {
			var got SourceEventKind
			told := theTry.SourceReads(s, c.run, c.sign)
			if len(told) > 0 {
				got = told[0].Kind
			}
			if want := c.want; len(told) > 1 || c.who&who != 0 && got != want || c.who&who == 0 && got != "" {
				t.Errorf("%s: a source that is %s hears %+v", c.name, s, told)
			}
		}
	}
}

// What a read of the store is to a target: a release counts only where the VM may still become its own.
func TestWhatATargetReads(t *testing.T) {
	named := inventory.VMRun{Owner: from, Generation: 7, Heir: inventory.Heir{Host: to, Generation: 8, Migration: testID}}
	for _, s := range allTargetStates {
		if s.Reads() != (s == TargetIncoming || s == TargetLoadedUp) {
			t.Errorf("%s reads: %t", s, s.Reads())
		}
	}
	released, over := inventory.MigrationStatus{Phase: inventory.Released, Released: true}, inventory.MigrationStatus{Phase: inventory.Failed, Released: true}
	undecided := inventory.MigrationStatus{Phase: inventory.Undecided}
	for _, c := range []struct {
		name             string
		run              inventory.VMRun
		status           inventory.MigrationStatus
		incoming, loaded TargetEventKind
	}{
		{"before an heir is named", inventory.VMRun{Owner: from, Generation: 7}, inventory.MigrationStatus{Phase: inventory.PreCopy}, "", ""},
		{"an heir", named, inventory.MigrationStatus{Phase: inventory.Switchover}, "", ""},
		{"released", named, released, "", TargetReleased},
		{"undecided alone is no release", named, undecided, "", ""},
		{"released, and given to a third since both were fenced", inventory.VMRun{Owner: "host-3", Generation: 9}, released, TargetOwnerRefused, TargetOwnerRefused},
		{"released, and given to this host for a cold start", inventory.VMRun{Owner: to, Generation: 9}, released, TargetOwnerRefused, TargetOwnerRefused},
		{"over", inventory.VMRun{Owner: from, Generation: 8}, over, TargetOwnerRefused, TargetOwnerRefused},
	} {
		for _, s := range allTargetStates {
			want := map[TargetState]TargetEventKind{TargetIncoming: c.incoming, TargetLoadedUp: c.loaded}[s]
			if got := theTry.TargetReads(s, c.run, c.status); got.Kind != want {
				t.Errorf("%s: a target that is %s hears %+v, not %q", c.name, s, got, want)
			}
		}
	}
}

// The first event after a restart: the store's word about a new owner before all that is found, and after that QEMU's, and the boot's where there is no QEMU.
func TestWhatARestartedAgentFinds(t *testing.T) {
	here, there := inventory.VMRun{Owner: from, Generation: 7}, inventory.VMRun{Owner: to, Generation: 8}
	third, cold := inventory.VMRun{Owner: "host-3", Generation: 9}, inventory.VMRun{Owner: to, Generation: 9}
	for _, c := range []struct {
		q                QEMU
		source, rebooted SourceEventKind
		target           TargetEventKind
		rebootedToo      TargetEventKind
	}{
		{QEMUGone, SourceFoundGone, SourceFoundRebooted, TargetFoundGone, TargetFoundRebooted},
		{QEMURuns, SourceFoundRunning, SourceFoundRunning, TargetFoundRunning, TargetFoundRunning},
		{QEMUMigrates, SourceFoundCopying, SourceFoundCopying, TargetFoundRunning, TargetFoundRunning},
		{QEMUCompleted, SourceFoundDone, SourceFoundDone, TargetFoundRunning, TargetFoundRunning},
		{QEMUIncoming, SourceFoundRunning, SourceFoundRunning, TargetFoundIncoming, TargetFoundIncoming},
		{QEMULoaded, SourceFoundRunning, SourceFoundRunning, TargetFoundLoaded, TargetFoundLoaded},
	} {
		for rebooted, want := range map[bool]SourceEventKind{false: c.source, true: c.rebooted} {
			if got := theTry.SourceFound(here, c.q, rebooted); got.Kind != want {
				t.Errorf("%s, rebooted %t: the source finds %+v, not %q", c.q, rebooted, got, want)
			}
			for run, want := range map[inventory.VMRun]SourceEventKind{there: SourceOwnerTarget, third: SourceOwnerOther, cold: SourceOwnerOther} {
				if got := theTry.SourceFound(run, c.q, rebooted); got.Kind != want {
					t.Errorf("%s, rebooted %t, %+v: the source finds %+v, not %q", c.q, rebooted, run, got, want)
				}
			}
		}
		for rebooted, want := range map[bool]TargetEventKind{false: c.target, true: c.rebootedToo} {
			if got := theTry.TargetFound(here, c.q, rebooted); got.Kind != want {
				t.Errorf("%s, rebooted %t: the target finds %+v, not %q", c.q, rebooted, got, want)
			}
			for run, want := range map[inventory.VMRun]TargetEventKind{there: TargetOwnerWritten, cold: TargetOwnerWritten, third: want} {
				if got := theTry.TargetFound(run, c.q, rebooted); got.Kind != want {
					t.Errorf("%s, rebooted %t, %+v: the target finds %+v, not %q", c.q, rebooted, run, got, want)
				}
			}
		}
	}
}

// The story: a source whose host was fenced comes back, its QEMU completed and stopped still, since storage that arbitrates spared it. Nothing was
// released, but the VM runs on a third host by now, so nothing of it runs here again.
func TestASourceThatComesBackFindsTheVMElsewhere(t *testing.T) {
	m := inventory.Migration{ID: testID, Spec: inventory.MigrationSpec{Source: from, Target: to}}
	vm := inventory.VM{Run: inventory.VMRun{Owner: "host-3", Generation: 9}, Place: inventory.VMPlace{Restart: inventory.Restart{Generation: 9, From: from}}}
	s := RestoreSource(testID, nil)
	e := RestoreAttempt(m, vm).SourceFound(vm.Run, QEMUCompleted, false)
	e.Authority = AuthorityMargin
	s, actions := s.Step(e)
	if !s.Final() || s.Ends != inventory.Failed || !slices.ContainsFunc(actions, func(a SourceAction) bool { return a.Kind == KillSource }) {
		t.Errorf("after %+v: %+v, %+v", e, s, actions)
	}
	if slices.ContainsFunc(actions, func(a SourceAction) bool { return a.Kind == ResumeHere }) {
		t.Errorf("the source lets a VM run that runs on host-3: %+v", actions)
	}
}

// The story, seed 20 of test/split: nothing reaches the source's host in the middle of a copy, its authority ends and its QEMU with it, and the leader gives the VM to
// the migration's very target. When the host is heard again its agent still tells the target to discard. The answer is about a VM that the leader gave, and no
// word of a rule that was broken.
func TestTheLeaderGivesTheVMToTheTarget(t *testing.T) {
	m := inventory.Migration{ID: testID, Spec: inventory.MigrationSpec{Source: from, Target: to}}
	for _, named := range []bool{true, false} {
		run := inventory.VMRun{Owner: from, Generation: 7, Wanted: inventory.PowerOn}
		c := ha.Case{Owner: ha.Dead, Run: run}
		if named {
			c.Run.Heir = inventory.Heir{Host: to, Generation: 8, Migration: testID}
			c.Heir, c.HeirDiscarded = ha.Living, true
		}
		d := ha.Decide(c)
		if d.Kind != ha.Restart {
			t.Fatalf("heir %t: %+v", named, d)
		}
		var vm inventory.VM
		vm.Run, vm.Place = d.Give(c.Run, vm.Place, to, "host-1 is dead", time.Time{})
		word, ok := RestoreAttempt(m, vm).TargetSettled(vm.Run)
		if !ok || word != AnswerLost {
			t.Errorf("heir %t: the target says %q, %t", named, word, ok)
		}
		for _, answer := range []Answer{word, AnswerRunning} {
			s, _ := NewSource(testID).Step(SourceEvent{Kind: SourceGone})
			s, actions := s.Step(theTry.SourceHears(answer, vm.Run))
			if !s.Final() || s.Ends != inventory.Failed || slices.ContainsFunc(actions, func(a SourceAction) bool { return a.Kind == SourceViolation }) {
				t.Errorf("heir %t, %s: %+v, %+v", named, answer, s, actions)
			}
		}
		for q, want := range map[QEMU]bool{QEMUGone: false, QEMUIncoming: true, QEMULoaded: true, QEMURuns: false} {
			if got := LeftBehind(vm, q); got != want {
				t.Errorf("heir %t: what is %s is left behind: %t", named, q, got)
			}
		}
	}
	// By the migration itself all of that is otherwise: the target says that it has the VM, a source that released nothing takes it for what it is, and
	// a QEMU that a user has paused is the VM's own.
	took := inventory.VM{Run: inventory.VMRun{Owner: to, Generation: 8, Wanted: inventory.PowerOn}}
	if word, ok := RestoreAttempt(m, took).TargetSettled(took.Run); !ok || word != AnswerRunning {
		t.Errorf("the target says %q, %t", word, ok)
	}
	if e := theTry.SourceHears(AnswerRunning, took.Run); e.Kind != SourceAnswered {
		t.Errorf("%+v", e)
	}
	if LeftBehind(took, QEMULoaded) || LeftBehind(took, QEMUIncoming) {
		t.Error("the VM's own QEMU is left behind")
	}
	leaves := inventory.VM{Run: inventory.VMRun{Owner: to, Generation: 9, Heir: inventory.Heir{Host: from, Generation: 10}}}
	if leaves.Place.Restart.Generation = 9; LeftBehind(leaves, QEMULoaded) {
		t.Error("the QEMU of a source is left behind")
	}
	here := inventory.VMRun{Owner: from, Generation: 7}
	if word, ok := theTry.TargetSettled(here); ok {
		t.Errorf("a target that is not owner says %q", word)
	}
	if e := theTry.SourceHears(AnswerDiscarded, inventory.VMRun{Owner: "host-3", Generation: 9}); e.Kind != SourceAnswered || e.Answer != AnswerDiscarded {
		t.Errorf("%+v", e)
	}
}

// A restarted agent knows the attempt again from what the records have of it.
func TestRestoredAttempt(t *testing.T) {
	m := inventory.Migration{ID: testID, Spec: inventory.MigrationSpec{Source: from, Target: to}}
	gave := inventory.VMPlace{Restart: inventory.Restart{Generation: 9}}
	for _, c := range []struct {
		name  string
		run   inventory.VMRun
		place inventory.VMPlace
		want  inventory.Generation
		found SourceEventKind
	}{
		{"the heir stands", inventory.VMRun{Owner: from, Generation: 7, Heir: inventory.Heir{Host: to, Generation: 8, Migration: testID}}, gave, 7, SourceFoundGone},
		{"none was named", inventory.VMRun{Owner: from, Generation: 7}, inventory.VMPlace{}, 7, SourceFoundGone},
		{"the target has taken it", inventory.VMRun{Owner: to, Generation: 8}, inventory.VMPlace{}, 7, SourceOwnerTarget},
		{"the leader gave it to the target", inventory.VMRun{Owner: to, Generation: 9}, gave, 0, SourceOwnerOther},
		{"the leader gave it to a third", inventory.VMRun{Owner: "host-3", Generation: 9}, gave, 0, SourceOwnerOther},
	} {
		a := RestoreAttempt(m, inventory.VM{Run: c.run, Place: c.place})
		want := theTry
		want.Generation = c.want
		if found := a.SourceFound(c.run, QEMUGone, false); a != want || found.Kind != c.found {
			t.Errorf("%s: %+v, %+v", c.name, a, found)
		}
		if c.want == 7 && c.run.Owner == from && a != NewAttempt(m, c.run) {
			t.Errorf("%s: restored and new differ: %+v", c.name, a)
		}
	}
}

// What a source reports stands in the record; undecided alone is no release, and one that was made is not taken back.
func TestWhatAReportSays(t *testing.T) {
	var s inventory.MigrationStatus
	SourceAction{Kind: SourceReport, Phase: inventory.Undecided, Why: "silence"}.Record(&s)
	if s.Phase != inventory.Undecided || s.Reason != "silence" || s.Released {
		t.Errorf("%+v", s)
	}
	SourceAction{Kind: SourceReport, Phase: inventory.Released}.Record(&s)
	SourceAction{Kind: SourceReport, Phase: inventory.OnTarget}.Record(&s)
	if !s.Released || s.SourceDiscarded || s.Phase != inventory.OnTarget {
		t.Errorf("%+v", s)
	}
	SourceAction{Kind: RecordDiscarded, Why: "the target is dead"}.Record(&s)
	if !s.SourceDiscarded || s.Phase != inventory.OnTarget || s.Reason != "the target is dead" {
		t.Errorf("%+v", s)
	}
	was := s
	SourceAction{Kind: SendRelease, Why: "nothing to write"}.Record(&s)
	if !reflect.DeepEqual(s, was) {
		t.Errorf("%+v", s)
	}
}
