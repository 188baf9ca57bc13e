package migrate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// undoTime bounds an action that must be finished although its caller has been told to stop.
const undoTime = 10 * time.Second

// figuresMax bounds how long a QEMU that is about to be ended is asked for its figures.
const figuresMax = time.Second

// writeMax is how long a switchover's and a release's record may come after the fact.
const writeMax = 300 * time.Millisecond

// cancelEvery is the pause between two looks at whether QEMU has given up its migration.
const cancelEvery = 100 * time.Millisecond

// do carries one action out. An action that failed in a way the machine must know returns that as an event.
func (s *Source) do(ctx context.Context, tasks *sync.WaitGroup, a handover.SourceAction) handover.SourceEvent {
	// What a machine has decided is finished even when the agent is told to stop in the middle of it.
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer done()
	switch a.Kind {
	case handover.ContinueSwitchover:
		return s.continueSwitchover(undo)
	case handover.CancelCopy:
		return s.cancelCopy(ctx, tasks)
	case handover.SourceJournal:
		if err := s.Journal.Append(a.Entry); err != nil {
			return handover.SourceEvent{Kind: handover.SourceJournalFailed, Why: err.Error()}
		}
	case handover.SendRelease:
		s.send(ctx, tasks, s.sendRelease)
	case handover.SendDiscard:
		s.send(ctx, tasks, s.sendDiscard)
	case handover.ResumeHere:
		return s.resumeHere(ctx, tasks)
	case handover.KillSource:
		s.commitPorts(undo)
		s.noteFigures(undo)
		s.kill(undo)
	case handover.FreeSource:
		if err := s.Free(undo); err != nil {
			s.Log.LogAttrs(ctx, slog.LevelError, "clean-up at the source is incomplete", slog.Any("err", err))
		}
	case handover.ClearHeir:
		tasks.Go(func() { s.clearHeir(ctx) })
	case handover.RecordDiscarded:
		s.set(a.Record)
		s.writeStatus(undo)
	case handover.SourceReport:
		s.reportEnd(undo, a)
	case handover.SourceViolation:
		s.Log.LogAttrs(ctx, slog.LevelError, "hand-over rule violated, killing the own qemu", slog.String("why", a.Why))
		s.kill(undo)
	case handover.RefuseCancel: // step answers it
	case handover.SendPullLost, handover.ResumePull: // of post-copy, and all migrations are pre-copy
	}
	return handover.SourceEvent{}
}

// kill ends the own QEMU. One that the kernel cannot end stays; it can never run the VM again, but holds its memory.
func (s *Source) kill(ctx context.Context) {
	if s.Process == nil {
		return
	}
	if err := s.Process.Kill(ctx); err != nil {
		s.Log.LogAttrs(ctx, slog.LevelError, "old qemu does not end", slog.Any("err", err))
	}
}

// continueSwitchover sends what comes for the guest after it, and lets QEMU go on, both at once: the last pages do not wait for the switch. It
// returns when both are done, so that nothing is released before the ports forward; the word of a QEMU that completed waits in the inbox.
func (s *Source) continueSwitchover(ctx context.Context) handover.SourceEvent {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	asked := s.askRings(within)
	goOn := s.Process.QMP().SendMigrateContinue(within)
	var both errgroup.Group
	both.Go(func() error {
		again := make([]int, len(s.Ports))
		for i, port := range s.Ports {
			again[i] = s.unseen(within, i, port, asked[i])
		}
		for i, port := range s.Ports {
			if err := s.Switch.Forward(ctx, port.ID, s.Migration.Spec.Target, s.Migration.ID, again[i]); err != nil {
				return err
			}
		}
		s.Log.LogAttrs(ctx, slog.LevelDebug, "ports forward")
		return nil
	})
	both.Go(func() error {
		// A QEMU that was not heard may have gone on all the same, and goes on when a port does not forward: its own word decides (aborting).
		err := goOn.Wait(within, nil)
		s.Log.LogAttrs(ctx, slog.LevelDebug, "qemu goes on", slog.Any("err", err))
		return err
	})
	if err := both.Wait(); err != nil {
		return handover.SourceEvent{Kind: handover.SourceAbort, Why: err.Error()}
	}
	return handover.SourceEvent{}
}

