package migrate

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/fault/defect"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// run is the loop: one event, the machine's step, its actions in order.
func (t *Target) run(ctx context.Context, start func(context.Context)) Outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(t.ended)
	started := make(chan struct{})
	go func() { // waited for below
		defer close(started)
		start(ctx)
	}()
	defer func() { cancel(); <-started }()
	began := time.Now()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var waiting []chan handover.TargetAction
	for !t.machine.Final() || len(t.inbox) > 0 {
		var e targetEvent
		select {
		case <-ctx.Done():
			return Interrupted
		case e = <-t.inbox:
			if e.read != "" && e.read != t.machine.State {
				continue
			}
		case <-tick.C:
			e.Kind = handover.TargetTick
			if state := t.machine.State; state.Reads() {
				go t.readStore(ctx, state) // ends with ctx, which ends with Run
			}
			if t.abandoned(began) {
				e.Kind, e.Why = handover.TargetDiscard, "the source's stream did not come within "+preparedMax.String()
			}
		}
		if e.Authority == 0 {
			e.Authority = t.Authority()
		}
		if e.answered != nil {
			waiting = append(waiting, e.answered)
		}
		waiting = t.step(ctx, e.TargetEvent, waiting)
	}
	if t.machine.State == handover.TargetOwner {
		return Here
	}
	return Away
}

// abandoned reports whether the source never opened its stream.
func (t *Target) abandoned(began time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams == 0 && t.machine.State == handover.TargetIncoming && time.Since(began) > preparedMax
}

// step gives the machine one event and does what it answers; a failed action becomes the next event. It returns those who
// still wait for an answer.
func (t *Target) step(ctx context.Context, e handover.TargetEvent, waiting []chan handover.TargetAction) []chan handover.TargetAction {
	before := t.machine.State
	next, actions := t.machine.Step(e)
	t.machine = next
	if before != next.State {
		t.Log.LogAttrs(ctx, slog.LevelInfo, "hand-over", slog.String("event", string(e.Kind)), slog.String("from", string(before)),
			slog.String("to", string(next.State)), slog.String("why", e.Why))
	}
	for _, a := range actions {
		if a.Kind == handover.SendAnswer {
			if a.Answer != handover.AnswerDiscarded {
				t.answer(a)
			}
			for _, w := range waiting {
				w <- a
			}
			waiting = nil
			continue
		}
		if failed := t.do(ctx, a); failed.Kind != "" {
			failed.Authority = t.Authority()
			return t.step(ctx, failed, waiting)
		}
	}
	return waiting
}

// do carries one action out. An action that failed, or that brings news, returns that as an event.
func (t *Target) do(ctx context.Context, a handover.TargetAction) handover.TargetEvent {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer done()
	switch a.Kind {
	case handover.TargetJournal:
		if err := t.Journal.Append(a.Entry); err != nil {
			return handover.TargetEvent{Kind: handover.TargetJournalFailed, Why: err.Error()}
		}
	case handover.Cont:
		return t.cont(ctx)
	case handover.SendAnswer: // step does it
	case handover.RecoverPull: // of post-copy, and all migrations are pre-copy
	case handover.KillTarget:
		if p := t.Process(); p != nil {
			if err := p.Kill(undo); err != nil {
				t.Log.LogAttrs(ctx, slog.LevelError, "incoming qemu does not end", slog.Any("err", err))
			}
		}
	case handover.FreeTarget:
		for _, port := range t.Ports {
			if err := t.Switch.Discard(undo, port.ID, t.Migration); err != nil {
				t.Log.LogAttrs(ctx, slog.LevelWarn, "reserved port not removed", slog.String("port", port.ID), slog.Any("err", err))
			}
		}
		if err := t.Free(undo); err != nil {
			t.Log.LogAttrs(ctx, slog.LevelError, "clean-up at the target is incomplete", slog.Any("err", err))
		}
	case handover.OpenPort:
		for _, port := range t.Ports {
			if err := t.Switch.Open(undo, port.ID, t.Migration); err != nil {
				t.Log.LogAttrs(ctx, slog.LevelError, "switch port not opened", slog.String("port", port.ID), slog.Any("err", err))
			}
		}
	case handover.WriteOwner:
		go t.writeOwner(ctx) // ends with ctx, which ends with Run
	case handover.TargetViolation:
		t.Log.LogAttrs(ctx, slog.LevelError, "hand-over rule violated, killing the own qemu", slog.String("why", a.Why))
		if p := t.Process(); p != nil {
			_ = p.Kill(undo) // logged as an error already
		}
	}
	return handover.TargetEvent{}
}

