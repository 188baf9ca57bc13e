package handover

import (
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// sourceDefect makes rules in which the source does something else where wrong says so.
func sourceDefect(wrong func(s Source, e SourceEvent, next *Source, actions *[]SourceAction)) rules {
	r := goodRules()
	r.source = func(s Source, e SourceEvent) (Source, []SourceAction) {
		next, actions := s.Step(e)
		wrong(s, e, &next, &actions)
		return next, actions
	}
	return r
}

func targetDefect(wrong func(t Target, e TargetEvent, next *Target, actions *[]TargetAction)) rules {
	r := goodRules()
	r.target = func(b Target, e TargetEvent) (Target, []TargetAction) {
		next, actions := b.Step(e)
		wrong(b, e, &next, &actions)
		return next, actions
	}
	return r
}

func entry(kind EntryKind) Entry { return Entry{Migration: testID, Kind: kind} }

// kinds says what a walk that is to show a defect needs beside killed agents, dying QEMUs and messages that come late, twice or never.
type kinds int

const (
	crashes   kinds = iota // nothing more
	faultsToo              // a journal that fails, a reboot
	fencesToo              // authority that ends
)

type brokenRule struct {
	name  string
	needs kinds // the smallest walk that can show it
	rules rules
	want  []string // one of these
}

func (d brokenRule) found(t *testing.T) {
	n, found := explore(d.rules)
	if found == nil {
		t.Fatalf("%s: %d states, and nothing was found: the explorer is blind to this rule", d.rules.walk, n)
	}
	if !slices.ContainsFunc(d.want, func(w string) bool { return strings.Contains(found.what, w) }) {
		t.Errorf("found %q, want one of %q", found.what, d.want)
	}
	t.Logf("%d states until: %s\n  %s", n, found.what, strings.Join(found.path, "\n  "))
}

// TestTheExplorerFindsEachBrokenRule breaks one rule at a time: an exploration that holds then would prove nothing.
func TestTheExplorerFindsEachBrokenRule(t *testing.T) {
	const two, stale, stuck = "two running", "stale memory", "stuck"
	for _, defect := range []brokenRule{
		{"the source releases before QEMU has completed", crashes, sourceDefect(func(_ Source, _ SourceEvent, next *Source, actions *[]SourceAction) {
			if slices.ContainsFunc(*actions, func(a SourceAction) bool { return a.Kind == ContinueSwitchover }) {
				next.State, next.Released = SourceReleased, true
				*actions = append(*actions, SourceAction{Kind: SourceJournal, Entry: entry(EntryReleased)}, SourceAction{Kind: SendRelease})
			}
		}), []string{two, stale}},
		{"the target runs on a timeout", crashes, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if b.State == TargetLoadedUp && e.Kind == TargetTick {
				next.State = TargetResuming
				*actions = []TargetAction{{Kind: TargetJournal, Entry: entry(EntryResuming)}, {Kind: Cont}}
			}
		}), []string{two, stale}},
		{"the target takes over instead of discarding", crashes, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if b.State == TargetLoadedUp && e.Kind == TargetDiscard {
				next.State = TargetResuming
				*actions = []TargetAction{{Kind: TargetJournal, Entry: entry(EntryResuming)}, {Kind: Cont}}
			}
		}), []string{two, stale}},
		{"the source resumes after the release without returned", crashes, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceReleased && e.Kind == SourceTick {
				next.State, *actions = SourceResuming, []SourceAction{{Kind: ResumeHere}}
			}
		}), []string{two, stale}},
		{"the source ignores returned", crashes, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceReleased && (e.Answer == AnswerReturned || e.Answer == AnswerDiscarded) {
				*next, *actions = s, nil
			}
		}), []string{stuck}},
		{"the source sends the release before it is journalled", crashes, sourceDefect(func(_ Source, _ SourceEvent, _ *Source, actions *[]SourceAction) {
			if a := *actions; len(a) > 1 && a[0].Entry.Kind == EntryReleased {
				a[0], a[1] = a[1], a[0]
			}
		}), []string{two, stale}},
		{"the source resumes at once when the release cannot be journalled", faultsToo, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceReleased && e.Kind == SourceJournalFailed {
				next.State, *actions = SourceResuming, []SourceAction{{Kind: ResumeHere}}
			}
		}), []string{two, stale}},
		{"the source switches over without an heir", fencesToo, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceCopying && e.Kind == SourceStopped {
				s.Heir = true
				*next, *actions = s.Step(e)
			}
		}), []string{two, stale}},
		{"the source resumes when the target is fenced after the release", fencesToo, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceReleased && e.Kind == SourceTargetFenced {
				next.State, *actions = SourceResuming, []SourceAction{{Kind: ResumeHere}}
			}
		}), []string{two, stale}},
		{"the source forgets at a restart that it released", crashes, func() rules {
			r := goodRules()
			r.restoreA = func(id inventory.MigrationID, _ []Entry) Source { return RestoreSource(id, nil) }
			return r
		}(), []string{two, stale}},
		{"the source does not wait for the target after a reboot", faultsToo, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceAdopted && e.Kind == SourceFoundRebooted {
				*next, *actions = s.Step(SourceEvent{Kind: SourceFoundGone})
			}
		}), []string{two, stale}},
		{"the source does not record that it dropped the VM", fencesToo, sourceDefect(func(_ Source, _ SourceEvent, _ *Source, actions *[]SourceAction) {
			*actions = slices.DeleteFunc(slices.Clone(*actions), func(a SourceAction) bool { return a.Kind == RecordDiscarded })
		}), []string{stuck}},
		{"the target's discard is not final", crashes, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			*actions = slices.DeleteFunc(slices.Clone(*actions), func(a TargetAction) bool { return a.Kind == KillTarget })
			if b.State == TargetDiscarded && e.Kind == TargetReleased {
				next.State, *actions = TargetResuming, append(*actions, TargetAction{Kind: Cont})
			}
		}), []string{two, stale, "violation"}},
		{"the target answers before its discard is journalled", crashes, targetDefect(func(_ Target, _ TargetEvent, _ *Target, actions *[]TargetAction) {
			if a := *actions; len(a) > 2 && a[0].Entry.Kind == EntryDiscarded {
				a[0], a[1], a[2] = a[2], a[0], a[1]
			}
		}), []string{two, stale}},
		{"the target runs before it is journalled", crashes, targetDefect(func(_ Target, _ TargetEvent, _ *Target, actions *[]TargetAction) {
			if a := *actions; len(a) > 1 && a[1].Kind == Cont {
				a[0], a[1] = a[1], a[0]
			}
		}), []string{two, stale, "violation"}},
		{"the target gives back a VM that may have run", crashes, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if b.State == TargetResuming && e.Kind == TargetGone || b.Doubt && e.Kind == TargetFoundGone {
				*next, *actions = b.discard("gone", "")
			}
		}), []string{two, stale}},
		{"the target gives back what it does not remember after a reboot", faultsToo, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if b.State == TargetAdopted && e.Kind == TargetFoundRebooted {
				*next, *actions = b.discard("gone", "")
			}
		}), []string{two, stale}},
		{"the target does not write itself owner", crashes, targetDefect(func(_ Target, _ TargetEvent, _ *Target, actions *[]TargetAction) {
			*actions = slices.DeleteFunc(slices.Clone(*actions), func(a TargetAction) bool { return a.Kind == WriteOwner })
		}), []string{stuck}},
		{"a migration id carries a second switchover", crashes, func() rules {
			r := sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
				if s.State == SourceSwitching && e.Kind == SourceFailed {
					next.State, next.Ends, *actions = SourceCopying, inventory.Planned, nil
				}
			})
			r.secondTry = true
			return r
		}(), []string{two, stale}},
		{"HA does not wait for the heir", fencesToo, func() rules {
			r := goodRules()
			r.ignoreHA = true
			return r
		}(), []string{two, stale}},
		{"the source clears the heir after the release", fencesToo, func() rules {
			r := goodRules()
			r.clearEver = true
			return r
		}(), []string{two, stale}},
	} {
		t.Run(defect.name, func(t *testing.T) {
			defect.rules.walk = map[kinds]walk{
				crashes: {free: true, noFences: true}, faultsToo: {free: true, noFences: true, budget: 1}, fencesToo: {budget: 2},
			}[defect.needs]
			defect.found(t)
		})
	}
}