// cancelCopy cuts the stream and has QEMU give up; a QEMU that was never told to migrate has given up already.
func (s *Source) cancelCopy(ctx context.Context, tasks *sync.WaitGroup) handover.SourceEvent {
	s.shared.Lock()
	told, cut := s.told, s.cut
	s.shared.Unlock()
	cut()
	if !told {
		return handover.SourceEvent{Kind: handover.SourceFailed, Why: s.machine.Why}
	}
	tasks.Go(func() {
		for ctx.Err() == nil {
			if e := s.cancelOnce(ctx); e.Kind != "" {
				s.post(ctx, e)
				return
			}
			select {
			case <-ctx.Done():
			case <-s.Process.Done():
				return
			case <-time.After(cancelEvery):
			}
		}
	})
	return handover.SourceEvent{}
}

// cancelOnce asks QEMU to cancel and how that ended; a zero event means not yet.
func (s *Source) cancelOnce(ctx context.Context) handover.SourceEvent {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	conn := s.Process.QMP()
	_ = conn.MigrateCancel(within) // what it reports next counts, whether it liked the request or not
	m, err := conn.Migration(within)
	if err != nil {
		return handover.SourceEvent{}
	}
	switch m.Status { //nolint:exhaustive // every other status is on its way to one of these
	case qmp.MigrationCompleted:
		return handover.SourceEvent{Kind: handover.SourceCompleted, Authority: s.Authority()}
	case qmp.MigrationFailed, qmp.MigrationCancelled, qmp.MigrationNone, "":
		return handover.SourceEvent{Kind: handover.SourceFailed, Why: "qemu reports " + string(m.Status)}
	}
	return handover.SourceEvent{}
}

// send does one call to the target at a time; the machine asks again on its tick.
func (s *Source) send(ctx context.Context, tasks *sync.WaitGroup, call func(context.Context) handover.SourceEvent) {
	s.shared.Lock()
	busy := s.sending
	s.sending = true
	s.shared.Unlock()
	if busy {
		return
	}
	tasks.Go(func() {
		within, done := context.WithTimeout(ctx, callTimeout)
		defer done()
		e := call(within)
		s.shared.Lock()
		s.sending = false
		s.shared.Unlock()
		if e.Kind != "" {
			s.post(ctx, e)
		}
	})
}

func (s *Source) sendRelease(ctx context.Context) handover.SourceEvent {
	answer, err := s.Far.Release(ctx, s.Migration.ID)
	s.Log.LogAttrs(ctx, slog.LevelDebug, "release answered", slog.Time("resumed", answer.Resumed), slog.Any("err", err))
	if err != nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "release not answered", slog.Any("err", err))
		return handover.SourceEvent{}
	}
	e := handover.SourceEvent{Kind: handover.SourceAnswered, Answer: handover.AnswerReturned, Why: answer.Reason, Authority: s.Authority()}
	switch {
	case answer.Running:
		e.Answer = handover.AnswerRunning
		s.noteRunning(answer)
		s.commitPorts(ctx)
	case answer.Lost:
		e.Answer = handover.AnswerLost
	}
	return e
}

// noteRunning keeps the length of the pause: from QEMU's STOP here to its RESUME there. The clocks of two hosts may differ
// by more than that, and then the answer's arrival is the honest upper bound.
func (s *Source) noteRunning(answer ReleaseAnswer) {
	now := time.Now()
	s.shared.Lock()
	stopped := s.stopped
	s.shared.Unlock()
	if stopped.IsZero() {
		return
	}
	pause := now.Sub(stopped)
	if by := answer.Resumed.Sub(stopped); !answer.Resumed.IsZero() && by > 0 && by < pause {
		pause = by
	}
	s.set(func(st *inventory.MigrationStatus) {
		st.Result.StopToResume = pause
		if !st.Phase.Final() { // the store may have told first
			st.Phase = inventory.OnTarget
		}
	})
}

