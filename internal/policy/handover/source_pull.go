package handover

import (
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// What is different at the source in post-copy. QEMU's switch cannot be taken back: from then on the VM runs at the target or starts
// cold. The release is decided in that moment, and this QEMU is needed until the target has pulled all of its memory.

// parted is the moment in which QEMU reports that it has switched. A cancel that came too late for QEMU came too late for us, too.
func (s Source) parted(e SourceEvent) (Source, []SourceAction) {
	s.Switched, s.Paused = true, e.Kind == SourcePullPaused
	if s.State != SourceSwitching && s.State != SourceAborting {
		return s.because(inventory.Failed, "QEMU switched over without being told to", "").forsake()
	}
	next, actions := s.decide(e)
	return next, append(actions, s.pulls()...)
}

// switched waits with a QEMU that never runs the VM again for what the release needs: authority, or a journal. Released is set here
// when the journal may hold the entry, though no release was sent.
func (s Source) switched(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceTick:
		next, actions := s.decide(e)
		return next, append(actions, s.pulls()...)
	case SourcePull, SourcePullPaused, SourceCompleted:
		return s.pull(e)
	case SourceTargetFenced:
		if s.Released {
			return s.drop(e)
		}
		return s.because(inventory.Failed, "the target was fenced after QEMU's switch, the VM starts cold", e.Why).forsake()
	case SourceAnswered:
		if e.runs() {
			return s.violated("the target says that it runs a VM that was never released to it")
		}
		return s.because(inventory.Failed, "the target discarded after QEMU's switch, the VM starts cold", e.Why).forsake()
	case SourceGone:
		if !s.Released {
			return s.died(e)
		}
		// A restarted agent may find the entry and release: the target's final word comes first.
		s.State, s.Gone = SourceWithdrawing, true
		return s.because(inventory.Failed, "the source's QEMU ended", e.Why), []SourceAction{{Kind: SendDiscard}}
	case SourceCancel:
		return s, []SourceAction{{Kind: RefuseCancel, Why: "QEMU has switched over to the target, and cannot run the VM here again"}}
	default:
	}
	return s, nil
}

// forsake gives up a memory of which one half is useless without the other: this QEMU can never run the VM again, and the target never
// did and never will. The VM is this host's still, and starts cold.
func (s Source) forsake() (Source, []SourceAction) {
	s.Gone = true
	next, actions := s.end()
	return next, append([]SourceAction{{Kind: KillSource}}, actions...)
}

// mayServe reports whether the target may have to pull from here when the store names it owner.
func (s Source) mayServe() bool {
	//exhaustive:ignore
	switch s.State {
	case SourceReleased, SourceServing:
		return s.Switched && !s.Pulled
	case SourceAdopted:
		return s.Mode == inventory.PostCopy && !s.Dropped
	case SourceWithdrawing:
		return s.Mode == inventory.PostCopy && s.Gone
	default:
		return false
	}
}

// owes is a source whose target is owner already and pulls still. A restarted one looks at its QEMU first.
func (s Source) owes() (Source, []SourceAction) {
	s.Owned = true
	if s.State == SourceAdopted || s.State == SourceServing {
		return s, nil
	}
	return s.serve()
}

// serve keeps the own QEMU, or tells that it is gone, until the target needs it no more.
func (s Source) serve() (Source, []SourceAction) {
	s.State, s.Switched = SourceServing, true
	actions := []SourceAction{s.report(inventory.OnTarget, "")}
	if defect.Seeded.PullSourceKilled() {
		actions = append(actions, SourceAction{Kind: KillSource})
	}
	return s, append(actions, s.pulls()...)
}

// serving waits for the end of the pull. The target asks for the release no more, but its answer to one says whether it pulls still.
func (s Source) serving(e SourceEvent) (Source, []SourceAction) {
	//exhaustive:ignore
	switch e.Kind {
	case SourceTick:
		if s.Gone {
			return s, s.pulls()
		}
		return s, append([]SourceAction{{Kind: SendRelease}}, s.pulls()...)
	case SourcePull, SourcePullPaused:
		return s.pull(e)
	case SourceCompleted:
		return s.served("")
	case SourceGone:
		s.Gone = true
		return s, s.pulls()
	case SourceTargetFenced:
		return s.drop(e)
	case SourceAnswered:
		switch e.Answer {
		case AnswerRunning:
		case AnswerPulled:
			return s.served(e.Why)
		case AnswerLost:
			if s.Owned {
				return s.served(either(e.Why, "the target was lost during the pull"))
			}
			return s.drop(e)
		case AnswerReturned, AnswerDiscarded:
			return s.violated("the target gives back a VM that it said it runs")
		}
	case SourceCancel:
		return s, []SourceAction{{Kind: RefuseCancel, Why: "the VM was released to the target and cannot be called back"}}
	default:
	}
	return s, nil
}

// served ends the own QEMU when the target needs it no more: because all is pulled, or because what pulled is gone, as why says.
func (s Source) served(why string) (Source, []SourceAction) {
	s.Pulled, s.Paused = true, false
	if s.Owned {
		s.Ends, s.Why = inventory.Completed, why
		return s.leave()
	}
	s.State = SourceMoved
	return s, []SourceAction{{Kind: KillSource}}
}

// pull is QEMU's word on the pull, where it changes nothing else.
func (s Source) pull(e SourceEvent) (Source, []SourceAction) {
	if !s.Switched || s.Pulled {
		return s, nil
	}
	switch s.Paused = e.Kind == SourcePullPaused; {
	case s.Paused:
		return s, s.pulls()
	case e.Kind == SourceCompleted:
		s.Pulled = true
	}
	return s, nil
}

// pulls is what a pull that does not go on needs of this end.
func (s Source) pulls() []SourceAction {
	switch {
	case !s.Switched || s.Pulled:
	case s.Gone:
		return []SourceAction{{Kind: SendPullLost}}
	case s.Paused:
		return []SourceAction{{Kind: ResumePull}}
	}
	return nil
}

// adoptedPull is adopted where QEMU has switched, or may have. Nothing of it can run here again, so a release that was not decided is decided now.
func (s Source) adoptedPull(e SourceEvent) (Source, []SourceAction) {
	s.Switched = true
	switch {
	case s.Owned && (e.Kind == SourceFoundPull || s.Gone):
		s.State = SourceServing
		return s, s.pulls()
	case s.Owned:
		s.Ends, s.Why, s.Pulled = inventory.Completed, "", true
		return s.leave()
	}
	s.Pulled = e.Kind == SourceFoundPulled
	if !s.Released {
		return s.decide(e)
	}
	s.State, s.Sends = SourceReleased, 1
	return s, append([]SourceAction{{Kind: SendRelease}, s.report(inventory.Released, "")}, s.pulls()...)
}
