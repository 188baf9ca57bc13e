package warden

import (
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// groups are the VMs' cgroups of this host; host.Cgroups are.
type groups interface {
	List(into []host.Cgroup) ([]host.Cgroup, error)
	Freeze(name string) error
	Thaw(name string) error
	Kill(name string) error
}

// Watchdog is what resets this machine when it was not fed for a while. driver/watchdog has the real one. Only the guard's goroutine calls it;
// none of its methods may wait for anything but the device.
type Watchdog interface {
	// Open opens and arms it. It returns an error when it does not reset the machine within the timeout that was wanted.
	Open() error
	// Feed has it count anew.
	Feed() error
	// Disarm takes it off and closes it.
	Disarm() error
}

// clock is where the guard has its moments from, and what wakes it at one.
type clock struct {
	now   func() authority.Moment
	ring  <-chan struct{}
	setAt func(authority.Moment) error
}

// The bounds of the guard.
const (
	unprovenEvery = 50 * time.Millisecond  // from one look to the next while something is to die or to freeze
	calmEvery     = time.Second            // and while nothing is to be done
	openEvery     = 10 * time.Second       // between two tries to open a watchdog that did not open
	wordsMax      = 64                     // words that wait for the guard, and that it takes at once
	wantersMax    = 16                     // callers that wait for Clean
	stoodMin      = 300 * time.Millisecond // so much later than it was to look, this process stood still
	hearMax       = 200 * time.Millisecond // for what was said meanwhile
)

// guard ends what may not run. It is a loop with a goroutine of its own, apart from the one that looks after the roles: nothing in it
// waits for a disk, a log or a process. It reads the kernel, writes to cgroups, the watchdog and tmpfs, and answers lines without
// waiting for their readers.
type guard struct {
	machine  authority.Warden
	groups   groups   // nil: this host has no cgroups, so it proves nothing
	watchdog Watchdog // nil: none is wanted
	timeout  time.Duration
	clock    clock
	notes    *notes // nil: nothing is written down
	log      *diary

	words chan word
	over  chan struct{}
	agent atomic.Pointer[ear]   // the one that is heard
	said  atomic.Pointer[hello] // the last state, for the agent that is started next
	// telling is held from a look at agent or said to the telling of it, so that no word overtakes another. Who tells does not wait.
	telling sync.Mutex

	cgroups    []authority.Cgroup // reused
	seen       []host.Cgroup      // reused
	calm       bool               // the authority is valid, and the last look at the cgroups found nothing to do
	unproven   bool
	complaints map[string]string                           // what was said, and why
	acted      map[authority.VM]authority.WardenActionKind // what was done last about those that it was done about in the last look
	hidden     map[authority.VM]bool                       // they run, or are about to, and are in no cgroup that is looked at
	wanters    []word
	armed      bool
	fedAt      authority.Moment // when it was fed last
	feedAt     authority.Moment // when it is due to be fed
	openAt     authority.Moment // when it is tried to be opened again
	unwatched  bool             // the store knows that nobody can fence this host
	ending     bool
	behind     bool // this process stood still: what it hears is old, and the last word counts
}

// ear is an agent's end of its line; tell does not wait for it.
type ear struct{ tell func(text string) }

// word is what an agent says to the guard.
type word struct {
	from   *ear
	text   string
	answer func(string) // set by take
}

// hello is what an agent learns when it is started.
type hello struct {
	fences  uint64
	until   authority.Moment
	fencing inventory.Fencing
}

// run guards until it was told to end and may.
func (g *guard) run() {
	defer close(g.over)
	for {
		if g.look() {
			return
		}
		at := g.next()
		g.complain("cannot set the alarm", "", g.clock.setAt(at))
		var first word
		select {
		case <-g.clock.ring:
		case first = <-g.words:
		}
		g.behind = g.clock.now()-at > stoodMin
		if first.text != "" {
			g.take(first)
		}
		// Those that wait already come before the kernel is asked again, also when the alarm rang: a warden that stood still finds both, and would
		// kill VMs whose authority the agent has renewed all the while.
		for range wordsMax {
			select {
			case w := <-g.words:
				g.take(w)
				continue
			default:
			}
			break
		}
		if g.behind {
			g.hear() // words that are on their way still
			g.behind = false
		}
	}
}

// hear takes what the agent said while this process stood still and could not hear: the authority was renewed all the while, perhaps, and what it knows of it is
// old. It costs no safety. A watchdog that is armed was not fed for as long as that took, and counts on.
func (g *guard) hear() {
	enough, quiet := time.After(time.Second), time.After(hearMax) // words that come one after the other are heard to the end
	for {
		select {
		case w := <-g.words:
			g.take(w)
			quiet = time.After(hearMax)
		case <-quiet:
			return
		case <-enough:
			return
		}
	}
}

// end has the guard end as soon as it may, and waits for that. Only the authority's end bounds that: VMs that nobody stopped, and whose host others
// believe to have a watchdog, must not outlive it.
func (g *guard) end() {
	g.words <- word{text: endWord}
	<-g.over
}

// endWord is said by the warden itself.
const endWord = "end"

// next returns when the guard has to look again, unless it is told something.
func (g *guard) next() authority.Moment {
	now := g.clock.now()
	at := now + calmEvery
	if g.unproven || g.ending {
		at = now + unprovenEvery
	}
	if until, ok := g.machine.FreezeAt(); ok && until > now {
		at = min(at, until)
	}
	if g.watchdog != nil && g.armed && !g.unproven {
		at = min(at, g.feedAt)
	}
	return at
}

// look asks the kernel, does what the machine says, and answers those who waited for it. It reports whether the guard is at its end.
func (g *guard) look() (over bool) {
	now := g.clock.now()
	valid := g.machine.Valid(now)
	g.calm = g.calm && valid
	g.cgroups = g.cgroups[:0]
	seen := !g.calm || g.ending
	if seen && !g.list() {
		seen = false
		if !valid || len(g.machine.Doomed()) > 0 {
			g.unproven = true // and nothing is fed: what cannot be seen may run
			return false
		}
	}
	fed, did := false, map[authority.VM]authority.WardenActionKind(nil)
	for _, a := range g.machine.Look(now, g.cgroups) {
		switch a.Kind {
		case authority.Feed:
			fed = true
		case authority.Clear:
			g.log.say(slog.LevelInfo, "nothing lives of an earlier authority")
		case authority.Freeze, authority.Thaw, authority.Kill:
			if did == nil {
				did = map[authority.VM]authority.WardenActionKind{}
			}
			did[a.VM] = a.Kind
			g.act(a)
		}
	}
	g.acted, g.unproven = did, !fed
	g.calm = valid && fed && did == nil
	if fed {
		g.feed(now)
	}
	g.write()
	if g.machine.Clean() {
		for _, w := range g.wanters {
			w.answer(tellsOK)
		}
		g.wanters = nil
	}
	return g.ending && g.mayEnd(seen)
}

// list reads the VMs' cgroups; false when the kernel does not say.
func (g *guard) list() bool {
	g.cgroups = g.cgroups[:0]
	if g.groups == nil {
		return true // fencing says that nothing is proven here
	}
	var err error
	g.seen, err = g.groups.List(g.seen[:0])
	g.complain("cannot see the vms", "", err)
	if err != nil {
		return false
	}
	for _, c := range g.seen {
		g.complain("cannot see a vm", c.Name, c.Err)
		g.cgroups = append(g.cgroups, authority.Cgroup{VM: authority.VM(c.Name), Living: c.Populated, Frozen: c.Frozen})
	}
	return true
}

// act does one thing about a VM. Whether it worked is for the next look to see.
func (g *guard) act(a authority.WardenAction) {
	name, why := string(a.VM), slog.String("why", a.Why)
	first := g.acted[a.VM] != a.Kind // it is said once, not at every look that finds it still to do
	var err error
	switch a.Kind {
	case authority.Freeze:
		if err = g.groups.Freeze(name); first {
			g.log.say(slog.LevelWarn, "freezing vm", slog.String("vm", name), why)
		}
	case authority.Thaw:
		if err = g.groups.Thaw(name); first {
			g.log.say(slog.LevelInfo, "thawing vm", slog.String("vm", name), why)
		}
	case authority.Kill:
		if err = g.groups.Kill(name); first {
			g.log.say(slog.LevelError, "killing vm", slog.String("vm", name), why)
		}
	case authority.Feed, authority.Clear:
	}
	g.complain("cannot act on a vm", name, err)
}

// complain says what went wrong, once until it is something else or over.
func (g *guard) complain(what, vm string, err error) {
	key := what + " " + vm
	if err == nil {
		delete(g.complaints, key)
		return
	}
	if why := err.Error(); g.complaints[key] != why && len(g.complaints) < complaintsMax {
		g.complaints[key] = why
		g.log.say(slog.LevelError, "warden hindered", slog.String("what", what), slog.String("vm", vm), slog.String("err", why))
	}
}

// complaintsMax bounds what is remembered of what was said.
const complaintsMax = 1024

// mayEnd takes the watchdog off if this process may leave the VMs alone, and reports whether it may. seen says that the kernel has just shown
// all of them.
func (g *guard) mayEnd(seen bool) bool {
	if !g.armed {
		return true
	}
	if !g.unwatched && (!seen || !g.machine.Dead(g.cgroups)) {
		return false
	}
	g.complain("cannot take the watchdog off, which will reset this machine", "", g.watchdog.Disarm())
	g.armed = false
	return true
}

// feed feeds the watchdog with a proof of the moment now, or opens it with one: to open a watchdog is to feed it.
func (g *guard) feed(now authority.Moment) {
	if g.watchdog == nil || g.groups == nil {
		return
	}
	if g.armed && now < g.feedAt {
		return
	}
	if late := g.clock.now() - now; late > authority.ProofMax {
		// This process stood still since it looked. What it saw is over; the next look comes right away.
		g.unproven = true
		return
	}
	if !g.armed {
		g.open(now)
		return
	}
	err := g.watchdog.Feed()
	g.complain("cannot feed the watchdog", "", err)
	switch {
	case err == nil:
		g.fedAt, g.feedAt = now, now+g.timeout/4
	case now > g.fedAt+g.timeout+authority.WatchdogGrain:
		g.giveUpWatchdog(now)
	default:
		g.feedAt = now + g.timeout/8
	}
}

// giveUpWatchdog closes a watchdog that took no food and resets nothing either: others must not take VMs for dead because of it.
func (g *guard) giveUpWatchdog(now authority.Moment) {
	_ = g.watchdog.Disarm() // that it takes nothing was said
	g.armed, g.openAt = false, now+openEvery
	g.log.say(slog.LevelError, "the watchdog can neither be fed nor does it reset this machine: it does not count as one", slog.Duration("timeout", g.timeout))
}

// open arms the watchdog, on a host that has authority or had it: one that never had runs nothing that must end.
func (g *guard) open(now authority.Moment) {
	if _, had := g.machine.FreezeAt(); now < g.openAt || g.ending || len(g.hidden) > 0 || !had && !g.machine.Over {
		return
	}
	err := g.watchdog.Open()
	g.complain("no watchdog: when this host falls silent, its VMs are started elsewhere only after somebody has confirmed that it is dead", "", err)
	if err != nil {
		g.openAt = now + openEvery
		return
	}
	g.armed, g.fedAt, g.feedAt = true, now, now+g.timeout/4
	g.log.say(slog.LevelInfo, "watchdog armed", slog.Duration("timeout", g.timeout))
}

// fencing says how others can know that what runs here is dead.
func (g *guard) fencing() inventory.Fencing {
	if g.armed && g.groups != nil && len(g.hidden) == 0 && !g.ending {
		return inventory.FencedByWatchdog
	}
	return inventory.FencedByNobody
}

// greet makes the agent that is about to be started the one that is heard, and says to it what it has to know first.
func (g *guard) greet(agent *ear) {
	g.telling.Lock()
	defer g.telling.Unlock()
	g.agent.Store(agent)
	said := g.said.Load()
	agent.tell(strings.Join([]string{tellsHello, strconv.FormatUint(said.fences, 10), momentWord(said.until)}, " "))
	agent.tell(fencingWord(said.fencing))
}

// write makes what the guard knows outlive it, and shows it to the next agent.
func (g *guard) write() {
	g.say(&hello{g.machine.Fences, g.machine.Until, g.fencing()})
	g.complain("cannot write the authority down: the next warden will know of none", "", g.notes.keep(g.machine, g.hidden))
}

// say keeps the state for the next agent, and tells this one what is new to it.
func (g *guard) say(now *hello) {
	g.telling.Lock()
	defer g.telling.Unlock()
	if last := g.said.Swap(now); last == nil || last.fencing != now.fencing {
		if agent := g.agent.Load(); agent != nil {
			agent.tell(fencingWord(now.fencing))
		}
	}
}
