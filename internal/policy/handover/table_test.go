package handover

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// TestTables writes down what every event does in every state, with the flags that make a difference there, so that no pair is
// left to chance and a change of one is seen in review.
func TestTables(t *testing.T) {
	over, post := inventory.Failed, inventory.PostCopy
	sources := []Source{
		{State: SourceCopying},
		{State: SourceCopying, Heir: true},
		{State: SourceGate},
		{State: SourceSwitching, Heir: true},
		{State: SourceAborting, Heir: true, Ends: over, Why: "earlier"},
		{State: SourceDone, Heir: true},
		{State: SourceReleased, Heir: true, Released: true, Sends: 1},
		{State: SourceReleased, Heir: true, Released: true, Sends: UndecidedAfter - 1, Gone: true},
		{State: SourceKeeping, Ends: over, Why: "earlier"},
		{State: SourceKeeping, Ends: over, Why: "earlier", Released: true},
		{State: SourceResuming, Ends: over, Why: "earlier"},
		{State: SourceResuming, Ends: over, Why: "earlier", Released: true, Resumes: ResumesMax - 1},
		{State: SourceWithdrawing, Ends: over, Why: "earlier", Released: true},
		{State: SourceWithdrawing, Ends: over, Why: "earlier", Released: true, Running: true},
		{State: SourceWithdrawing, Ends: over, Why: "earlier", Released: true, Gone: true},
		{State: SourceMoved, Heir: true, Released: true},
		{State: SourceDropped, Ends: over, Why: "earlier", Released: true, Dropped: true, Gone: true},
		{State: SourceEnding, Ends: over, Why: "earlier"},
		{State: SourceAdopted, Ends: over, Why: "restarted"},
		{State: SourceAdopted, Ends: over, Why: "restarted", Released: true},
		{State: SourceAdopted, Ends: over, Why: "restarted", Released: true, Dropped: true},
		{State: SourceOver, Ends: over, Why: "earlier"},
		{State: SourceOver, Ends: inventory.Completed, Released: true, Gone: true},
		{Mode: post, State: SourceSwitching, Heir: true},
		{Mode: post, State: SourceAborting, Heir: true, Ends: over, Why: "earlier"},
		{Mode: post, State: SourceSwitched, Heir: true, Switched: true},
		{Mode: post, State: SourceSwitched, Heir: true, Switched: true, Released: true, Paused: true},
		{Mode: post, State: SourceReleased, Heir: true, Switched: true, Released: true, Sends: 1},
		{Mode: post, State: SourceReleased, Heir: true, Switched: true, Released: true, Sends: 1, Gone: true},
		{Mode: post, State: SourceReleased, Heir: true, Switched: true, Released: true, Sends: 1, Pulled: true},
		{Mode: post, State: SourceWithdrawing, Ends: over, Why: "earlier", Switched: true, Released: true, Gone: true},
		{Mode: post, State: SourceServing, Heir: true, Switched: true, Released: true},
		{Mode: post, State: SourceServing, Heir: true, Switched: true, Released: true, Paused: true, Owned: true},
		{Mode: post, State: SourceServing, Heir: true, Switched: true, Released: true, Gone: true, Owned: true},
		{Mode: post, State: SourceMoved, Heir: true, Switched: true, Released: true, Pulled: true},
		{Mode: post, State: SourceAdopted, Ends: over, Why: "restarted"},
		{Mode: post, State: SourceAdopted, Ends: over, Why: "restarted", Released: true},
		{Mode: post, State: SourceAdopted, Ends: over, Why: "restarted", Released: true, Owned: true},
	}
	var events []SourceEvent
	for _, k := range allSourceEvents {
		if k != SourceAnswered {
			events = append(events, SourceEvent{Kind: k})
			continue
		}
		for _, a := range allAnswers {
			events = append(events, SourceEvent{Kind: k, Answer: a})
		}
	}
	var out strings.Builder
	reached := map[SourceState]bool{}
	for _, s := range sources {
		s.Migration = testID
		reached[s.State] = true
		fmt.Fprintf(&out, "%s\n", s.tell())
		var nothing []string
		for _, e := range events {
			name := strings.TrimSpace(string(e.Kind) + " " + string(e.Answer))
			long, short := s.row(e, AuthorityMargin), s.row(e, AuthorityMargin-1)
			switch {
			case long == "" && short == "":
				nothing = append(nothing, name)
			case long == short:
				fmt.Fprintf(&out, "    %-18s %s\n", name, long)
			default:
				fmt.Fprintf(&out, "    %-18s %s\n", name, long)
				fmt.Fprintf(&out, "    %18s %s\n", "authority short:", strings.TrimSpace("-> "+strings.TrimPrefix(short, "-> ")))
			}
		}
		fmt.Fprintf(&out, "    nothing: %s\n\n", strings.Join(nothing, ", "))
	}
	for _, s := range allSourceStates {
		if !reached[s] {
			t.Errorf("the table lacks the source's state %s", s)
		}
	}
	table(t, "testdata/source.table", out.String())

	targets := []Target{
		{State: TargetPreparing},
		{State: TargetIncoming},
		{State: TargetIncoming, Released: true},
		{State: TargetLoadedUp},
		{State: TargetResuming, Released: true},
		{State: TargetResuming, Released: true, Doubt: true},
		{State: TargetResuming, Released: true, Doubt: true, Waits: true},
		{State: TargetRunning, Released: true},
		{State: TargetOwner, Released: true},
		{State: TargetDiscarding, Released: true, Why: "earlier"},
		{State: TargetDiscarded, Why: "earlier"},
		{State: TargetAdopted},
		{State: TargetAdopted, Released: true},
		{State: TargetAdopted, Released: true, Doubt: true},
		{State: TargetLost, Why: "earlier"},
		{Mode: post, State: TargetIncoming},
		{Mode: post, State: TargetIncoming, Released: true},
		{Mode: post, State: TargetLoadedUp, Pulling: true},
		{Mode: post, State: TargetLoadedUp, Pulling: true, Released: true, Paused: true},
		{Mode: post, State: TargetLoadedUp},
		{Mode: post, State: TargetResuming, Pulling: true, Released: true},
		{Mode: post, State: TargetResuming, Pulling: true, Released: true, Doubt: true, Waits: true},
		{Mode: post, State: TargetRunning, Pulling: true, Released: true},
		{Mode: post, State: TargetRunning, Pulling: true, Released: true, Paused: true},
		{Mode: post, State: TargetRunning, Released: true},
		{Mode: post, State: TargetOwner, Pulling: true, Released: true},
		{Mode: post, State: TargetOwner, Released: true},
		{Mode: post, State: TargetDiscarded, Why: "earlier"},
		{Mode: post, State: TargetAdopted},
		{Mode: post, State: TargetAdopted, Released: true, Doubt: true},
	}
	out.Reset()
	reachedToo := map[TargetState]bool{}
	for _, b := range targets {
		b.Migration = testID
		reachedToo[b.State] = true
		fmt.Fprintf(&out, "%s\n", b.tell())
		var nothing []string
		for _, k := range allTargetEvents {
			long, short := b.row(TargetEvent{Kind: k}, AuthorityMargin), b.row(TargetEvent{Kind: k}, AuthorityMargin-1)
			switch {
			case long == "" && short == "":
				nothing = append(nothing, string(k))
			case long == short:
				fmt.Fprintf(&out, "    %-18s %s\n", k, long)
			default:
				fmt.Fprintf(&out, "    %-18s %s\n", k, long)
				fmt.Fprintf(&out, "    %18s %s\n", "authority short:", strings.TrimSpace("-> "+strings.TrimPrefix(short, "-> ")))
			}
		}
		fmt.Fprintf(&out, "    nothing: %s\n\n", strings.Join(nothing, ", "))
	}
	for _, s := range allTargetStates {
		if !reachedToo[s] {
			t.Errorf("the table lacks the target's state %s", s)
		}
	}
	table(t, "testdata/target.table", out.String())
}

