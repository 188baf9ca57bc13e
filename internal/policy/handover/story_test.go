package handover

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

var rewrite = flag.Bool("rewrite", false, "write what the stories and tables say now into testdata; review it as prose")

// TestStories walks testdata/*.txt. A story is made of blocks: commands, a line of dashes, and what they lead to. The commands are
//
//	source: EVENT [ANSWER] [authority=DURATION] [killed before ACTION] [(why)]
//	target: EVENT          [authority=DURATION] [killed before ACTION] [(why)]
//	source: restart        (and target: restart) a new agent reads the journal
//	journal                shows both journals
//	post-copy              the migration is one of that mode; told first
//
// Actions are printed in the order in which they are to be done, and the journals are kept. Authority is 2 s unless told.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			told := &story{t: t, source: NewSource(testID), target: NewTarget(testID)}
			compare(t, file, string(text), told.walk(string(text)))
		})
	}
}

func compare(t *testing.T, file, old, now string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != now {
		t.Errorf("%s tells another story now; go test -rewrite writes it down for review. Now:\n%s", file, now)
	}
}

type story struct {
	t                *testing.T
	source           Source
	target           Target
	mode             inventory.Mode
	sources, targets []Entry // the journals
}

// walk returns the text with what its commands lead to now.
func (st *story) walk(text string) string {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		commands, _, _ := strings.Cut(block, "\n----")
		out.WriteString(commands)
		var told []string
		for line := range strings.Lines(commands) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				told = append(told, st.command(line)...)
			}
		}
		if told != nil {
			out.WriteString("\n----\n" + strings.Join(told, "\n"))
		}
		out.WriteString("\n\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func (st *story) command(line string) []string {
	if line == "post-copy" {
		st.mode, st.source.Mode, st.target.Mode = inventory.PostCopy, inventory.PostCopy, inventory.PostCopy
		return nil
	}
	if line == "journal" {
		return []string{"source's journal: " + entriesOf(st.sources), "target's journal: " + entriesOf(st.targets)}
	}
	who, rest, ok := strings.Cut(line, ": ")
	if !ok {
		st.t.Fatalf("%q is no command", line)
	}
	rest, why := cut(rest, " (")
	rest, killed := cut(rest, " killed before ")
	rest, left := cut(rest, " authority=")
	authority := 2 * time.Second
	if left != "" {
		var err error
		if authority, err = time.ParseDuration(left); err != nil {
			st.t.Fatal(err)
		}
	}
	name, answered := cut(rest, " ")
	why = strings.TrimSuffix(why, ")")
	var told []string
	switch who {
	case "source":
		was := st.source.State
		var lines []string
		if name == "restart" {
			st.source = RestoreSource(testID, st.sources)
			st.source.Mode = st.mode
		} else {
			e := SourceEvent{Kind: SourceEventKind(name), Answer: Answer(answered), Authority: authority, Why: why}
			known(st.t, allSourceEvents, e.Kind)
			var actions []SourceAction
			st.source, actions = st.source.Step(e)
			for _, a := range actions {
				if killed != "" && string(a.Kind) == killed {
					lines = append(lines, "KILLED")
					break
				}
				if a.Kind == SourceJournal {
					st.sources = append(st.sources, a.Entry)
				}
				lines = append(lines, a.tell())
			}
		}
		told = tell(who, string(was), string(st.source.State), lines)
		st.source = again(st.t, st.source)
	case "target":
		was := st.target.State
		var lines []string
		if name == "restart" {
			st.target = RestoreTarget(testID, st.targets)
			st.target.Mode = st.mode
		} else {
			e := TargetEvent{Kind: TargetEventKind(name), Authority: authority, Why: why}
			known(st.t, allTargetEvents, e.Kind)
			var actions []TargetAction
			st.target, actions = st.target.Step(e)
			for _, a := range actions {
				if killed != "" && string(a.Kind) == killed {
					lines = append(lines, "KILLED")
					break
				}
				if a.Kind == TargetJournal {
					st.targets = append(st.targets, a.Entry)
				}
				lines = append(lines, a.tell())
			}
		}
		told = tell(who, string(was), string(st.target.State), lines)
		st.target = again(st.t, st.target)
	default:
		st.t.Fatalf("%q is neither source nor target", who)
	}
	return told
}

// again returns the value after a trip through JSON, since that is how it may be kept.
func again[M comparable](t *testing.T, machine M) M {
	t.Helper()
	text, err := json.Marshal(machine)
	if err != nil {
		t.Fatal(err)
	}
	var back M
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if back != machine {
		t.Errorf("%+v comes back from JSON as %+v", machine, back)
	}
	return back
}

func known[K comparable](t *testing.T, all []K, kind K) {
	t.Helper()
	if !slices.Contains(all, kind) {
		t.Fatalf("there is no event %v", kind)
	}
}

func cut(s, sep string) (before, after string) {
	before, after, _ = strings.Cut(s, sep)
	return strings.TrimSuffix(before, ","), after
}

func tell(who, was, is string, lines []string) []string {
	head := who + " " + was
	if was != is {
		head += " -> " + is
	}
	told := []string{head}
	for _, l := range lines {
		told = append(told, "  "+l)
	}
	return told
}

func entriesOf(entries []Entry) string {
	var list []string
	for _, e := range entries {
		list = append(list, string(e.Kind))
	}
	return strings.Join(list, " ")
}

func (a SourceAction) tell() string {
	if a.Kind == SourceJournal {
		return fmt.Sprintf("journal %s%s", a.Entry.Kind, because(a.Entry.Why))
	}
	if a.Kind == SourceReport {
		return fmt.Sprintf("report %v%s", a.Phase, because(a.Why))
	}
	return string(a.Kind) + because(a.Why)
}

func (a TargetAction) tell() string {
	if a.Kind == TargetJournal {
		return fmt.Sprintf("journal %s%s", a.Entry.Kind, because(a.Entry.Why))
	}
	if a.Kind == SendAnswer {
		return fmt.Sprintf("answer %s%s", a.Answer, because(a.Why))
	}
	return string(a.Kind) + because(a.Why)
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}
