package handover

import (
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Step takes one event and returns the next value and the actions that follow, to be done in order. Events that mean nothing
// in the present state change nothing; most events mean nothing in most states, so the switches below name only the others, and
// testdata/source.table lists what each event does in each state.
func (s Source) Step(e SourceEvent) (Source, []SourceAction) {
	if e.Kind == SourceOwnerTarget || e.Kind == SourceOwnerOther {
		return s.owned(e)
	}
	switch s.State {
	case SourceCopying, SourceGate, SourceSwitching, SourceAborting:
		return s.migrating(e)
	case SourceDone:
		return s.done(e)
	case SourceReleased:
		return s.released(e)
	case SourceSwitched:
		return s.switched(e)
	case SourceServing:
		return s.serving(e)
	case SourceKeeping, SourceResuming:
		return s.resuming(e)
	case SourceWithdrawing:
		return s.withdrawing(e)
	case SourceMoved, SourceDropped:
		return s.settled(e)
	case SourceAdopted:
		return s.adopted(e)
	case SourceEnding, SourceOver:
		return s.ending(e)
	}
	return s, nil
}

// owned is what the store's word on the owner does, in any state: it comes before all that QEMU says.
func (s Source) owned(e SourceEvent) (Source, []SourceAction) {
	if e.Kind == SourceOwnerTarget && s.mayServe() {
		return s.owes()
	}
	phase := inventory.Completed
	if e.Kind == SourceOwnerOther {
		phase, s = inventory.Failed, s.because(inventory.Failed, "the VM was started again elsewhere", e.Why)
		s.Dropped = s.State != SourceOver || s.Dropped
	}
	mayBeTarget := s.State == SourceReleased || s.State == SourceMoved || s.State == SourceAdopted || s.State == SourceDropped ||
		(s.State == SourceWithdrawing && !s.Running)
	switch {
	case s.State == SourceOver:
		return s, nil
	case e.Kind == SourceOwnerTarget && !mayBeTarget:
		return s.violated("the store names the target owner of a VM that was never released to it")
	}
	if phase == inventory.Completed {
		s.Ends, s.Why = phase, ""
	}
	return s.leave()
}

// leave ends and frees everything here: the VM is somebody else's.
func (s Source) leave() (Source, []SourceAction) {
	s.State, s.Gone = SourceOver, true
	return s, []SourceAction{{Kind: KillSource}, {Kind: FreeSource}, s.report(s.Ends, s.Why)}
}

// migrating covers all states in which QEMU still decides: it fails and runs on by itself, or it completes.
func (s Source) migrating(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceHeirSet:
		s.Heir = true
		if s.State == SourceGate {
			return s.switchover(e)
		}
	case SourceHeirRefused:
		return s.abort(inventory.Failed, "the store refused the heir", e.Why)
	case SourceStopped:
		if s.State == SourceCopying {
			return s.switchover(e)
		}
	case SourceCompleted:
		if s.State == SourceSwitching {
			return s.decide(e)
		}
		// From aborting: the cancel came too late for QEMU, not for us, as nothing was released.
		return s.because(inventory.Failed, "QEMU switched over without being told to", "").keep(e)
	case SourcePull, SourcePullPaused:
		return s.parted(e)
	case SourceFailed:
		if s.State == SourceSwitching && defect.Seeded.SecondSwitchover() {
			s.State = SourceCopying
			return s, nil
		}
		return s.because(inventory.Failed, "QEMU gave up the migration", e.Why).end()
	case SourceGone:
		return s.died(e)
	case SourceCancel:
		if s.Mode == inventory.PostCopy && s.State == SourceSwitching {
			// QEMU may have switched already: then a cut ends the VM.
			return s, []SourceAction{{Kind: RefuseCancel, Why: "QEMU switches over to the target"}}
		}
		return s.abort(inventory.Canceled, either(e.Why, "canceled"), "")
	case SourceAbort:
		return s.abort(inventory.Failed, either(e.Why, "given up"), "")
	case SourceTargetFenced:
		return s.abort(inventory.Failed, "the target was fenced", e.Why)
	case SourceAnswered:
		if e.runs() {
			return s.violated("the target says that it runs a VM that was never released to it")
		}
		return s.abort(inventory.Failed, "the target discarded", e.Why)
	case SourceTick:
		if s.State == SourceAborting {
			return s, []SourceAction{{Kind: CancelCopy}}
		}
	default:
	}
	return s, nil
}

