package handover

import (
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/ha"
)

// The faults. Messages that come late, twice or never, and news that come late cost nothing; the latter is all that an end sees of a
// store that it cannot read. Each of these costs one of the walk's budget, or nothing in a walk where they are free: an agent is killed and
// restarts, a QEMU dies, fails or refuses, authority gets short, after which it may end, be fenced, and the host may join again; the
// pull's stream breaks. These always cost one: a host reboots or never comes back, a journal cannot be written, a user cancels, the store
// does not take a write, takes it late or takes it without a word, a leader loses its office between its decision and its write.

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
		if next.bad == fine {
			next.bad = l.lossOf(w, next)
		}
		st := step{benign: benign, next: next}
		copy(st.name[:], name)
		out = append(out, st)
	}
	l.qemuSteps(w, add)
	l.sourceSteps(w, add)
	l.targetSteps(w, add)
	l.authoritySteps(w, add)
	l.hostSteps(w, add)
	l.pullSteps(w, add)
	l.storeSteps(w, add)
	l.leaderSteps(w, add)
	return out
}

// lossOf holds a step to what the rules promise of the VM's memory. It ends at the source before the release was sent, and in post-copy
// before QEMU's switch, only with a QEMU or a host of the source itself; and it ends at all only with one of either end.
func (l *lab) lossOf(w, next world) fault {
	bound := w.msgs&msgRelease != 0 || w.parted
	ends := next.cold != 0 || w.aQEMU != gone && next.aQEMU == gone
	switch {
	case ends && !bound && !next.aHurt:
		return sourceLost
	case next.cold != 0 && !next.aHurt && !next.bHurt:
		return memoryLost
	}
	return fine
}

// pay takes one of the faults that may be free off the budget; ok says that there was one.
func (l *lab) pay(w world) (paid world, ok bool) {
	if l.free {
		return w, true
	}
	if w.left == 0 {
		return w, false
	}
	w.left--
	return w, true
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
		if l.mode == inventory.PostCopy && w.bQEMU == incoming && !w.cut {
			n := w
			n.aQEMU, n.parted, n.pull = switched, true, true
			add(true, l.newsA(n, SourcePull), "A's QEMU switches over and has pages left")
		}
		if w.bQEMU == incoming && !w.cut {
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
		if natural := (w.bQEMU == gone || w.cut) && w.aQEMU != stopped; natural {
			add(true, l.newsA(runA(w), SourceFailed), "A's QEMU fails and runs on by itself")
		} else if n, ok := l.pay(w); ok {
			add(false, l.newsA(runA(n), SourceFailed), "A's QEMU fails and runs on by itself")
		}
	}
	n, ok := l.pay(w)
	if ok && w.aQEMU != gone {
		n.aHurt = true
		add(false, l.killA(n), "A's QEMU dies")
	}
	if n, ok := l.pay(w); ok && w.bQEMU != gone {
		n.bHurt = true
		add(false, l.killB(n), "B's QEMU dies")
	}
}

// pullSteps are both QEMUs after the switch.
func (l *lab) pullSteps(w world, add adder) {
	if !w.pull && w.aQEMU != switched {
		return
	}
	n := w
	switch {
	case w.aQEMU == switched && !w.loaded && w.bQEMU == incoming:
		n.bQEMU, n.loaded = loaded, true
		add(true, l.newsB(n, TargetPull), "B's QEMU has what its vCPUs need to run")
	case w.pull && w.loaded && !w.cut && w.aQEMU == switched && w.bQEMU != gone:
		n.pull = false
		add(true, l.newsB(n, TargetLoaded), "B's QEMU has pulled everything")
		if n, ok := l.pay(w); ok {
			add(false, l.broken(n), "the stream of the pull breaks")
		}
	case !w.pull && w.aQEMU == switched:
		n.aQEMU = pulled
		add(true, l.newsA(n, SourceCompleted), "A's QEMU has sent everything")
	}
}

