package agent

import (
	"context"
	"errors"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/journal"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
	"github.com/godwit-vm/godwit/internal/policy/handover"
)

// arrival is the target's end of a migration, and whose VM it is.
type arrival struct {
	target *migrate.Target
	source inventory.HostID
}

// Prepare makes this host ready to receive a VM, or lists what stands against it. Repeating it returns the same.
func (a *Agent) Prepare(ctx context.Context, r migrate.PrepareRequest) (migrate.PrepareAnswer, error) {
	var none migrate.PrepareAnswer
	if err := a.awaitReady(ctx); err != nil {
		return none, err
	}
	source, err := a.Store.Host(ctx, r.Source)
	if err != nil {
		return none, err
	}
	if r.SourceEpoch < source.Spec.Epoch {
		return none, fault.New(fault.Conflict, "host %s was started again since: epoch %d is over", r.Source, r.SourceEpoch)
	}
	ready := migrate.PrepareAnswer{Epoch: a.writer.Epoch(), Boot: a.Authority.boot}
	a.mu.Lock()
	known := a.incoming[r.Migration]
	a.mu.Unlock()
	if known != nil {
		return ready, known.target.Prepared(ctx)
	}
	if _, err := a.checkMigration(ctx, false); err != nil {
		return none, err
	}
	self, err := a.describe(ctx)
	if err != nil {
		return none, err
	}
	reasons := admission.Check(admission.Facts{
		VM: r.VM, Source: source, Asked: a.Host(), Target: self, Locks: a.locks(r.VM, r.Source), TargetLacks: a.lacks(),
	})
	if len(reasons) > 0 || r.DryRun {
		ready.Reasons = reasons
		return ready, nil
	}
	target, err := a.receive(ctx, r)
	if err != nil {
		return none, err
	}
	return ready, target.Prepared(ctx)
}

// awaitReady waits until this host knows its VMs: before that it may still clean up behind the migration that it is asked about.
func (a *Agent) awaitReady(ctx context.Context) error {
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "host %s is still looking for its VMs: try again", a.Host())
	}
}

// receive begins the target's end of a migration, with a loop for the VM.
func (a *Agent) receive(ctx context.Context, r migrate.PrepareRequest) (*migrate.Target, error) {
	if a.lookup(r.VM.ID) != nil {
		return nil, fault.New(fault.Conflict, "host %s still has a copy of the VM: try again", a.Host())
	}
	if err := journal.Remove(a.journal(r.VM.ID).path); err != nil { // of finished migrations
		return nil, err
	}
	var target *migrate.Target
	v := a.begin(ctx, r.VM, func(v *vm) {
		target = migrate.NewTarget(v.targetConfig(handover.Attempt{
			Migration: r.Migration, Source: r.Source, Target: a.Host(), Generation: r.VM.Run.Generation,
		}))
		v.target = target
		for _, n := range r.VM.Spec.NICs {
			v.addresses[n.MAC] = guestAddresses(r.VM, n)
		}
		v.stored.Status = inventory.VMStatus{State: inventory.Migrating, Host: a.Host()}
		a.incoming[r.Migration] = &arrival{target: target, source: r.Source}
	})
	if target == nil {
		return nil, fault.New(fault.Conflict, "host %s still has a copy of the VM: try again", a.Host())
	}
	v.arrive(ctx, target, target.Run)
	return target, nil
}

// targetConfig gathers what a Target works with.
func (v *vm) targetConfig(attempt handover.Attempt) migrate.TargetConfig {
	a, id, source := v.agent, attempt.Migration, attempt.Source
	return migrate.TargetConfig{
		Migration: id, Attempt: attempt, VM: v.stored, Ports: v.portIDs(), Switch: ports{a}, Records: records{a},
		Journal: a.journal(v.id), Authority: a.authority,
		Cont:  func(ctx context.Context, p *qemu.Process) error { return v.letRun(ctx, p) },
		Start: func(ctx context.Context) (*qemu.Process, error) { return v.startIncoming(ctx, id, source) },
		Free: func(context.Context) error {
			target := v.arriving()
			if target == nil || target.Process() == nil {
				return qemu.Remove(v.runDir())
			}
			return target.Process().Cleanup()
		},
		Log: v.log.With(slog.String("migration", string(id))),
	}
}

// startIncoming starts the VM's incoming QEMU while the datastores take its lock record: until cont it locks no image and writes none.
func (v *vm) startIncoming(ctx context.Context, id inventory.MigrationID, source inventory.HostID) (*qemu.Process, error) {
	a := v.agent
	var locking errgroup.Group
	locking.Go(func() error { return a.lock(v.stored, v.stored.Run.Generation+1) })
	process, err := func() (*qemu.Process, error) {
		for _, port := range v.ports() {
			if err := a.Switch.Reserve(ctx, port, id, source); err != nil {
				return nil, err
			}
		}
		return a.startQEMU(ctx, v, true)
	}()
	if refused := locking.Wait(); refused != nil {
		if process != nil {
			undo := context.WithoutCancel(ctx) // Kill has a bound of its own
			refused = errors.Join(refused, process.Kill(undo), process.Cleanup())
		}
		return nil, refused
	}
	if err == nil {
		v.mayRunSoon(ctx)
	}
	return process, err
}