// noteFigures keeps what QEMU says of the finished copy. It is asked last, since it would only lengthen the way of the release.
func (s *Source) noteFigures(ctx context.Context) {
	if s.Process == nil {
		return
	}
	within, done := context.WithTimeout(ctx, figuresMax)
	defer done()
	m, err := s.Process.QMP().Migration(within)
	if err != nil || m.Status != qmp.MigrationCompleted {
		return // the figures are a courtesy
	}
	s.set(func(st *inventory.MigrationStatus) {
		st.Result.Downtime, st.Result.Sent, st.Result.Rounds = m.Downtime, m.RAM.Transferred, m.RAM.Rounds
		st.Progress.Remaining, st.Progress.Sent, st.Progress.Round = 0, m.RAM.Transferred, m.RAM.Rounds
	})
}

func (s *Source) sendDiscard(ctx context.Context) handover.SourceEvent {
	answer, err := s.Far.Discard(ctx, s.Migration.ID)
	if err != nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "discard not answered", slog.Any("err", err))
		return handover.SourceEvent{}
	}
	var run inventory.VMRun
	if answer != handover.AnswerDiscarded {
		if run, _, err = s.Records.Source(ctx, s.VM.ID, s.Attempt); err != nil {
			return handover.SourceEvent{} // asked again with the next tick
		}
	}
	e := s.Attempt.SourceHears(answer, run)
	e.Authority = s.Authority()
	return e
}

// resumeHere lets the own vCPUs run again; with a short authority it does not even try.
func (s *Source) resumeHere(loop context.Context, tasks *sync.WaitGroup) handover.SourceEvent {
	if s.Authority() < handover.AuthorityMargin {
		return handover.SourceEvent{Kind: handover.SourceResumeFailed, Why: "authority is short"}
	}
	within, done := context.WithTimeout(context.WithoutCancel(loop), callTimeout)
	defer done()
	if err := s.Cont(within); err != nil {
		if fault.Is(err, fault.Canceled) || fault.Is(err, fault.Unavailable) {
			tasks.Go(func() { s.findOutResumed(loop) })
			return handover.SourceEvent{}
		}
		return handover.SourceEvent{Kind: handover.SourceResumeFailed, Why: err.Error()}
	}
	return handover.SourceEvent{Kind: handover.SourceResumed}
}

// findOutResumed asks until QEMU says whether an unanswered cont took effect.
func (s *Source) findOutResumed(ctx context.Context) {
	for ctx.Err() == nil {
		within, done := context.WithTimeout(ctx, callTimeout)
		status, err := s.Process.QMP().Status(within)
		done()
		switch {
		case err == nil && ran(status):
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceResumed})
			return
		case err == nil:
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceResumeFailed, Why: "qemu stays " + string(status.State)})
			return
		}
		select {
		case <-ctx.Done():
		case <-s.Process.Done():
			return
		case <-time.After(cancelEvery):
		}
	}
}

func (s *Source) clearHeir(ctx context.Context) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	err := s.Records.ClearHeir(within, s.VM.ID, s.Attempt)
	switch {
	case err == nil, fault.Is(err, fault.NotFound):
		s.post(ctx, handover.SourceEvent{Kind: handover.SourceHeirCleared})
		return
	case errors.Is(err, handover.ErrRefused):
		s.readStore(ctx, handover.SourceEnding) // the VM is another host's by now: what is left here must not run on
	}
	s.Log.LogAttrs(ctx, slog.LevelWarn, "heir not cleared yet", slog.Any("err", err))
}