// sourceSteps are A's agent at work.
func (l *lab) sourceSteps(w world, add adder) {
	if w.aAuth == dead {
		return
	}
	able := !w.aFenced
	if n, ok := l.pay(w); ok {
		add(false, l.restartA(n), "A's agent is killed and restarts")
	}
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
	for _, a := range allAnswers {
		if w.msgs&answers[a] != 0 {
			e := SourceEvent{Kind: SourceAnswered, Answer: a}
			if s.State != SourceReleased && a != AnswerReturned && !l.credulous { // to a discard, and not to the release
				e = theAttempt.SourceHears(a, l.record(w))
				e.Why = ""
			}
			tell(able, "A hears "+string(a), w, e)
		}
	}
	tell(able, "A ticks", w, SourceEvent{Kind: SourceTick})
	if n := w; w.left > 0 {
		n.left--
		tell(false, "a user cancels", n, SourceEvent{Kind: SourceCancel})
	}
	if s.State == SourceCopying || s.State == SourceGate || s.State == SourceSwitching || s.State == SourceDone {
		tell(s.State == SourceGate && w.heirs, "A's engine gives up", w, SourceEvent{Kind: SourceAbort})
	}
	asks := s.State == SourceCopying || s.State == SourceGate || s.State == SourceSwitching && defect.Seeded.HeirLate()
	if asks && !w.heirs && !w.aFenced {
		if run, err := theAttempt.SetHeir(l.record(w), signB(w)); err == nil {
			n := l.stored(w, run)
			n.heirs = true
			add(true, l.newsA(n, SourceHeirSet), "A sets the heir")
			if n.left > 0 {
				n.left--
				add(false, n, "A sets the heir and never hears of it")
			}
		} else {
			tell(able, "A's heir is refused", w, SourceEvent{Kind: SourceHeirRefused})
		}
	}
	if s.State.Reads() || s.State == SourceEnding {
		for _, e := range theAttempt.SourceReads(s.State, l.record(w), signB(w)) {
			e.Why = ""
			tell(able, "A reads "+string(e.Kind), w, e)
		}
	}
	if l.clearEver && l.heir(w) && !w.aFenced {
		if run, err := clearHeir(l.record(w)); err == nil {
			add(false, l.stored(w, run), "A clears the heir")
		}
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
		case switched:
			add(able, l.broken(w), who, does, "and QEMU has switched")
		case alone:
			add(able, l.newsA(w, SourceFailed), who, does)
		case complete, pulled, gone, incoming, loaded, running:
			add(able, w, who, does)
		}
	case SourceJournal:
		n := w
		n.aJournal |= logBits[a.Entry.Kind]
		add(able, n, who, does, string(a.Entry.Kind))
		if w.left > 0 {
			for _, torn := range []world{w, n} {
				torn.left--
				add(false, l.tellA(torn, SourceEvent{Kind: SourceJournalFailed}), who, "fails to journal", string(a.Entry.Kind))
			}
		}
	case SendRelease:
		w.msgs |= msgRelease
		add(able, w, who, does)
	case SendDiscard:
		w.msgs |= msgDiscard
		add(able, w, who, does)
	case SendPullLost:
		w.msgs |= msgPullLost
		add(able, w, who, does)
	case ResumePull:
		if w.cut && w.listens && w.aQEMU == switched && w.bQEMU != gone {
			w = l.mended(w)
		}
		add(able, w, who, does)
	case ResumeHere:
		switch {
		case w.aQEMU == complete && w.aAuth == good:
			add(able, l.newsA(runA(w), SourceResumed), who, does)
			if n, ok := l.pay(w); ok {
				n.aHurt = true
				add(false, l.tellA(n, SourceEvent{Kind: SourceResumeFailed}), who, does, "but QEMU refuses")
			}
		case w.aQEMU == complete || w.aQEMU == switched || w.aQEMU == pulled:
			add(able, l.tellA(w, SourceEvent{Kind: SourceResumeFailed}), who, does, "no more")
		default:
			add(able, w, who, does) // gone: the news of that is under way
		}
	case KillSource:
		add(able, l.killA(w), who, does)
	case ClearHeir:
		l.write(w, lateClear, who, add)
	case RecordDiscarded:
		if n := w; w.left > 0 {
			n.left--
			add(false, n, who, does, "but the store is away")
		}
		w.aDropped = true
		add(able, w, who, does)
	case FreeSource:
		w.aHas, w.aJournal = false, 0
		add(able, w, who, does)
	case SourceViolation:
		w.bad = violationA
		add(able, w, who, does)
	case RefuseCancel, SourceReport:
		add(able, w, who, does)
	}
}