// arriving returns the Target while the VM arrives.
func (v *vm) arriving() *migrate.Target {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.target
}

// arrive runs a Target beside the loop and forgets it when it is over.
func (v *vm) arrive(ctx context.Context, target *migrate.Target, run func(context.Context) migrate.Outcome) {
	a := v.agent
	begun := a.spawn(context.WithoutCancel(ctx), func(ctx context.Context) {
		outcome := run(ctx)
		if outcome != migrate.Interrupted {
			a.mu.Lock()
			delete(a.incoming, target.Migration)
			a.mu.Unlock()
		}
		v.moved <- outcome
	})
	if !begun {
		v.moved <- migrate.Interrupted
	}
}

// Stream joins a memory stream from the source with the incoming QEMU; the header is the migration's id, or that of a file of a
// cold migration (fileHeader). It returns when the stream has ended.
func (a *Agent) Stream(ctx context.Context, s *peer.Stream) {
	if header, ok := fileHeader(s.Header); ok {
		a.receiveFile(ctx, s, header)
		return
	}
	id := inventory.MigrationID(s.Header)
	log := a.Log.With(slog.String("migration", string(id)), slog.String("host", string(s.From)))
	a.mu.Lock()
	in := a.incoming[id]
	a.mu.Unlock()
	if in == nil || in.source != s.From {
		err := s.Refuse(fault.New(fault.Conflict, "migration %s is not prepared at host %s", id, a.Host()))
		log.LogAttrs(ctx, slog.LevelWarn, "stream refused", slog.Any("err", err))
		return
	}
	err := s.Accept()
	if err == nil {
		err = in.target.Stream(ctx, s.Conn)
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelInfo, "stream ended early", slog.Any("err", err))
	}
}

// Release gives a VM to this host: the source will never run it again unless the answer says returned.
func (a *Agent) Release(ctx context.Context, id inventory.MigrationID, source inventory.HostID, _ uint64) (migrate.ReleaseAnswer, error) {
	// The epoch is not compared here: a source that was started again repeats a release that it has journalled, and one
	// that was fenced is refused by the record when this host takes the VM.
	target, word, err := a.arrivalOf(ctx, id, source)
	if err != nil {
		return migrate.ReleaseAnswer{}, err
	}
	switch {
	case target != nil:
		return target.Release(ctx)
	case word == handover.AnswerLost:
		return migrate.ReleaseAnswer{Lost: true, Reason: "the leader has given the VM to its host since"}, nil
	}
	return migrate.ReleaseAnswer{Running: true, Reason: "it is the owner already"}, nil
}

// Discard drops this host's side of a migration for good, if that can still be, and returns the final word on it.
func (a *Agent) Discard(ctx context.Context, id inventory.MigrationID, source inventory.HostID, _ uint64) (handover.Answer, error) {
	target, word, err := a.arrivalOf(ctx, id, source)
	if err != nil || target == nil {
		return word, err
	}
	return target.Discard(ctx, "host "+string(source)+" gave up")
}

// arrivalOf finds the target's end of a migration. One that is not being driven is rebuilt from the journal, so that its
// final word can be repeated; an owner of the VM has none, and its final word is returned instead.
func (a *Agent) arrivalOf(ctx context.Context, id inventory.MigrationID, source inventory.HostID) (*migrate.Target, handover.Answer, error) {
	if err := a.awaitReady(ctx); err != nil {
		return nil, "", err
	}
	a.mu.Lock()
	in := a.incoming[id]
	a.mu.Unlock()
	if in != nil {
		if in.source != source {
			return nil, "", fault.New(fault.Denied, "migration %s is not from host %s", id, source)
		}
		return in.target, "", nil
	}
	m, err := a.Store.Migration(ctx, id)
	if err != nil {
		return nil, "", err
	}
	if m.Spec.Source != source || m.Spec.Target != a.Host() {
		return nil, "", fault.New(fault.Denied, "migration %s is not from host %s to %s", id, source, a.Host())
	}
	stored, err := a.Store.VM(ctx, string(m.Spec.VM))
	if err != nil {
		return nil, "", err
	}
	attempt := handover.RestoreAttempt(m, stored)
	if word, ok := attempt.TargetSettled(stored.Run); ok {
		return nil, word, nil
	}
	found := attempt.TargetFound(stored.Run, handover.QEMUGone, a.rebootedIn(m, stored.Run.Heir))
	lines, err := a.journal(stored.ID).read()
	if err != nil {
		return nil, "", err
	}
	v := newVM(a, stored) // without a loop: nothing of the VM is here, only the word about it
	target := migrate.RestoreTarget(v.targetConfig(attempt), lines, nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.incoming[id]; in != nil {
		return in.target, "", nil
	}
	a.incoming[id] = &arrival{target: target, source: source}
	// With the lock held: Run takes it at once, and nobody who takes it needs the lock.
	a.spawn(context.WithoutCancel(ctx), func(ctx context.Context) {
		target.Restore(ctx, found)
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.incoming, id)
	})
	return target, "", nil
}
