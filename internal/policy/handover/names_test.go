package handover

import (
	"slices"
	"strings"
)

var allSourceStates = []SourceState{
	SourceCopying, SourceGate, SourceSwitching, SourceAborting, SourceDone, SourceReleased, SourceKeeping, SourceResuming,
	SourceWithdrawing, SourceSwitched, SourceServing, SourceMoved, SourceDropped, SourceEnding, SourceAdopted, SourceOver,
}

var allTargetStates = []TargetState{
	TargetPreparing, TargetIncoming, TargetLoadedUp, TargetResuming, TargetRunning, TargetOwner, TargetDiscarding, TargetDiscarded,
	TargetAdopted, TargetLost,
}

var allSourceActions = []SourceActionKind{
	ContinueSwitchover, CancelCopy, SourceJournal, SendRelease, SendDiscard, SendPullLost, ResumePull, ResumeHere, KillSource, FreeSource, ClearHeir,
	RecordDiscarded, RefuseCancel, SourceReport, SourceViolation,
}

var allTargetActions = []TargetActionKind{
	TargetJournal, Cont, SendAnswer, RecoverPull, KillTarget, FreeTarget, OpenPort, WriteOwner, TargetViolation,
}

var allSourceEvents = []SourceEventKind{
	SourceHeirSet, SourceHeirRefused, SourceHeirCleared, SourceStopped, SourceCompleted, SourcePull, SourcePullPaused, SourceFailed, SourceGone, SourceCancel,
	SourceAbort, SourceAnswered, SourceTargetFenced, SourceOwnerTarget, SourceOwnerOther, SourceTick, SourceJournalFailed,
	SourceResumed, SourceResumeFailed, SourceFoundRunning, SourceFoundCopying, SourceFoundDone, SourceFoundPull, SourceFoundPulled, SourceFoundGone,
	SourceFoundRebooted,
}

var allTargetEvents = []TargetEventKind{
	TargetPrepared, TargetLoaded, TargetPull, TargetPullPaused, TargetPullLost, TargetReleased, TargetDiscard, TargetContOK, TargetContFailed, TargetGone, TargetAuthorityShort,
	TargetOwnerWritten, TargetOwnerRefused, TargetTick, TargetJournalFailed, TargetFoundIncoming, TargetFoundLoaded,
	TargetFoundRunning, TargetFoundPull, TargetFoundPulling, TargetFoundGone, TargetFoundRebooted,
}

var allAnswers = []Answer{AnswerRunning, AnswerPulled, AnswerReturned, AnswerDiscarded, AnswerLost}

// flags returns the name with the flags that are up, in the order of the alphabet.
func flags(name string, up map[string]bool) string {
	var list []string
	for f, on := range up {
		if on {
			list = append(list, f)
		}
	}
	if list == nil {
		return name
	}
	slices.Sort(list)
	return name + " [" + strings.Join(list, ", ") + "]"
}