// watchWaits looks at what no event tells: a stream that stands still, and the owner in the store after the release.
func (s *Source) watchWaits(ctx context.Context, tasks *sync.WaitGroup) {
	switch s.machine.State { //nolint:exhaustive // the others wait for nothing that is looked at here
	case handover.SourceSwitching:
		if quiet := s.relay.Quiet(); quiet > stallMax {
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceAbort, Why: "the stream has stood still for " + quiet.Round(time.Second).String()})
		}
	case handover.SourceCopying:
		if quiet := s.relay.Quiet(); s.relay.Sent() > 0 && quiet > precopyStall {
			s.post(ctx, handover.SourceEvent{Kind: handover.SourceAbort, Why: "the stream has stood still for " + quiet.Round(time.Second).String()})
		}
	}
	if state := s.machine.State; state.Reads() {
		tasks.Go(func() { s.readStore(ctx, state) })
	}
}

// readStore tells the machine what the store says of owner and heir, and of the target's life. The leader knows no more about that than the store,
// so nobody has to pass it on.
func (s *Source) readStore(ctx context.Context, state handover.SourceState) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	run, target, err := s.Records.Source(within, s.VM.ID, s.Attempt)
	if err != nil {
		return // the tick asks again
	}
	for _, e := range s.Attempt.SourceReads(state, run, target) {
		e.Authority = s.Authority()
		s.post(ctx, e)
	}
}

// report changes the status, which is written to the store soon but not here: the guest stands still in some of these phases,
// and is not copied yet in the others.
func (s *Source) report(change func(*inventory.MigrationStatus)) {
	s.set(change)
	select {
	case s.news <- struct{}{}:
	default: // what is written next is the latest in any case
	}
}

// keepWriting writes what was reported, until the loop has ended.
func (s *Source) keepWriting(ctx context.Context) {
	for {
		select {
		case <-s.news:
			s.awaitPause(ctx)
			s.writeStatus(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// awaitPause returns when the guest does not stand still for its switchover, or has stood for writeMax: writing to the store takes processor time
// from the last pages, and who reads the record there is in no hurry. A release that the target does not hear is in the record soon enough.
func (s *Source) awaitPause(ctx context.Context) {
	late := time.After(writeMax)
	for {
		status, changed := s.Status()
		if status.Phase != inventory.Switchover && status.Phase != inventory.Released {
			return
		}
		select {
		case <-changed:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// writeStatus writes the status to the store as it is now.
func (s *Source) writeStatus(ctx context.Context) {
	s.writing.Lock()
	defer s.writing.Unlock()
	status, _ := s.Status()
	s.write(ctx, status)
}

// write writes a status to the store; s.writing is held. A store that is away keeps nothing from going on: the status is
// written again with the next phase, and the last one until it succeeds (see agent).
func (s *Source) write(ctx context.Context, status inventory.MigrationStatus) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	if err := s.Records.Status(within, s.Migration.ID, status); err != nil && ctx.Err() == nil {
		s.Log.LogAttrs(ctx, slog.LevelWarn, "migration status not written", slog.String("phase", status.Phase.String()), slog.Any("err", err))
	}
}

// reportEnd writes what the machine reports, with the figures when it is over. The end is written first and told then, so that
// who was told finds it at every host.
func (s *Source) reportEnd(ctx context.Context, a handover.SourceAction) {
	if !a.Phase.Final() {
		s.report(a.Record)
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	status, _ := s.Status()
	a.Record(&status)
	status.Ended = time.Now()
	status.Result.Total = time.Since(s.Migration.Spec.Requested)
	status.Result.Sent = max(status.Result.Sent, status.Progress.Sent, inventory.Bytes(s.relay.Sent()))
	status.Result.Rounds = max(status.Result.Rounds, status.Progress.Round)
	s.write(ctx, status)
	s.set(func(st *inventory.MigrationStatus) { *st = status })
}
