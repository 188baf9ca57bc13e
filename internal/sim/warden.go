package sim

import (
	"time"

	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// The warden's looks, and what it does about its child.
const (
	lookEvery  = 500 * time.Millisecond
	lookAgain  = 50 * time.Millisecond // while something is not proven
	silentMax  = 2300 * time.Millisecond
	againAfter = 100 * time.Millisecond
	wordMax    = 500 * time.Millisecond // the agent waits for the warden's answer
)

// warden is one life of a host's main process.
type warden struct {
	h      *host
	p      *proc
	m      authority.Warden
	looks  int
	stale  bool // what it found written down was over, or less than the host has, and nobody has told it anything else yet
	ending bool // an ordered end: no child is started again
}

func (h *host) startWarden() {
	if !h.on {
		return
	}
	h.warden = &warden{h: h, p: &proc{host: h}, m: authority.NewWarden(h.w.settings, h.run.fences, h.run.until)}
	has := h.now() - (h.w.now - h.sent) + h.w.settings.Lease
	h.warden.stale = h.run.until != 0 && (!h.warden.m.Valid(h.now()) || h.run.until < has-h.w.settings.RenewEvery/2)
	for i, v := range h.w.vms {
		if said := h.run.said[i]; said.known {
			h.warden.m.VM(v.id, v.arbiter, said.stopped)
		}
	}
	h.warden.look()
	h.startAgent()
}

// startAgent starts the child again.
func (h *host) startAgent() {
	wd := h.warden
	h.w.after(againAfter, wd.p, func() {
		if h.warden == wd && !wd.ending && (h.agent == nil || h.agent.p.dead) {
			h.agent = newAgent(h)
			h.agent.begin()
		}
	})
}

// cgroups is what the kernel shows.
func (h *host) cgroups() []authority.Cgroup {
	var all []authority.Cgroup
	for _, q := range h.vms {
		if q != nil && !q.dead {
			all = append(all, authority.Cgroup{VM: q.vm.id, Living: true, Frozen: q.frozen})
		}
	}
	return all
}

// keep writes down what the next warden is to know.
func (wd *warden) keep() {
	wd.h.run.fences, wd.h.run.until = wd.m.Fences, wd.m.Until
}

// look does what the machine says, and comes back: soon while something is unproven, at the latest when the authority ends.
func (wd *warden) look() {
	h, w := wd.h, wd.h.w
	wd.looks++
	began, turn := w.now, wd.looks
	actions := wd.m.Look(h.now(), h.cgroups())
	again := lookAgain
	for _, a := range actions {
		switch a.Kind {
		case authority.Feed:
			again = lookEvery
			w.after(50*time.Microsecond, wd.p, func() {
				switch {
				case w.now-began <= authority.ProofMax:
					h.feed()
				case wd.looks == turn: // this process stood still since: it looks anew right away
					wd.look()
				}
			})
		case authority.Clear:
			if a := h.agent; a != nil && a.p.runs(w.now) {
				w.after(100*time.Microsecond, a.p, a.clear)
			}
		case authority.Freeze, authority.Thaw, authority.Kill:
			wd.act(a)
		}
	}
	next := h.now() + again
	if end := wd.m.Until - (w.settings.Lease - w.settings.Freeze); wd.m.Until != 0 && end > h.now() {
		next = min(next, end)
	}
	h.at(next, wd.p, func() {
		switch {
		case wd.looks != turn:
		case h.now() > next+lookAgain:
			// It was stopped. What its agent said meanwhile waits on the line and is taken first: a look before would kill VMs
			// whose authority was renewed all the time.
			w.after(time.Millisecond, wd.p, wd.look)
		default:
			wd.look()
		}
	})
}

func (wd *warden) act(a authority.WardenAction) {
	q := wd.h.vms[number(a.VM)]
	if q == nil || q.dead {
		return
	}
	switch a.Kind {
	case authority.Freeze:
		q.freeze(true)
	case authority.Thaw:
		q.freeze(false)
	case authority.Kill:
		if !q.killed {
			wd.h.w.say(string(wd.h.id), "warden kills %s: %s", a.VM, a.Why)
			wd.h.w.killedBy(q, a.Why)
		}
		q.kill()
	case authority.Feed, authority.Clear:
	}
}

// word tells the warden something and returns with whether it has taken it.
func (a *agent) word(tell func(*authority.Warden), done func(bool)) {
	h, w := a.h, a.h.w
	wd, ended := h.warden, false
	end := func(ok bool) {
		if !ended {
			ended = true
			done(ok)
		}
	}
	w.after(wordMax, a.p, func() { end(false) })
	w.after(100*time.Microsecond, wd.p, func() {
		tell(&wd.m)
		wd.keep()
		w.after(100*time.Microsecond, a.p, func() { end(true) })
	})
}

// tellVM says who arbitrates a VM's storage and whether it stands.
func (a *agent) tellVM(v *vm, stopped bool, done func(bool)) {
	a.word(func(m *authority.Warden) {
		m.VM(v.id, v.arbiter, stopped)
		a.h.run.said[v.i] = said{known: true, stopped: stopped}
	}, done)
}

// gone says that a VM has no QEMU here any more.
func (a *agent) gone(v *vm) {
	a.word(func(m *authority.Warden) {
		m.Gone(v.id)
		a.h.run.said[v.i] = said{}
	}, ignore)
}

// ignore is for words whose answer changes nothing.
func ignore(bool) {}