// targetSteps are B's agent at work.
func (l *lab) targetSteps(w world, add adder) {
	if w.bAuth == dead {
		return
	}
	able := !w.bFenced
	if n, ok := l.pay(w); ok {
		add(false, l.restartB(n), "B's agent is killed and restarts")
	}
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
	if w.msgs&(msgRelease|msgDiscard) != 0 && l.targetOf(w).Final() {
		add(able, l.restoredB(w), "B, which has forgotten it, is asked") // and hears what, below
	}
	if w.msgs&msgRelease != 0 {
		tell("B hears release", TargetReleased)
	}
	if w.msgs&msgDiscard != 0 {
		tell("B hears discard", TargetDiscard)
	}
	if w.msgs&msgPullLost != 0 || l.mode == inventory.PostCopy && (w.aFenced || w.aBoot) {
		if w.bQEMU != gone && w.loaded && !w.pull && l.targetOf(w).Pulling && !l.hasty {
			tell("B hears that A is lost, but its QEMU says that it is whole", TargetLoaded)
		} else {
			tell("B hears that A is lost", TargetPullLost)
		}
	}
	if l.heir(w) && l.decides(w).Kind == ha.AskDiscard {
		tell("the leader tells B to discard", TargetDiscard)
	}
	if w.bAuth == short {
		tell("B's authority is short", TargetAuthorityShort)
	}
	if e := theAttempt.TargetReads(l.targetOf(w).State, l.record(w), l.status(w)); e.Kind != "" {
		tell("B reads "+string(e.Kind), e.Kind)
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
		if w.left > 0 {
			for _, torn := range []world{w, n} {
				torn.left--
				torn.bHurt = torn.bHurt || l.mode == inventory.PostCopy && a.Entry.Kind == EntryResuming
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
			if n, ok := l.pay(w); ok {
				n.bHurt = true
				add(false, l.tellB(n, TargetEvent{Kind: TargetContFailed}), who, does, "but QEMU refuses")
			}
		case w.bQEMU == running:
			add(able, l.newsB(w, TargetContOK), who, does)
		default:
			add(able, w, who, does) // gone: the news of that is under way
		}
	case SendAnswer:
		w.msgs |= answers[a.Answer]
		add(able, w, who, does, string(a.Answer))
	case KillTarget:
		add(able, l.killB(w), who, does)
	case RecoverPull:
		w.listens = w.cut && w.bQEMU != gone
		add(able, w, who, does)
	case WriteOwner:
		l.write(w, lateOwner, who, add)
	case FreeTarget:
		w.bHas = nothing
		add(able, w, who, does)
	case OpenPort:
		if w.bHas == reserved {
			w.bHas = open
		}
		add(able, w, who, does)
	case TargetViolation:
		w.bad = violationB
		add(able, w, who, does)
	}
}

// write does a write of an end to the store: at once, or by a store that is away now.
func (l *lab) write(w world, what lateWrite, who string, add adder) {
	does := map[lateWrite]string{lateClear: "clears the heir", lateOwner: "writes itself owner"}[what]
	able := what == lateClear && !w.aFenced || what == lateOwner && !w.bFenced
	done, news := l.written(w, what)
	add(able, news, who, does)
	if w.left == 0 {
		return
	}
	w.left--
	done.left--
	add(false, w, who, does, "but the store is away")
	add(false, done, who, does, "and never hears of it")
	if w.late == noWrite {
		w.late = what
		add(false, w, who, does, "which comes late")
	}
}

// written is the world after an end's write, without and with the news of it. The store refuses writes of an earlier epoch.
func (l *lab) written(w world, what lateWrite) (done, news world) {
	if what == lateClear {
		run, err := clearHeir(l.record(w))
		if w.aFenced || err != nil {
			return w, w
		}
		if l.unburnt && l.heir(w) {
			run.Generation--
		}
		done = l.stored(w, run)
		return done, l.newsA(done, SourceHeirCleared)
	}
	if w.bFenced {
		return w, w
	}
	run, err := theAttempt.TakeOwner(l.record(w))
	if err != nil {
		return w, l.newsB(w, TargetOwnerRefused)
	}
	done = l.stored(w, run)
	return done, l.newsB(done, TargetOwnerWritten)
}

// storeSteps are writes that come late, and leaders that decided something before another was elected. A late write may come after its
// writer's end. It is bound to its writer's epoch, so that none comes after a fence.
func (l *lab) storeSteps(w world, add adder) {
	n := w
	n.late = noWrite
	switch w.late {
	case noWrite:
	case lateClear, lateOwner:
		done, _ := l.written(n, w.late)
		add(true, done, "a write that was late is done")
	case lateRestart:
		n.seen = 0
		if w.seen == w.run || l.trustPlan {
			n = l.restart(n, hostC, 3)
		}
		add(true, n, "the earlier leader writes that the VM is C's")
	}
	if w.late == noWrite && w.left > 0 && w.cold == 0 && l.decides(w).Kind == ha.Restart {
		n := w
		n.left--
		n.late, n.seen = lateRestart, w.run
		add(false, n, "a leader decides to start the VM on C, and another is elected")
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
		paid, ok := l.pay(w)
		if !ok {
			break
		}
		if n = paid; w.aQEMU == gone && w.cold != 'A' {
			n.aAuth = lost // without a QEMU there is nothing in between
		} else {
			n.aAuth = short
		}
		add(false, n, "A's authority gets short")
	case short:
		n.aAuth = good
		add(true, n, "A's authority is renewed")
		n.aAuth, n.aHurt = lost, n.aHurt || n.aQEMU != gone
		add(false, l.killA(n), "A's authority ends, the warden kills")
	case lost:
		if n.aAuth = good; !w.aFenced {
			add(true, n, "A's authority is back")
			break
		}
		n.aFenced = false
		add(false, l.restartA(l.forgets(n, lateRestart)), "A joins again after its fence")
	case dead:
	}
	n = w
	switch w.bAuth {
	case good:
		paid, ok := l.pay(w)
		if !ok {
			break
		}
		if n = paid; w.bQEMU == gone && w.cold != 'B' {
			n.bAuth = lost // without a QEMU there is nothing in between
		} else {
			n.bAuth = short
		}
		add(false, n, "B's authority gets short")
	case short:
		n.bAuth = good
		add(true, n, "B's authority is renewed")
		n.bAuth, n.bHurt = lost, n.bHurt || n.bQEMU != gone
		add(false, l.killB(n), "B's authority ends, the warden kills")
	case lost:
		if n.bAuth = good; !w.bFenced {
			add(true, n, "B's authority is back")
			break
		}
		n.bFenced = false
		add(false, l.restartB(l.forgets(n, lateRestart)), "B joins again after its fence")
	case dead:
	}
}

// hostSteps are hosts that lose everything but their disk, and come back or do not.
func (l *lab) hostSteps(w world, add adder) {
	if w.left == 0 {
		return
	}
	w.left--
	if w.aAuth != dead {
		n := l.killA(w)
		n.aJournal, n.aHurt, n.aHas = 0, true, false
		off := n
		off.aAuth, off.a, off.aActs, off.aNews = dead, 0, [6]uint8{}, [6]uint8{}
		add(false, off, "A's host dies for good")
		n.aBoot, n.aAuth, n.aFenced = true, good, false
		add(false, l.restartA(n), "A's host reboots")
	}
	if w.bAuth != dead {
		n := l.killB(w)
		n.bJournal, n.bHurt, n.bHas = 0, true, nothing
		off := n
		off.bAuth, off.b, off.bActs, off.bNews = dead, 0, [6]uint8{}, [6]uint8{}
		add(false, off, "B's host dies for good")
		n.bAuth, n.bFenced = good, false
		n.bBoots++
		add(false, l.restartB(n), "B's host reboots")
	}
}

// restartA is a new agent on A: it knows the journal, the store, and what it finds.
func (l *lab) restartA(w world) world {
	if l.mode == inventory.PostCopy {
		w = l.broken(w) // it was this agent's
	}
	s := l.restoreA(testID, w.aJournal.entries())
	s.Mode = l.mode
	w.a, w.aActs, w.aNews = l.source(s), [6]uint8{}, [6]uint8{}
	w = l.foundA(w)
	if w.aQEMU == switched && w.cut {
		w = l.newsA(w, SourcePullPaused)
	}
	return w
}

// restartB is a new agent on B.
func (l *lab) restartB(w world) world {
	if l.mode == inventory.PostCopy {
		w = l.broken(w)
	}
	w = l.restoredB(w)
	if w.cut && w.pull && w.bQEMU != gone {
		w.listens = false
		w = l.newsB(w, TargetPullPaused)
	}
	return w
}

// restoredB is a machine of B's that begins anew with what journal, store and QEMU say. An owner has none unless it pulls, and
// answers by the record.
func (l *lab) restoredB(w world) world {
	if word, ok := theAttempt.TargetSettled(l.record(w)); ok && (word == AnswerLost || !w.pull || w.bQEMU == gone) {
		vm := inventory.VM{Run: l.record(w)}
		vm.Run.Wanted = inventory.PowerOn
		if word == AnswerLost {
			vm.Place.Restart.Generation = vm.Run.Generation
		}
		if LeftBehind(vm, foundOfB[w.bQEMU]) && !l.keepsLeft {
			w = l.killB(w)
		}
		t := Target{Migration: testID, Mode: l.mode, State: TargetOwner}
		if word == AnswerLost && !l.credulous {
			t.State = TargetLost
		}
		w.b, w.bActs, w.bNews = l.target(t), [6]uint8{}, [6]uint8{}
		return w
	}
	t := l.restoreB(testID, w.bJournal.entries())
	t.Mode = l.mode
	w.b, w.bActs, w.bNews = l.target(t), [6]uint8{}, [6]uint8{}
	return l.foundB(w)
}

// leaderSteps are fences and cold starts: by HA elsewhere, or by an owner whose VM has crashed.
func (l *lab) leaderSteps(w world, add adder) {
	if (w.aAuth == lost || w.aAuth == dead) && !w.aFenced {
		n := w
		n.aFenced, n.aHurt = true, true
		add(true, l.forgets(n, lateClear), "the leader fences A")
	}
	if (w.bAuth == lost || w.bAuth == dead) && !w.bFenced {
		n := w
		n.bFenced, n.bHurt = true, true
		add(true, l.forgets(n, lateOwner), "the leader fences B")
	}
	owner := l.owner(w)
	if d := l.decides(w); w.cold == 0 && d.Kind == ha.Restart {
		add(true, l.restart(w, hostC, d.Generation), "HA starts the VM on C")
		if w.bAuth == good && !w.bFenced {
			n := l.stored(w, inventory.VMRun{Owner: hostB, Generation: min(d.Generation, 3)}) // which starts it below
			if l.noGap && !w.heirs {
				n = l.stored(w, inventory.VMRun{Owner: hostB, Generation: theAttempt.Generation + 1})
			}
			add(true, n, "HA gives the VM to B")
		}
	}
	generation := l.record(w).Generation + 1
	if owner == hostA && w.cold != 'A' && !l.heir(w) && w.aQEMU == gone && l.sourceOf(w).Final() && w.aAuth == good && !w.aFenced {
		add(true, l.restart(w, hostA, generation), "A starts its crashed VM")
	}
	if owner == hostB && w.cold != 'B' && w.bQEMU == gone && l.targetOf(w).Final() && w.bAuth == good && !w.bFenced {
		add(true, l.restart(w, hostB, generation), "B starts its crashed VM")
	}
}

// forgets is a world in which a write that was late is refused from now on: it was bound to an epoch that is over.
func (l *lab) forgets(w world, what lateWrite) world {
	if w.late == what && (what != lateRestart || !l.trustPlan) {
		w.late, w.seen = noWrite, 0
	}
	return w
}

// restart starts the VM cold with a generation that must be new.
func (l *lab) restart(w world, at inventory.HostID, generation inventory.Generation) world {
	switch {
	case w.cold != 0:
		w.bad = twoRunning
	case w.heirs && generation < 3:
		w.bad = numberReused
	}
	w.cold, w.aStale, w.bStale = at[0], true, true
	return l.stored(w, inventory.VMRun{Owner: at, Generation: min(generation, 3)}) // later ones are as good as each other
}
