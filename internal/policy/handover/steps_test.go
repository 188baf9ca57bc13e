package handover

import "github.com/godwit-vm/godwit/internal/fault/defect"

// step is one thing that can happen in a world. A benign step needs no further fault: hosts that are able go on, messages
// arrive, commands succeed.
type step struct {
	name   [3]string // joined only for a path that is shown
	benign bool
	next   world
}

// steps appends to out everything that can happen next.
func (l *lab) steps(w world, out []step) []step {
	add := func(benign bool, next world, name ...string) {
		st := step{benign: benign, next: next}
		copy(st.name[:], name)
		out = append(out, st)
	}
	l.qemuSteps(w, add)
	l.sourceSteps(w, add)
	l.targetSteps(w, add)
	l.authoritySteps(w, add)
	l.rebootSteps(w, add)
	l.leaderSteps(w, add)
	return out
}

type adder func(benign bool, next world, name ...string)

// qemuSteps are what both QEMUs do by themselves.
func (l *lab) qemuSteps(w world, add adder) {
	n := w
	if w.aQEMU == copying {
		n.aQEMU = stopped
		add(true, l.newsA(n, SourceStopped), "A's QEMU stops at pre-switchover")
	}
	if w.aQEMU == device {
		if w.bQEMU == incoming {
			n := w
			n.bQEMU, n.loaded = loaded, true
			add(true, l.newsB(n, TargetLoaded), "B's QEMU has loaded")
		}
		if w.loaded {
			n.aQEMU = complete
			add(true, l.newsA(n, SourceCompleted), "A's QEMU completes")
		}
	}
	if w.aQEMU == alone && (l.secondTry || defect.Seeded.SecondSwitchover()) && l.sourceOf(w).State == SourceCopying {
		n.aQEMU = copying
		add(true, n, "A migrates once more")
	}
	if w.aQEMU == copying || w.aQEMU == stopped || w.aQEMU == device {
		// At pre-switchover QEMU does not notice that the target is gone.
		add(w.bQEMU == gone && w.aQEMU != stopped, l.newsA(runA(w), SourceFailed), "A's QEMU fails and runs on by itself")
	}
	if w.aQEMU != gone {
		add(false, l.killA(w), "A's QEMU dies")
	}
	if w.bQEMU != gone {
		add(false, l.killB(w), "B's QEMU dies")
	}
}

// sourceSteps are A's agent at work.
func (l *lab) sourceSteps(w world, add adder) {
	able := !w.aFenced
	add(false, l.restartA(w), "A's agent is killed and restarts")
	if w.aActs[0] != 0 {
		l.sourceActs(w, able, add)
		return
	}
	s := l.sourceOf(w)
	tell := func(benign bool, name string, w world, e SourceEvent) {
		if next := l.tellA(w, e); next != w {
			add(benign, next, name)
		}
	}
	if w.aNews[0] != 0 {
		n := w
		var id uint8
		id, n.aNews = shift(w.aNews)
		e := l.sNews.vals[id]
		add(able, l.tellA(n, e), "A hears", string(e.Kind))
	}
	for _, a := range []Answer{AnswerRunning, AnswerReturned, AnswerDiscarded, AnswerLost} {
		if w.msgs&answers[a] != 0 {
			tell(able, "A hears "+string(a), w, SourceEvent{Kind: SourceAnswered, Answer: a})
		}
	}
	tell(able, "A ticks", w, SourceEvent{Kind: SourceTick})
	if !w.spent {
		n := w
		n.spent = true
		tell(false, "a user cancels", n, SourceEvent{Kind: SourceCancel})
	}
	if s.State == SourceCopying || s.State == SourceGate || s.State == SourceSwitching || s.State == SourceDone {
		tell(s.State == SourceGate && w.heirs, "A's engine gives up", w, SourceEvent{Kind: SourceAbort})
	}
	asks := s.State == SourceCopying || s.State == SourceGate || s.State == SourceSwitching && defect.Seeded.HeirLate()
	if asks && w.owner == 'A' && !w.heirs && !w.aFenced {
		n := w
		n.heir, n.heirs = true, true
		add(true, l.newsA(n, SourceHeirSet), "A sets the heir")
	}
	if w.owner == 'A' && !w.heir && (s.State == SourceWithdrawing || s.State == SourceDropped) {
		tell(able, "A sees that there is no heir", w, SourceEvent{Kind: SourceHeirCleared})
	}
	switch w.owner {
	case 'B':
		tell(able, "A sees owner B", w, SourceEvent{Kind: SourceOwnerTarget})
	case 'C':
		tell(able, "A sees owner C", w, SourceEvent{Kind: SourceOwnerOther})
	}
	if w.bFenced && w.owner == 'A' {
		tell(able, "A hears that B is fenced", w, SourceEvent{Kind: SourceTargetFenced})
	}
	if l.clearEver && w.heir && !w.aFenced {
		n := w
		n.heir = false
		add(false, n, "A clears the heir")
	}
}

