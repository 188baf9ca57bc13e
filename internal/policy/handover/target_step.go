package handover

import (
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Step takes one event and returns the next value and the actions that follow, to be done in order. Events that mean nothing
// in the present state change nothing; most events mean nothing in most states, so the switches below name only the others, and
// testdata/target.table lists what each event does in each state.
func (t Target) Step(e TargetEvent) (Target, []TargetAction) {
	if t.Mode == inventory.PostCopy {
		return t.pull(e)
	}
	return t.step(e)
}

func (t Target) step(e TargetEvent) (Target, []TargetAction) {
	switch t.State {
	case TargetPreparing, TargetIncoming, TargetLoadedUp:
		return t.waiting(e)
	case TargetResuming:
		return t.resuming(e)
	case TargetRunning, TargetOwner:
		return t.running(e)
	case TargetDiscarding, TargetDiscarded:
		return t.discarded(e)
	case TargetAdopted:
		return t.adopted(e)
	case TargetLost:
		if e.Kind == TargetReleased || e.Kind == TargetDiscard || e.Kind == TargetPullLost {
			return t, []TargetAction{answer(AnswerLost, t.Why)}
		}
	}
	return t, nil
}

// waiting covers everything before the cont: the VM has certainly not run here, so any reason is good enough to discard.
func (t Target) waiting(e TargetEvent) (Target, []TargetAction) {
	//exhaustive:ignore
	switch e.Kind {
	case TargetPrepared:
		if t.State == TargetPreparing {
			t.State = TargetIncoming
		}
	case TargetLoaded:
		t.State = TargetLoadedUp
		if t.Released {
			return t.resume(e)
		}
	case TargetReleased:
		t.Released = true
		if t.State == TargetLoadedUp {
			return t.resume(e)
		}
	case TargetTick:
		if t.State == TargetLoadedUp && (t.Released || defect.Seeded.ReleaseOnTimeout()) {
			return t.resume(e)
		}
	case TargetDiscard:
		if t.State == TargetLoadedUp && defect.Seeded.TakeoverFenced() {
			return t.resume(e)
		}
		return t.discard(either(e.Why, "told to discard"), "")
	case TargetGone:
		return t.discard("the target's QEMU ended", e.Why)
	case TargetAuthorityShort:
		if t.Mode == inventory.PostCopy {
			return t, nil // as in resume: the source may have switched
		}
		return t.discard("the target's authority is short", e.Why)
	case TargetOwnerRefused:
		return t.discard("the store does not name this host heir any more", e.Why)
	case TargetOwnerWritten:
		return t.violated("the store names this host owner of a VM that was never released to it")
	default:
	}
	return t, nil
}

// resume is the one place that lets the VM run here: it is loaded, it was released, and the authority outlasts the cont.
func (t Target) resume(e TargetEvent) (Target, []TargetAction) {
	if e.Authority < AuthorityMargin && !defect.Seeded.AuthorityUnchecked() {
		if t.Mode == inventory.PostCopy {
			return t, nil // the source cannot have it back: the next tick tries again
		}
		return t.discard("the target's authority was short at the release", e.Why)
	}
	t.State = TargetResuming
	return t, []TargetAction{t.journal(EntryResuming, ""), {Kind: Cont}}
}

// resuming waits for QEMU's word on cont. A discard has to wait with it: the VM may run by now.
func (t Target) resuming(e TargetEvent) (Target, []TargetAction) {
	//exhaustive:ignore
	switch e.Kind {
	case TargetContOK:
		return t.run()
	case TargetContFailed:
		switch {
		case !t.Doubt && t.Mode == inventory.PostCopy && e.Authority < AuthorityMargin:
			t.State = TargetLoadedUp // as in resume
			return t, nil
		case !t.Doubt:
			return t.discard("the target's QEMU did not resume", e.Why)
		case e.Authority < AuthorityMargin:
			t.Waits = true
			return t, nil
		}
		next, actions := t.take()
		return next, append([]TargetAction{{Kind: KillTarget}}, actions...)
	case TargetJournalFailed:
		// The cont was not sent. The entry may be there all the same, which costs a restarted agent no more than a cold start.
		if !t.Doubt {
			return t.discard("the release could not be journalled", e.Why)
		}
	case TargetGone:
		return t.take()
	case TargetTick:
		if t.Waits && e.Authority >= AuthorityMargin {
			t.Waits = false
			return t, []TargetAction{{Kind: Cont}}
		}
	case TargetOwnerWritten:
		t.State = TargetOwner
	case TargetOwnerRefused:
		return t.fenced(e)
	default:
	}
	return t, nil
}

// run is the moment after cont: frames first, then the word the source waits for, then the store.
func (t Target) run() (Target, []TargetAction) {
	t.State = TargetRunning
	return t, []TargetAction{{Kind: OpenPort}, t.has(), {Kind: WriteOwner}}
}

// take makes this host owner of a VM that ran or may have run here and does not run now. The source's memory may be older than
// the disk, so the VM is not given back; as its owner this host starts it cold.
func (t Target) take() (Target, []TargetAction) {
	t.State, t.Pulling, t.Paused = TargetRunning, false, false
	return t, []TargetAction{t.has(), {Kind: WriteOwner}}
}

// running covers running and owner: the VM is here to stay.
func (t Target) running(e TargetEvent) (Target, []TargetAction) {
	//exhaustive:ignore
	switch e.Kind {
	case TargetReleased, TargetDiscard, TargetPullLost:
		return t, []TargetAction{t.has()}
	case TargetTick:
		if t.State == TargetRunning {
			return t, []TargetAction{{Kind: WriteOwner}}
		}
	case TargetOwnerWritten:
		t.State = TargetOwner
	case TargetOwnerRefused:
		if t.State == TargetRunning {
			return t.fenced(e)
		}
	default:
	}
	return t, nil
}

// fenced is a target that ran, or may have run, when somebody else was made owner: that happens only after a fence, and
// whatever still runs here must not.
func (t Target) fenced(e TargetEvent) (Target, []TargetAction) {
	t.State, t.Why = TargetLost, join("the VM was started again elsewhere", e.Why)
	return t, []TargetAction{{Kind: KillTarget}, {Kind: FreeTarget}}
}

// discard gives the VM up for good: first the journal, then QEMU, so that its image locks are free when the source hears of it.
func (t Target) discard(why, detail string) (Target, []TargetAction) {
	t.State, t.Why = TargetDiscarded, join(why, detail)
	return t, t.discards()
}

func (t Target) discards() []TargetAction {
	word := AnswerDiscarded
	if t.Released {
		word = AnswerReturned
	}
	return []TargetAction{t.journal(EntryDiscarded, t.Why), {Kind: KillTarget}, answer(word, t.Why), {Kind: FreeTarget}}
}

// discarded answers from now on, whatever comes. Before the journal has the entry it keeps silent, since a restarted agent would
// not know of the promise.
func (t Target) discarded(e TargetEvent) (Target, []TargetAction) {
	//exhaustive:ignore
	switch e.Kind {
	case TargetReleased:
		t.Released = true
		if t.State == TargetDiscarded {
			return t, []TargetAction{answer(AnswerReturned, t.Why)}
		}
	case TargetDiscard, TargetPullLost:
		if t.State == TargetDiscarded {
			return t, []TargetAction{answer(AnswerDiscarded, t.Why)}
		}
	case TargetJournalFailed:
		t.State = TargetDiscarding
	case TargetTick:
		if t.State == TargetDiscarding {
			t.State = TargetDiscarded
			return t, t.discards()
		}
	case TargetFoundIncoming, TargetFoundLoaded, TargetFoundPull, TargetFoundGone:
		if t.State == TargetDiscarded {
			return t, []TargetAction{{Kind: KillTarget}, answer(AnswerDiscarded, t.Why), {Kind: FreeTarget}}
		}
	case TargetFoundRunning, TargetFoundPulling:
		return t.violated("a VM runs here that was discarded")
	case TargetOwnerWritten:
		return t.violated("the store names this host owner of a VM that it discarded")
	default:
	}
	return t, nil
}

// adopted is a target after a restart: the journal was read by RestoreTarget, now the store or QEMU says its part.
func (t Target) adopted(e TargetEvent) (Target, []TargetAction) {
	//exhaustive:ignore
	switch e.Kind {
	case TargetOwnerWritten:
		t.State, t.Pulling = TargetOwner, t.Mode == inventory.PostCopy
		return t, nil
	case TargetFoundRebooted:
		t.State, t.Why = TargetLost, "the target's host was rebooted"
		return t, []TargetAction{answer(AnswerLost, t.Why)}
	case TargetOwnerRefused:
		if t.Doubt {
			return t.fenced(e)
		}
		return t.discard("the store does not name this host heir any more", e.Why)
	case TargetReleased:
		t.Released = true // heard early, as in waiting
		return t, nil
	case TargetFoundPull, TargetFoundPulling:
		t.Pulling = true
	case TargetFoundRunning, TargetFoundLoaded, TargetFoundIncoming, TargetFoundGone:
	default:
		return t, nil // will come again: nothing is decided before QEMU was looked at
	}
	if t.Doubt {
		return t.doubted(e)
	}
	//exhaustive:ignore
	switch e.Kind {
	case TargetFoundRunning, TargetFoundPulling:
		return t.violated("a VM runs here that was never released to this host")
	case TargetFoundLoaded, TargetFoundPull:
		t.State = TargetLoadedUp
		if t.Released {
			return t.resume(e)
		}
		return t, nil
	default:
	}
	return t.discard("the target's agent was restarted before everything was loaded", e.Why)
}

// doubted is adopted with resuming in the journal: the source never resumes without this host's word, so the VM is this host's to
// run, and to take over as crashed where it does not run any more.
func (t Target) doubted(e TargetEvent) (Target, []TargetAction) {
	if e.Kind == TargetFoundRunning || e.Kind == TargetFoundPulling {
		return t.run()
	}
	if e.Kind == TargetFoundGone {
		return t.take()
	}
	t.State = TargetResuming
	if e.Authority < AuthorityMargin {
		t.Waits = true
		return t, nil
	}
	return t, []TargetAction{{Kind: Cont}}
}

// violated ends everything here: only a bug explains what was seen.
func (t Target) violated(why string) (Target, []TargetAction) {
	t.State, t.Why = TargetLost, why
	return t, []TargetAction{{Kind: TargetViolation, Why: why}}
}

func (t Target) journal(kind EntryKind, why string) TargetAction {
	return TargetAction{Kind: TargetJournal, Entry: Entry{Migration: t.Migration, Kind: kind, Why: why}}
}

func answer(a Answer, why string) TargetAction {
	return TargetAction{Kind: SendAnswer, Answer: a, Why: why}
}

// has is the answer of a target that has the VM.
func (t Target) has() TargetAction {
	if t.Mode == inventory.PostCopy && !t.Pulling {
		return answer(AnswerPulled, t.Why)
	}
	return answer(AnswerRunning, "")
}