// switchover lets QEMU go on from pre-switchover. Without the heir it waits at the gate, with the vCPUs stopped: no heir, no
// switchover. With little authority left it is better not begun at all.
func (s Source) switchover(e SourceEvent) (Source, []SourceAction) {
	switch {
	case e.Authority < AuthorityMargin:
		return s.abort(inventory.Failed, "the source's authority was short at the switchover", e.Why)
	case !s.Heir && !defect.Seeded.OwnerAfterCont() && !defect.Seeded.HeirLate():
		s.State = SourceGate
		return s, nil
	}
	s.State = SourceSwitching
	if defect.Seeded.ReleaseEarly() {
		next, release := s.decide(e)
		return next, append([]SourceAction{{Kind: ContinueSwitchover}}, release...)
	}
	return s, []SourceAction{{Kind: ContinueSwitchover}, s.report(inventory.Switchover, "")}
}

// decide is the one place that decides the release. QEMU has completed, so the memory here will not change any more; the
// authority must outlast the decision, else the host could be fenced while the release is on its way out.
func (s Source) decide(e SourceEvent) (Source, []SourceAction) {
	if e.Authority < AuthorityMargin {
		s.State = SourceDone
		if s.Switched {
			s.State = SourceSwitched
		}
		return s, nil
	}
	s.State, s.Released, s.Sends = SourceReleased, true, 1
	if defect.Seeded.JournalLate() {
		return s, []SourceAction{{Kind: SendRelease}, s.journal(EntryReleased, ""), s.report(inventory.Released, "")}
	}
	return s, []SourceAction{s.journal(EntryReleased, ""), {Kind: SendRelease}, s.report(inventory.Released, "")}
}

// done waits with a completed QEMU for authority. Nothing was released: any reason is good enough to run on here instead.
func (s Source) done(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceCancel:
		return s.because(inventory.Canceled, either(e.Why, "canceled"), "").keep(e)
	case SourceAbort:
		return s.because(inventory.Failed, either(e.Why, "given up"), "").keep(e)
	case SourceTargetFenced:
		return s.because(inventory.Failed, "the target was fenced", e.Why).keep(e)
	case SourceAnswered:
		if e.runs() {
			return s.violated("the target says that it runs a VM that was never released to it")
		}
		return s.because(inventory.Failed, "the target discarded", e.Why).keep(e)
	case SourceGone:
		return s.died(e)
	case SourceTick:
		return s.decide(e)
	default:
		return s, nil
	}
}

// released repeats the release until the target answers. From here on the VM runs at this host again on the target's final word
// only; a timeout, a cancel or a silent target change nothing.
func (s Source) released(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceAnswered:
		switch e.Answer {
		case AnswerRunning, AnswerPulled:
			if s.Switched && !s.Pulled && e.Answer == AnswerRunning {
				return s.serve()
			}
			s.State = SourceMoved
			return s, []SourceAction{s.report(inventory.OnTarget, ""), {Kind: KillSource}}
		case AnswerReturned, AnswerDiscarded:
			if defect.Seeded.ReturnedIgnored() {
				return s, nil
			}
			return s.because(inventory.Failed, "the target gave the VM back", e.Why).keep(e)
		case AnswerLost:
			return s.drop(e)
		}
	case SourceTargetFenced:
		return s.drop(e)
	case SourcePull, SourcePullPaused, SourceCompleted:
		return s.pull(e)
	case SourceJournalFailed:
		if s.Switched {
			s.State = SourceSwitched // it cannot run on here: the next tick tries again
			return s, nil
		}
		// The release was not sent, as the entry came before it. But the entry may be there, and a restarted agent would act on
		// it: so the VM runs here again only when the target can no longer take that release.
		s.State = SourceWithdrawing
		return s.because(inventory.Failed, "the release could not be journalled", e.Why), []SourceAction{{Kind: SendDiscard}}
	case SourceGone:
		s.Gone = true
		return s, s.pulls()
	case SourceCancel:
		return s, []SourceAction{{Kind: RefuseCancel, Why: "the VM was released to the target and cannot be called back"}}
	case SourceHeirCleared:
		if s.Gone {
			// Only an earlier incarnation takes the heir back, and only when the target cannot run the VM any more.
			return s.because(inventory.Failed, "the attempt had ended before", "").end()
		}
	case SourceTick:
		if defect.Seeded.ResumeAfterRelease() {
			return s.because(inventory.Failed, "the target does not answer", "").keep(e)
		}
		actions := []SourceAction{{Kind: SendRelease}}
		if s.Sends < UndecidedAfter {
			if s.Sends++; s.Sends == UndecidedAfter {
				actions = append(actions, s.report(inventory.Undecided, "the VM was released and the target does not answer"))
			}
		}
		return s, append(actions, s.pulls()...)
	default:
	}
	return s, nil
}

// keep lets the own QEMU run again as soon as the authority allows it. It is called where QEMU completed but was never released,
// and on the target's word that it will never run the VM.
func (s Source) keep(e SourceEvent) (Source, []SourceAction) {
	if s.Gone {
		return s.end()
	}
	if s.Switched {
		return s.forsake()
	}
	if e.Authority < AuthorityMargin {
		s.State = SourceKeeping
		return s, nil
	}
	s.State = SourceResuming
	var actions []SourceAction
	if s.Released {
		actions = append(actions, s.journal(EntryReturned, s.Why))
	}
	return s, append(actions, SourceAction{Kind: ResumeHere})
}