// sourceActs does the next action of A's agent, well or badly.
func (l *lab) sourceActs(w world, able bool, add adder) {
	id, rest := shift(w.aActs)
	a := l.sActs.vals[id]
	w.aActs = rest
	who, does := "A:", string(a.Kind)
	switch a.Kind {
	case ContinueSwitchover:
		if w.aQEMU == stopped {
			w.aQEMU = device
		}
		add(able, w, who, does)
	case CancelCopy:
		switch w.aQEMU {
		case copying, stopped, device:
			add(able, l.newsA(runA(w), SourceFailed), who, does, "and it runs on")
			if w.aQEMU == device {
				add(false, w, who, does, "but QEMU does not hear")
			}
		case alone:
			add(able, l.newsA(w, SourceFailed), who, does)
		case complete, gone, incoming, loaded, running:
			add(able, w, who, does)
		}
	case SourceJournal:
		n := w
		n.aJournal |= logBits[a.Entry.Kind]
		add(able, n, who, does, string(a.Entry.Kind))
		if !w.spent {
			for _, torn := range []world{w, n} {
				torn.spent = true
				add(false, l.tellA(torn, SourceEvent{Kind: SourceJournalFailed}), who, "fails to journal", string(a.Entry.Kind))
			}
		}
	case SendRelease:
		w.msgs |= msgRelease
		add(able, w, who, does)
	case SendDiscard:
		w.msgs |= msgDiscard
		add(able, w, who, does)
	case ResumeHere:
		if w.aQEMU == complete && w.aAuth != lost {
			add(able, l.newsA(runA(w), SourceResumed), who, does)
			add(false, l.tellA(w, SourceEvent{Kind: SourceResumeFailed}), who, does, "but QEMU refuses")
		} else {
			add(able, w, who, does) // gone: the news of that is under way
		}
	case KillSource:
		add(able, l.killA(w), who, does)
	case ClearHeir:
		if w.owner == 'A' && !w.aFenced {
			w.heir = false
			w = l.newsA(w, SourceHeirCleared)
		}
		add(able, w, who, does)
	case RecordDiscarded:
		w.aSettled = true
		add(able, w, who, does)
	case SourceViolation:
		w.bad = violationA
		add(able, w, who, does)
	case FreeSource, RefuseCancel, SourceReport:
		add(able, w, who, does)
	}
}

// targetSteps are B's agent at work.
func (l *lab) targetSteps(w world, add adder) {
	able := !w.bFenced
	add(false, l.restartB(w), "B's agent is killed and restarts")
	if w.bActs[0] != 0 {
		l.targetActs(w, able, add)
		return
	}
	tell := func(name string, e TargetEventKind) {
		if next := l.tellB(w, TargetEvent{Kind: e}); next != w {
			add(able, next, name)
		}
	}
	if w.bNews[0] != 0 {
		n := w
		var id uint8
		id, n.bNews = shift(w.bNews)
		e := l.tNews.vals[id]
		add(able, l.tellB(n, e), "B hears", string(e.Kind))
	}
	if w.msgs&msgRelease != 0 {
		tell("B hears release", TargetReleased)
	}
	if w.msgs&msgDiscard != 0 {
		tell("B hears discard", TargetDiscard)
	}
	if w.aSettled {
		tell("the leader tells B to discard", TargetDiscard)
	}
	if w.bAuth == short {
		tell("B's authority is short", TargetAuthorityShort)
	}
	if w.heirs && !w.heir && w.owner != 'B' {
		tell("B sees that it is no heir", TargetOwnerRefused)
	}
	tell("B ticks", TargetTick)
}