// without returns a rule that forgets an action of the source.
func without(kind SourceActionKind) rules {
	return sourceDefect(func(_ Source, _ SourceEvent, _ *Source, actions *[]SourceAction) {
		*actions = slices.DeleteFunc(slices.Clone(*actions), func(a SourceAction) bool { return a.Kind == kind })
	})
}

// withoutAtTarget is the same of the target.
func withoutAtTarget(kind TargetActionKind) rules {
	return targetDefect(func(_ Target, _ TargetEvent, _ *Target, actions *[]TargetAction) {
		*actions = slices.DeleteFunc(slices.Clone(*actions), func(a TargetAction) bool { return a.Kind == kind })
	})
}

// with sets what a rule has beside the machines.
func with(set func(*rules)) rules {
	r := goodRules()
	set(&r)
	return r
}

// TestTheExplorerFindsWhatIsLostOrLeft breaks the rules that the first list says nothing of: those of post-copy, of what may be lost and
// of what may be left, of the store and the leader. Each is walked as the rules themselves are, with one fault or two.
func TestTheExplorerFindsWhatIsLostOrLeft(t *testing.T) {
	const two, stale, stuck, memory, source, number = "two running", "stale memory", "stuck", "memory lost", "source lost", "generation used twice"
	pre1, pre2 := walk{budget: 1}, walk{budget: 2}
	post0, post1, post2 := walk{mode: inventory.PostCopy}, walk{mode: inventory.PostCopy, budget: 1}, walk{mode: inventory.PostCopy, budget: 2}
	list := []struct {
		brokenRule
		walk walk
	}{
		{brokenRule{"the source ends its QEMU instead of giving up the copy", 0, sourceDefect(func(_ Source, e SourceEvent, _ *Source, actions *[]SourceAction) {
			if e.Kind == SourceCancel || e.Kind == SourceAbort {
				*actions = []SourceAction{{Kind: KillSource}}
			}
		}), []string{source}}, pre1},
		{brokenRule{"the target leaves its port and its lock record", 0, withoutAtTarget(FreeTarget), []string{stuck}}, pre1},
		{brokenRule{"the target leaves its QEMU when it discards", 0, withoutAtTarget(KillTarget), []string{stuck}}, pre1},
		{brokenRule{"the target never opens its port", 0, withoutAtTarget(OpenPort), []string{stuck}}, pre1},
		{brokenRule{"the source leaves what it had", 0, without(FreeSource), []string{stuck}}, pre1},
		{brokenRule{"the source leaves its QEMU", 0, without(KillSource), []string{stuck}}, pre1},
		{brokenRule{"the source leaves the heir", 0, without(ClearHeir), []string{stuck}}, pre1},
		{brokenRule{"the source frees what its VM needs when an attempt has failed", 0, sourceDefect(func(_ Source, _ SourceEvent, next *Source, actions *[]SourceAction) {
			if next.State == SourceEnding {
				*actions = append([]SourceAction{{Kind: FreeSource}}, *actions...)
			}
		}), []string{stuck}}, pre1},
		{brokenRule{"the generation of a failed attempt is used again", 0, with(func(r *rules) { r.unburnt = true }), []string{number}}, pre1},
		{brokenRule{"a leader's write is not compared with what it was decided on", 0, with(func(r *rules) { r.trustPlan = true }), []string{two}}, walk{budget: 1, free: true}},
		{brokenRule{"the leader gives the number of an heir that was not named", 0, with(func(r *rules) { r.noGap = true }), []string{"A reports a violation"}}, pre2},
		{brokenRule{"the leader's gift is taken for the migration's", 0, with(func(r *rules) { r.credulous = true }), []string{"A reports a violation"}}, pre2},
		{brokenRule{"what a migration left is taken for the VM's own", 0, with(func(r *rules) { r.keepsLeft = true }), []string{stuck}}, pre2},
		{brokenRule{"a source that gave its memory up does not hear that the target discarded", 0, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceDropped && e.Kind == SourceAnswered {
				*next, *actions = s, nil
			}
		}), []string{stuck}}, pre1},

		{brokenRule{"the source's QEMU is ended when the target is owner, though it pulls", 0, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if e.Kind == SourceOwnerTarget && s.mayServe() {
				s.Ends = inventory.Completed
				*next, *actions = s.leave()
			}
		}), []string{stuck, memory}}, post0},
		{brokenRule{"the target takes itself for whole when it runs", 0, targetDefect(func(_ Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if e.Kind == TargetContOK && next.Pulling {
				*next, *actions = next.whole(true, "")
				*actions = append(*actions, TargetAction{Kind: WriteOwner}, TargetAction{Kind: OpenPort})
			}
		}), []string{stuck, memory}}, post0},
		{brokenRule{"a target whose source is lost stalls on", 0, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if e.Kind == TargetPullLost {
				*next, *actions = b, nil
			}
		}), []string{stuck}}, post1},
		{brokenRule{"a target whose source is lost keeps its QEMU", 0, targetDefect(func(_ Target, e TargetEvent, _ *Target, actions *[]TargetAction) {
			if e.Kind == TargetPullLost {
				*actions = slices.DeleteFunc(slices.Clone(*actions), func(a TargetAction) bool { return a.Kind == KillTarget })
			}
		}), []string{stuck, two}}, post1},
		{brokenRule{"the source does not say that its QEMU is gone", 0, without(SendPullLost), []string{stuck}}, post1},
		{brokenRule{"the source does not go on with a pull that was paused", 0, without(ResumePull), []string{stuck}}, post1},
		{brokenRule{"the target does not go on with a pull that was paused", 0, withoutAtTarget(RecoverPull), []string{stuck}}, post1},
		{brokenRule{"a pause of the pull is taken for its end", 0, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if e.Kind == TargetPullPaused && b.Pulling {
				*next, *actions = b.cutOff(e, b.State == TargetRunning || b.State == TargetOwner)
			}
		}), []string{memory}}, post1},
		{brokenRule{"the target discards what the source cannot run any more", 0, targetDefect(func(b Target, e TargetEvent, next *Target, actions *[]TargetAction) {
			if e.Kind == TargetAuthorityShort && b.State == TargetLoadedUp {
				*next, *actions = b.discard("short", "")
			}
		}), []string{memory}}, post1},
		{brokenRule{"the target is told of the source's loss before its QEMU was asked", 0, with(func(r *rules) { r.hasty = true }), []string{memory}}, post1},
		{brokenRule{"the source takes a switched QEMU for one that may run on", 0, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if e.Kind == SourceFoundPull {
				*next, *actions = s.Step(SourceEvent{Kind: SourceFoundDone, Authority: e.Authority})
			}
		}), []string{stuck, memory, two, "violation"}}, post1},
		{brokenRule{"a restarted source that the store has told of the owner forgets the pull", 0, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceAdopted && e.Kind == SourceOwnerTarget {
				s.Ends = inventory.Completed
				*next, *actions = s.leave()
			}
		}), []string{stuck, memory}}, post1},
		{brokenRule{"a restarted owner forgets that it pulls", 0, targetDefect(func(b Target, e TargetEvent, next *Target, _ *[]TargetAction) {
			if b.State == TargetAdopted && e.Kind == TargetOwnerWritten {
				next.Pulling = false
			}
		}), []string{stuck, memory}}, post1},
		{brokenRule{"the source ends the attempt when a switched QEMU dies whose release may be in the journal", 0, sourceDefect(
			func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
				if s.State == SourceSwitched && e.Kind == SourceGone {
					*next, *actions = s.died(e)
				}
			}), []string{two, stale, stuck, "violation"}}, post2},
	}
	if *whole {
		list = append(list, struct {
			brokenRule
			walk walk
		}{brokenRule{"a restarted source does not see that its attempt had ended", 0, sourceDefect(func(s Source, e SourceEvent, next *Source, actions *[]SourceAction) {
			if s.State == SourceReleased && e.Kind == SourceHeirCleared {
				*next, *actions = s, nil
			}
		}), []string{stuck}}, walk{budget: 3}})
	}
	for _, defect := range list {
		t.Run(defect.name, func(t *testing.T) {
			defect.rules.walk = defect.walk
			defect.found(t)
		})
	}
}
