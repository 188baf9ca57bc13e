package warden

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// The words that an agent says to the guard, each as "WORD NUMBER ARGUMENTS". The answer to each is "ok NUMBER" or "no NUMBER KIND: WHY", KIND being
// a fault's, and comes after what was said counts and is written down.
const (
	saysAuthority = "authority" // FENCES UNTIL
	saysShorten   = "shorten"   // UNTIL
	saysGiveUp    = "give-up"
	saysVM        = "vm"      // ID ARBITER stopped|runs
	saysStands    = "stands"  // ID
	saysGone      = "gone"    // ID
	saysCleared   = "cleared" // answered when it is so
	saysUnwatched = "unwatched"
)

// The words of the warden. Moments are in nanoseconds of CLOCK_BOOTTIME.
const (
	tellsHello   = "hello"   // FENCES UNTIL, before anything else
	tellsFencing = "fencing" // FENCING, "-" for nobody, whenever it is another one
	tellsOK      = "ok"
	tellsNo      = "no"
)

// guardWords are those that are the guard's to hear.
var guardWords = []string{saysAuthority, saysShorten, saysGiveUp, saysVM, saysStands, saysGone, saysCleared, saysUnwatched}

// forGuard reports whether the text is a word of the guard's.
func forGuard(text string) bool {
	first, _, _ := strings.Cut(text, " ")
	return slices.Contains(guardWords, first)
}

// take takes a word, has what follows from it written down, and answers.
func (g *guard) take(w word) {
	if w.text == endWord {
		g.ending = true
		return
	}
	if w.from != g.agent.Load() {
		return // of an agent that has ended
	}
	fields := strings.Fields(w.text)
	if len(fields) < 2 {
		return // nobody could tell which word an answer is to
	}
	number := fields[1]
	w.answer = func(text string) {
		what, why, _ := strings.Cut(text, " ")
		w.from.tell(strings.TrimSpace(what + " " + number + " " + why))
	}
	if fields[0] == saysCleared {
		if len(g.wanters) == wantersMax {
			w.answer(refusal(fault.New(fault.NoResources, "too many wait for that already")))
			return
		}
		g.wanters = append(g.wanters, w) // the look that follows answers, this one or a later one
		return
	}
	if err := g.obey(fields[0], fields[2:]); err != nil {
		w.answer(refusal(err))
		return
	}
	// An authority that is back lets VMs run on before its agent hears of it: the agent will speak to them.
	if !g.calm && !g.behind && fields[0] == saysAuthority {
		g.look()
	}
	g.write()
	w.answer(tellsOK)
}

// obey does what a word says.
func (g *guard) obey(what string, args []string) error {
	wanted := map[string]int{saysAuthority: 2, saysShorten: 1, saysGiveUp: 0, saysVM: 3, saysStands: 1, saysGone: 1, saysUnwatched: 0}[what]
	if len(args) != wanted {
		return fault.New(fault.Invalid, "%s takes %d arguments, not %d", what, wanted, len(args))
	}
	switch what {
	case saysAuthority:
		fences, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return fault.New(fault.Invalid, "fences: %w", err)
		}
		until, err := parseMoment(args[1])
		if err != nil {
			return err
		}
		if (fences != g.machine.Fences || g.machine.Over) && !g.list() {
			return errBlind
		}
		g.machine.Told(fences, until, g.cgroups) // the list of the last look where nothing hangs on it
		g.unwatched = false
		g.calm = g.calm && g.machine.Clean()
	case saysShorten:
		until, err := parseMoment(args[0])
		if err != nil {
			return err
		}
		g.machine.Shorten(until)
	case saysGiveUp:
		ok := g.list()
		g.machine.GivenUp(g.cgroups) // what was not seen runs without authority, and dies for that
		g.calm = false
		if !ok {
			return errBlind
		}
	case saysVM:
		arbiter := authority.Arbiter(args[1])
		if arbiter != authority.LeaseArbitrates && arbiter != authority.StorageArbitrates {
			return fault.New(fault.Invalid, "arbiter %q", args[1])
		}
		if args[2] != wordStopped && args[2] != wordRuns {
			return fault.New(fault.Invalid, "state %q", args[2])
		}
		id, stopped := authority.VM(args[0]), args[2] == wordStopped
		g.machine.VM(id, arbiter, stopped)
		g.calm = false
		return g.reach(id, !stopped && arbiter == authority.LeaseArbitrates)
	case saysStands:
		id := authority.VM(args[0])
		g.machine.Stands(id)
		g.calm = false
		return g.reach(id, false)
	case saysGone:
		g.machine.Gone(authority.VM(args[0]))
		delete(g.hidden, authority.VM(args[0]))
		g.calm = false
	case saysUnwatched:
		g.unwatched = true
	}
	return nil
}

// errBlind refuses what hangs on a look that failed.
var errBlind = fault.New(fault.Unavailable, "the kernel does not say which VMs live")

// refusal is the answer no.
func refusal(err error) string {
	return tellsNo + " " + fault.KindOf(err).String() + ": " + err.Error()
}

// parseRefusal reads why an answer is no. A warden from before kinds were said gives the text alone.
func parseRefusal(text string) error {
	name, why, _ := strings.Cut(text, ": ")
	if kind := fault.ParseKind(name); kind != fault.Unknown {
		return fault.New(kind, "%s", why)
	}
	return fault.New(fault.Conflict, "%s", cmp.Or(text, "it gives no reason"))
}

// hiddenMax bounds what is remembered of VMs that cannot be seen; one that is not remembered may not run.
const hiddenMax = 1024

// reach looks whether a VM that is about to run is where it could be ended. One that is not, since QEMU got no cgroup of its own, may run only
// while nobody counts on a watchdog, and keeps this host from having one until it is gone.
func (g *guard) reach(id authority.VM, runs bool) error {
	delete(g.hidden, id)
	if !runs || g.groups == nil {
		return nil
	}
	seen := g.list()
	if seen && slices.ContainsFunc(g.cgroups, func(c authority.Cgroup) bool { return c.VM == id && c.Living }) {
		return nil
	}
	g.hidden[id] = true
	switch {
	case !g.armed && len(g.hidden) < hiddenMax:
		return nil
	case !seen:
		return errBlind
	}
	return fault.New(fault.Incompatible, "its qemu has no cgroup of its own, by which it could be ended: see godwit doctor")
}

// The states of a VM in words.
const (
	wordStopped = "stopped"
	wordRuns    = "runs"
)

func vmWords(arbiter authority.Arbiter, stopped bool) string {
	state := wordRuns
	if stopped {
		state = wordStopped
	}
	return string(arbiter) + " " + state
}

// parseMoment reads a moment of this boot.
func parseMoment(text string) (authority.Moment, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fault.New(fault.Invalid, "moment %q", text)
	}
	return time.Duration(n), nil
}

// noFencing stands for FencedByNobody, which has no word of its own.
const noFencing = "-"

func fencingWord(f inventory.Fencing) string {
	return tellsFencing + " " + cmp.Or(string(f), noFencing)
}

func momentWord(m authority.Moment) string { return fmt.Sprint(int64(m)) }
