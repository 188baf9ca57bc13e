package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/journal"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
	"github.com/godwit-vm/godwit/internal/wire"
)

// records is migrate.Records on the store. What may be changed policy/handover says; each change is one transaction that compares the run
// record it was decided on and the writer's epoch (driver/store, UpdateRun).
type records struct{ agent *Agent }

// SetHeir implements migrate.Records.
func (r records) SetHeir(ctx context.Context, vm inventory.VMID, a handover.Attempt) error {
	there, err := r.agent.Store.Sign(ctx, a.Target)
	if err != nil {
		return err
	}
	_, err = r.agent.writer.NameHeir(ctx, vm, a.Target, func(run *inventory.VMRun) (err error) {
		*run, err = a.SetHeir(*run, there)
		return err
	})
	return err
}

// ClearHeir implements migrate.Records.
func (r records) ClearHeir(ctx context.Context, vm inventory.VMID, a handover.Attempt) error {
	_, err := r.agent.writer.UpdateRun(ctx, vm, func(run *inventory.VMRun) (err error) {
		*run, err = a.ClearHeir(*run)
		return err
	})
	return err
}

// TakeOwner implements migrate.Records.
func (r records) TakeOwner(ctx context.Context, vm inventory.VMID, a handover.Attempt) error {
	_, err := r.agent.writer.UpdateRun(ctx, vm, func(run *inventory.VMRun) (err error) {
		*run, err = a.TakeOwner(*run)
		return err
	})
	return err
}

// Source implements migrate.Records. The sign is read first: an heir that is fenced by then is owner already, or never will be by what it
// knew before.
func (r records) Source(ctx context.Context, vm inventory.VMID, a handover.Attempt) (inventory.VMRun, inventory.Sign, error) {
	there, err := r.agent.Store.Sign(ctx, a.Target)
	if err != nil {
		return inventory.VMRun{}, there, err
	}
	stored, err := r.agent.Store.VM(ctx, string(vm))
	return stored.Run, there, err
}

// Target implements migrate.Records. The status is read first: the VM may have been given to another since the source has released it.
func (r records) Target(ctx context.Context, vm inventory.VMID, a handover.Attempt) (inventory.VMRun, inventory.MigrationStatus, error) {
	m, err := r.agent.Store.Migration(ctx, a.Migration)
	if err != nil {
		return inventory.VMRun{}, m.Status, err
	}
	stored, err := r.agent.Store.VM(ctx, string(vm))
	return stored.Run, m.Status, err
}

// Status implements migrate.Records.
func (r records) Status(ctx context.Context, id inventory.MigrationID, s inventory.MigrationStatus) error {
	return r.agent.writer.PutMigrationStatus(ctx, id, s)
}

// far is migrate.Far over the API of the target's agent.
type far struct {
	agent  *Agent
	target inventory.Host
}

func (f far) client() godwitv1connect.HandoverServiceClient {
	web := f.agent.Peers.HTTPClient(f.target.ID, f.target.Spec.Address)
	return godwitv1connect.NewHandoverServiceClient(web, "https://"+f.target.Spec.Address)
}

// Prepare implements migrate.Far.
func (f far) Prepare(ctx context.Context, r migrate.PrepareRequest) (migrate.PrepareAnswer, error) {
	resp, err := f.client().Prepare(ctx, connect.NewRequest(&godwitv1.PrepareRequest{
		Migration: string(r.Migration), Vm: wire.VM(r.VM), Source: string(r.Source), SourceEpoch: r.SourceEpoch, DryRun: r.DryRun,
	}))
	if err != nil {
		return migrate.PrepareAnswer{}, wire.FromFault(err)
	}
	return migrate.PrepareAnswer{Reasons: resp.Msg.GetReasons(), Epoch: resp.Msg.GetTargetEpoch(), Boot: resp.Msg.GetBootId()}, nil
}

// Warm implements migrate.Far.
func (f far) Warm(ctx context.Context) error {
	return f.agent.Peers.Warm(ctx, f.target.ID, f.target.Spec.Address)
}

// Release implements migrate.Far.
func (f far) Release(ctx context.Context, id inventory.MigrationID) (migrate.ReleaseAnswer, error) {
	resp, err := f.client().Release(ctx, connect.NewRequest(&godwitv1.ReleaseRequest{
		Migration: string(id), Source: string(f.agent.Host()), SourceEpoch: f.agent.writer.Epoch(),
	}))
	if err != nil {
		return migrate.ReleaseAnswer{}, wire.FromFault(err)
	}
	answer := migrate.ReleaseAnswer{Reason: resp.Msg.GetReason()}
	switch resp.Msg.GetAnswer() {
	case godwitv1.ReleaseResponse_ANSWER_RUNNING:
		answer.Running = true
		if n := resp.Msg.GetResumedUnixNanos(); n > 0 {
			answer.Resumed = time.Unix(0, n)
		}
	case godwitv1.ReleaseResponse_ANSWER_RETURNED:
	case godwitv1.ReleaseResponse_ANSWER_LOST:
		answer.Lost = true
	case godwitv1.ReleaseResponse_ANSWER_UNSPECIFIED:
		return answer, fault.New(fault.Unavailable, "the target gave no answer")
	}
	return answer, nil
}

// Discard implements migrate.Far.
func (f far) Discard(ctx context.Context, id inventory.MigrationID) (handover.Answer, error) {
	resp, err := f.client().Discard(ctx, connect.NewRequest(&godwitv1.DiscardRequest{
		Migration: string(id), Source: string(f.agent.Host()), SourceEpoch: f.agent.writer.Epoch(),
	}))
	if err != nil {
		return "", wire.FromFault(err)
	}
	switch resp.Msg.GetAnswer() {
	case godwitv1.DiscardResponse_ANSWER_DISCARDED:
		return handover.AnswerDiscarded, nil
	case godwitv1.DiscardResponse_ANSWER_RUNNING:
		return handover.AnswerRunning, nil
	case godwitv1.DiscardResponse_ANSWER_LOST:
		return handover.AnswerLost, nil
	case godwitv1.DiscardResponse_ANSWER_UNSPECIFIED:
	}
	return "", fault.New(fault.Unavailable, "the target gave no answer")
}

// Stream implements migrate.Far.
func (f far) Stream(ctx context.Context, id inventory.MigrationID) (net.Conn, error) {
	return f.agent.Peers.DialStream(ctx, f.target.ID, f.target.Spec.Address, []byte(id))
}

// entries is migrate.Journal on the journal at a path. It opens the file for each entry, which costs some 50 µs on tmpfs
// and leaves nothing open: a VM has a few entries in its life.
type entries struct{ path string }

// Append implements migrate.Journal.
func (e entries) Append(entry handover.Entry) error {
	j, _, err := journal.Open(e.path)
	if err != nil {
		return err
	}
	return errors.Join(j.Append(string(entry.Kind), string(entry.Migration), entry.Why), j.Close())
}

// read returns what the journal holds.
func (e entries) read() ([]handover.Entry, error) {
	records, err := journal.Read(e.path)
	if err != nil {
		return nil, err
	}
	all := make([]handover.Entry, 0, len(records))
	for _, r := range records {
		entry := handover.Entry{Kind: handover.EntryKind(r.Kind), Migration: inventory.MigrationID(r.ID)}
		if err := json.Unmarshal(r.Data, &entry.Why); err != nil {
			return nil, fault.New(fault.Internal, "journal %s: %w", e.path, err)
		}
		all = append(all, entry)
	}
	return all, nil
}