// targetActs does the next action of B's agent, well or badly.
func (l *lab) targetActs(w world, able bool, add adder) {
	id, rest := shift(w.bActs)
	a := l.tActs.vals[id]
	w.bActs = rest
	who, does := "B:", string(a.Kind)
	switch a.Kind {
	case TargetJournal:
		n := w
		n.bJournal |= logBits[a.Entry.Kind]
		add(able, n, who, does, string(a.Entry.Kind))
		if !w.spent {
			for _, torn := range []world{w, n} {
				torn.spent = true
				add(false, l.tellB(torn, TargetEvent{Kind: TargetJournalFailed}), who, "fails to journal", string(a.Entry.Kind))
			}
		}
	case Cont:
		switch {
		case w.bQEMU == loaded && w.bAuth == short && defect.Seeded.AuthorityUnchecked():
			// It may reach QEMU when the warden has looked already, and has let a VM be that does not run.
			n := runB(w)
			n.bAuth = lost
			add(able, n, who, does, "as its authority ends")
		case w.bQEMU == loaded && w.bAuth == short:
			add(able, l.tellB(w, TargetEvent{Kind: TargetContFailed}), who, does, "no more, as its authority is short")
		case w.bQEMU == loaded && w.bAuth == good:
			add(able, l.newsB(runB(w), TargetContOK), who, does)
			add(false, l.tellB(w, TargetEvent{Kind: TargetContFailed}), who, does, "but QEMU refuses")
		case w.bQEMU == running:
			add(able, l.newsB(w, TargetContOK), who, does)
		default:
			add(able, w, who, does) // gone: the news of that is under way
		}
	case SendAnswer:
		w.msgs |= answers[a.Answer]
		if a.Answer == AnswerDiscarded || a.Answer == AnswerReturned {
			w.bSettled = true
		}
		add(able, w, who, does, string(a.Answer))
	case KillTarget:
		add(able, l.killB(w), who, does)
	case WriteOwner:
		switch {
		case w.bFenced: // the store refuses an old epoch
		case w.owner == 'A' && w.heir || w.owner != 'B' && defect.Seeded.OldGeneration():
			w.owner, w.heir = 'B', false
			w = l.newsB(w, TargetOwnerWritten)
		case w.owner == 'B':
			w = l.newsB(w, TargetOwnerWritten)
		default:
			w = l.newsB(w, TargetOwnerRefused)
		}
		add(able, w, who, does)
	case TargetViolation:
		w.bad = violationB
		add(able, w, who, does)
	case FreeTarget, OpenPort:
		add(able, w, who, does)
	}
}

// authoritySteps are authority that shrinks, ends and comes back.
func (l *lab) authoritySteps(w world, add adder) {
	if l.noFences {
		return
	}
	n := w
	switch w.aAuth {
	case good:
		if n.aAuth = short; w.aQEMU == gone {
			n.aAuth = lost // without a QEMU there is nothing in between
		}
		add(false, n, "A's authority gets short")
	case short:
		n.aAuth = good
		add(true, n, "A's authority is renewed")
		n.aAuth = lost
		add(false, l.killA(n), "A's authority ends, the warden kills")
	case lost:
		if n.aAuth = good; !w.aFenced {
			add(true, n, "A's authority is back")
			break
		}
		n.aFenced = false
		add(false, l.restartA(n), "A joins again after its fence")
	}
	n = w
	switch w.bAuth {
	case good:
		if n.bAuth = short; w.bQEMU == gone {
			n.bAuth = lost // without a QEMU there is nothing in between
		}
		add(false, n, "B's authority gets short")
	case short:
		n.bAuth = good
		add(true, n, "B's authority is renewed")
		n.bAuth = lost
		add(false, l.killB(n), "B's authority ends, the warden kills")
	case lost:
		if n.bAuth = good; !w.bFenced {
			add(true, n, "B's authority is back")
			break
		}
		n.bFenced = false
		add(false, l.restartB(n), "B joins again after its fence")
	}
}