func table(t *testing.T, file, now string) {
	t.Helper()
	old, err := os.ReadFile(file)
	if err != nil && !*rewrite {
		t.Fatal(err)
	}
	compare(t, file, string(old), strings.TrimRight(now, "\n")+"\n")
}

// row tells what an event does, or nothing when it does nothing.
func (s Source) row(e SourceEvent, authority time.Duration) string {
	e.Authority = authority
	next, actions := s.Step(e)
	if next == s && actions == nil {
		return ""
	}
	var list []string
	for _, a := range actions {
		a.Why, a.Entry.Why = "", ""
		list = append(list, a.tell())
	}
	return strings.TrimSpace("-> " + next.tell() + colon(list))
}

func (t Target) row(e TargetEvent, authority time.Duration) string {
	e.Authority = authority
	next, actions := t.Step(e)
	if next == t && actions == nil {
		return ""
	}
	var list []string
	for _, a := range actions {
		a.Why, a.Entry.Why = "", ""
		list = append(list, a.tell())
	}
	return strings.TrimSpace("-> " + next.tell() + colon(list))
}

func colon(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return ": " + strings.Join(list, ", ")
}

// tell names the state with the flags that are up.
func (s Source) tell() string {
	return flags(string(s.State), map[string]bool{
		s.Mode.String(): s.Mode != inventory.PreCopyOnly, "switched": s.Switched, "pulled": s.Pulled, "paused": s.Paused, "owned": s.Owned,
		"heir": s.Heir, "released": s.Released, "gone": s.Gone, "running": s.Running, "dropped": s.Dropped,
		"to end " + s.Ends.String():      s.Ends != inventory.Planned && s.State != SourceOver,
		s.Ends.String():                  s.State == SourceOver,
		fmt.Sprintf("%d sends", s.Sends): s.Sends > 1, fmt.Sprintf("%d resumes", s.Resumes): s.Resumes > 0,
	})
}

func (t Target) tell() string {
	return flags(string(t.State), map[string]bool{
		t.Mode.String(): t.Mode != inventory.PreCopyOnly, "pulling": t.Pulling, "paused": t.Paused,
		"released": t.Released, "in doubt": t.Doubt, "waits": t.Waits,
	})
}
