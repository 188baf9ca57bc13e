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

// TestTheExplorerFindsEachBrokenRule breaks one rule at a time: an exploration that holds then would prove nothing.
func TestTheExplorerFindsEachBrokenRule(t *testing.T) {
	const two, stale, stuck = "two running", "stale memory", "stuck"
	for _, defect := range []struct {
		name  string
		needs kinds // the smallest walk that can show it
		rules rules
		want  []string // one of these
	}{
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
			defect.rules.free = true
			defect.rules.noFences = defect.needs != fencesToo
			if defect.needs == faultsToo {
				defect.rules.budget = 1
			}
			n, found := explore(defect.rules)
			if found == nil {
				t.Fatalf("%d states, and nothing was found: the explorer is blind to this rule", n)
			}
			if !slices.ContainsFunc(defect.want, func(w string) bool { return strings.Contains(found.what, w) }) {
				t.Errorf("found %q, want one of %q", found.what, defect.want)
			}
			t.Logf("%d states until: %s\n  %s", n, found.what, strings.Join(found.path, "\n  "))
		})
	}
}