// resuming covers keeping and resuming: the VM is to run here.
func (s Source) resuming(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceTick:
		if s.State == SourceKeeping {
			return s.keep(e)
		}
	case SourceJournalFailed:
		// The entry spares a restarted agent a question to the target, whose answer is final. The VM does not wait for it.
		s.Released = false
		return s.keep(e)
	case SourceResumed:
		return s.end()
	case SourceResumeFailed:
		s.State = SourceKeeping
		if e.Authority < AuthorityMargin {
			return s, nil // not QEMU's fault, and no try
		}
		if s.Resumes++; s.Resumes < ResumesMax {
			return s, nil
		}
		s.Why += "; QEMU did not resume here either: " + e.Why
		s.Gone = true
		next, actions := s.end()
		return next, append([]SourceAction{{Kind: KillSource}}, actions...)
	case SourceGone:
		return s.died(e)
	case SourceAnswered:
		if e.runs() {
			return s.violated("the target says that it runs a VM that it had given back")
		}
	default:
	}
	return s, nil
}

// withdrawing waits for the target's final word because the own journal cannot be trusted.
func (s Source) withdrawing(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceTick:
		return s, []SourceAction{{Kind: SendDiscard}}
	case SourceGone:
		s.Gone, s.Running = true, false
	case SourceAnswered:
		switch {
		case e.Answer == AnswerLost:
			return s.forgone(e)
		case !e.runs():
			return s.reclaimed(e)
		case s.Running:
			return s.violated("the target says that it runs a VM that runs here")
		case s.Mode == inventory.PostCopy && s.Gone && e.Answer == AnswerRunning:
			return s.serve()
		}
		s.State = SourceMoved
		return s, []SourceAction{s.report(inventory.OnTarget, ""), {Kind: KillSource}}
	case SourceTargetFenced:
		return s.forgone(e)
	case SourceHeirCleared:
		return s.reclaimed(e) // no heir was ever set, so there was no switchover; or an earlier incarnation had ended it
	default:
	}
	return s, nil
}

// forgone is withdrawing when the target is fenced. What is left of the VM here may be used, because this incarnation never sent a
// release; where nothing is left an earlier one may have, and the target may have run.
func (s Source) forgone(e SourceEvent) (Source, []SourceAction) {
	if s.Gone {
		return s.drop(e)
	}
	return s.reclaimed(e)
}

// reclaimed is withdrawing when it is certain that the target will never run the VM.
func (s Source) reclaimed(e SourceEvent) (Source, []SourceAction) {
	if s.Running {
		return s.end()
	}
	return s.keep(e)
}

// drop gives this memory up: the target has been fenced, and may have run the VM before.
func (s Source) drop(e SourceEvent) (Source, []SourceAction) {
	s = s.because(inventory.Failed, "the target was lost after the release, the VM starts cold", e.Why)
	s.State, s.Dropped, s.Gone = SourceDropped, true, true
	return s, append([]SourceAction{{Kind: KillSource}, s.journal(EntryDiscarded, s.Why)}, s.dropped()...)
}

// dropped is what the journal entry of drop allows, and what a tick repeats until the store has a new owner.
func (s Source) dropped() []SourceAction {
	return []SourceAction{{Kind: RecordDiscarded, Why: s.Why}, s.report(inventory.Undecided, s.Why)}
}

// settled covers moved and dropped: this memory never runs again, and only the store's word on the owner is missing.
func (s Source) settled(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceTick, SourceJournalFailed:
		// Without the entry a restarted agent asks the target again and comes here again: it need not be there.
		if s.State == SourceDropped {
			return s, s.dropped()
		}
	case SourceTargetFenced:
		if s.State == SourceMoved {
			return s.drop(e)
		}
	case SourceHeirCleared:
		if s.State == SourceDropped {
			return s.end() // as in withdrawing: there was no switchover, so the VM is this host's to start again
		}
	case SourceAnswered:
		switch {
		case s.State == SourceDropped && (e.Answer == AnswerReturned || e.Answer == AnswerDiscarded):
			return s.end() // it was fenced before it could run the VM, and joined again: the VM is this host's to start
		case s.State == SourceDropped || e.runs():
		case e.Answer == AnswerLost:
			return s.drop(e)
		default:
			return s.violated("the target gives back a VM that it said it runs")
		}
	case SourceCancel:
		return s, []SourceAction{{Kind: RefuseCancel, Why: "the VM was released to the target and cannot be called back"}}
	default:
	}
	return s, nil
}