// rebootSteps are hosts that lose everything but their disk.
func (l *lab) rebootSteps(w world, add adder) {
	if w.spent {
		return
	}
	n := l.killA(w)
	n.spent, n.aBoot, n.aSettled, n.aJournal, n.aAuth, n.aFenced = true, true, true, 0, good, false
	add(false, l.restartA(n), "A's host reboots")
	n = l.killB(w)
	n.spent, n.bBoot, n.bSettled, n.bJournal, n.bAuth, n.bFenced = true, true, true, 0, good, false
	add(false, l.restartB(n), "B's host reboots")
}

// restartA is a new agent on A: it knows the journal, the store, and what it finds.
func (l *lab) restartA(w world) world {
	w.a, w.aNews = l.source(l.restoreA(testID, w.aJournal.entries())), [6]uint8{}
	found := map[qemu]SourceEventKind{
		copying: SourceFoundCopying, stopped: SourceFoundCopying, device: SourceFoundCopying,
		complete: SourceFoundDone, alone: SourceFoundRunning, gone: SourceFoundGone,
	}[w.aQEMU]
	if w.aBoot && w.aJournal == 0 {
		found = SourceFoundRebooted
	}
	return l.tellA(w, SourceEvent{Kind: found})
}

// restartB is a new agent on B.
func (l *lab) restartB(w world) world {
	w.b, w.bNews = l.target(l.restoreB(testID, w.bJournal.entries())), [6]uint8{}
	found := map[qemu]TargetEventKind{
		incoming: TargetFoundIncoming, loaded: TargetFoundLoaded, running: TargetFoundRunning, gone: TargetFoundGone,
	}[w.bQEMU]
	if w.bBoot && w.bJournal == 0 {
		found = TargetFoundRebooted
	}
	if w.owner == 'B' {
		found = TargetOwnerWritten
	}
	return l.tellB(w, TargetEvent{Kind: found})
}

// leaderSteps are fences and cold starts: by HA elsewhere, or by an owner whose VM has crashed.
func (l *lab) leaderSteps(w world, add adder) {
	if w.aAuth == lost && !w.aFenced {
		n := w
		n.aFenced, n.aSettled = true, true
		add(true, n, "the leader fences A")
	}
	if w.bAuth == lost && !w.bFenced {
		n := w
		n.bFenced, n.bSettled = true, true
		add(true, n, "the leader fences B")
	}
	if w.cold != 0 && (w.owner == w.cold || w.owner == 'C') {
		return
	}
	var may bool
	switch {
	case w.heir && !l.ignoreHA:
		may = w.aSettled && w.bSettled
	case w.owner == 'A':
		may = w.aFenced
	case w.owner == 'B':
		may = w.bFenced
	}
	cold := func(at byte, name string) {
		n := w
		if w.cold != 0 {
			n.bad = twoRunning
		}
		n.cold, n.owner, n.heir, n.aStale, n.bStale = at, at, false, true, true
		add(true, n, name)
	}
	if may {
		cold('C', "HA starts the VM on C")
	}
	if w.owner == 'A' && !w.heir && w.aQEMU == gone && l.sourceOf(w).Final() && w.aAuth == good && !w.aFenced {
		cold('A', "A starts its crashed VM")
	}
	if w.owner == 'B' && w.bQEMU == gone && l.targetOf(w).Final() && w.bAuth == good && !w.bFenced {
		cold('B', "B starts its crashed VM")
	}
}