// cont lets the vCPUs run; with a short authority it does not even try.
func (t *Target) cont(loop context.Context) handover.TargetEvent {
	if t.Authority() < handover.AuthorityMargin && !defect.Seeded.AuthorityUnchecked() {
		return handover.TargetEvent{Kind: handover.TargetContFailed, Why: "authority is short"}
	}
	p := t.Process()
	if p == nil {
		return handover.TargetEvent{Kind: handover.TargetGone, Why: "qemu is gone"}
	}
	within, done := context.WithTimeout(context.WithoutCancel(loop), callTimeout)
	defer done()
	err := t.Cont(within, p)
	switch {
	case err == nil:
		return handover.TargetEvent{Kind: handover.TargetContOK}
	case fault.Is(err, fault.Canceled), fault.Is(err, fault.Unavailable):
		go t.findOutRunning(loop) // ends with the loop
		return handover.TargetEvent{}
	}
	return handover.TargetEvent{Kind: handover.TargetContFailed, Why: err.Error()}
}

// findOutRunning asks until QEMU says whether an unanswered cont took effect; its end is told by attend.
func (t *Target) findOutRunning(ctx context.Context) {
	p := t.Process()
	for ctx.Err() == nil {
		within, done := context.WithTimeout(ctx, callTimeout)
		status, err := p.QMP().Status(within)
		done()
		switch {
		case err == nil && ran(status):
			t.post(ctx, handover.TargetEvent{Kind: handover.TargetContOK})
			return
		case err == nil:
			t.post(ctx, handover.TargetEvent{Kind: handover.TargetContFailed, Why: "qemu stays " + string(status.State)})
			return
		}
		select {
		case <-ctx.Done():
		case <-p.Done():
			return
		case <-time.After(cancelEvery):
		}
	}
}

// readStore looks for the source's release in the migration's record, and whether this host may still take the VM: the way between the agents may
// be broken while both still reach the store. Nobody but the source writes a release there, and only after its journal.
func (t *Target) readStore(ctx context.Context, state handover.TargetState) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	run, status, err := t.Records.Target(within, t.VM.ID, t.Attempt)
	if err != nil {
		return // the tick asks again
	}
	if e := t.Attempt.TargetReads(state, run, status); e.Kind != "" {
		e.Authority = t.Authority()
		select {
		case t.inbox <- targetEvent{TargetEvent: e, read: state}:
		case <-ctx.Done():
		}
	}
}

// ran reports whether vCPUs run, or ran and were stopped by what the guest did or met.
func ran(s qmp.Status) bool {
	switch s.State { //nolint:exhaustive // in every other state they have not run yet
	case qmp.StateGuestPanicked, qmp.StateIOError, qmp.StateShutdown, qmp.StateSuspended, qmp.StateInternalError:
		return true
	}
	return s.Running
}

// writeOwner makes this host owner in the store. The machine asks again on its tick.
func (t *Target) writeOwner(ctx context.Context) {
	within, done := context.WithTimeout(ctx, callTimeout)
	defer done()
	err := t.Records.TakeOwner(within, t.VM.ID, t.Attempt)
	switch {
	case err == nil:
		t.post(ctx, handover.TargetEvent{Kind: handover.TargetOwnerWritten})
	case errors.Is(err, handover.ErrRefused), fault.Is(err, fault.NotFound):
		t.post(ctx, handover.TargetEvent{Kind: handover.TargetOwnerRefused, Why: err.Error()})
	default:
		t.Log.LogAttrs(ctx, slog.LevelWarn, "owner not written yet", slog.Any("err", err))
	}
}

// post hands an event to the loop, unless ctx has ended.
func (t *Target) post(ctx context.Context, e handover.TargetEvent) {
	select {
	case t.inbox <- targetEvent{TargetEvent: e}:
	case <-ctx.Done():
	}
}