// adopted is a source after a restart: the journal was read by RestoreSource, the store had no new owner, now QEMU says its part.
func (s Source) adopted(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceFoundRunning, SourceFoundCopying, SourceFoundDone, SourceFoundPull, SourceFoundPulled, SourceFoundGone, SourceFoundRebooted:
	default:
		return s, nil // will come again: nothing is decided before QEMU was looked at
	}
	s.Gone = e.Kind == SourceFoundGone || e.Kind == SourceFoundRebooted
	switch {
	case s.Dropped:
		s.State, s.Gone = SourceDropped, true
		return s, append([]SourceAction{{Kind: KillSource}}, s.dropped()...)
	case s.Owned, e.Kind == SourceFoundPull, e.Kind == SourceFoundPulled, s.Released && e.Kind == SourceFoundGone && s.Mode == inventory.PostCopy:
		return s.adoptedPull(e)
	case e.Kind == SourceFoundRebooted:
		// The journal is lost with the reboot, so released is taken as said.
		s.State, s.Released = SourceWithdrawing, true
		return s, []SourceAction{{Kind: SendDiscard}}
	case s.Released && (e.Kind == SourceFoundRunning || e.Kind == SourceFoundCopying):
		// It runs although the journal says released: the entry's writing failed, or that of returned did. Either way the
		// target had discarded before the VM ran; it is asked again, and told no release.
		s.State, s.Running = SourceWithdrawing, true
		return s, []SourceAction{{Kind: SendDiscard}}
	case s.Released:
		s.State, s.Sends = SourceReleased, 1
		return s, []SourceAction{{Kind: SendRelease}, s.report(inventory.Released, "")}
	case e.Kind == SourceFoundCopying:
		s.State = SourceAborting
		return s, []SourceAction{{Kind: CancelCopy}}
	case e.Kind == SourceFoundDone:
		return s.keep(e)
	default:
		return s.end()
	}
}

// end gives the attempt up with the VM running here, or with its QEMU gone and never released: the target is told, the
// heir is taken back, and then the migration is over. A VM whose QEMU is gone is its owner's ordinary business after that.
func (s Source) end() (Source, []SourceAction) {
	s.State = SourceEnding
	return s, []SourceAction{{Kind: SendDiscard}, {Kind: ClearHeir}}
}

// ending covers ending and over.
func (s Source) ending(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceHeirCleared:
		if s.State == SourceEnding {
			s.State = SourceOver
			return s, []SourceAction{s.report(s.Ends, s.Why)}
		}
	case SourceHeirSet:
		if s.Ends != inventory.Completed {
			return s.end() // the transaction was under way when the attempt ended
		}
	case SourceTick:
		if s.State == SourceEnding {
			return s.end()
		}
	case SourceAnswered:
		// A late running is harmless where this memory went with a new owner.
		if e.runs() && s.Ends != inventory.Completed && !s.Dropped {
			return s.violated("the target says that it runs a VM that it may not run")
		}
	default:
	}
	return s, nil
}

// abort tells QEMU to cancel; what it says then decides.
func (s Source) abort(phase inventory.Phase, why, detail string) (Source, []SourceAction) {
	s = s.because(phase, why, detail)
	if s.State == SourceAborting {
		return s, nil
	}
	s.State = SourceAborting
	return s, []SourceAction{{Kind: CancelCopy}}
}

// died ends the attempt when the own QEMU is gone before anything was released.
func (s Source) died(e SourceEvent) (Source, []SourceAction) {
	s.Gone = true
	return s.because(inventory.Failed, "the source's QEMU ended", e.Why).end()
}

// runs reports whether the target says that it has the VM.
func (e SourceEvent) runs() bool { return e.Answer == AnswerRunning || e.Answer == AnswerPulled }

// because keeps the first reason why the attempt is over.
func (s Source) because(phase inventory.Phase, why, detail string) Source {
	if s.Ends == inventory.Planned {
		s.Ends, s.Why = phase, join(why, detail)
	}
	return s
}

// violated ends everything here: only a bug explains what was seen.
func (s Source) violated(why string) (Source, []SourceAction) {
	s = s.because(inventory.Failed, why, "")
	s.State, s.Gone = SourceOver, true
	return s, []SourceAction{{Kind: SourceViolation, Why: why}}
}

func (s Source) journal(kind EntryKind, why string) SourceAction {
	return SourceAction{Kind: SourceJournal, Entry: Entry{Migration: s.Migration, Kind: kind, Why: why}}
}

func (s Source) report(phase inventory.Phase, why string) SourceAction {
	return SourceAction{Kind: SourceReport, Phase: phase, Why: why}
}

// either returns what was said, or else the other words.
func either(said, other string) string {
	if said == "" {
		return other
	}
	return said
}

// join returns "why: detail", or either where the other is empty.
func join(why, detail string) string {
	if why == "" || detail == "" {
		return why + detail
	}
	return why + ": " + detail
}
