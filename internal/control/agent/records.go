package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// records is migrate.Records on the store. These few lines name the heir and the owner: each change is one transaction that
// compares the run record it was decided on and the writer's epoch (driver/store, UpdateRun).
type records struct{ agent *Agent }

// SetHeir implements migrate.Records. It adds the boot id of the heir's kernel, by which others can tell later that nothing of this
// migration runs there any more.
func (r records) SetHeir(ctx context.Context, vm inventory.VMID, heir inventory.Heir) error {
	there, err := r.agent.Store.Epoch(ctx, heir.Host)
	switch {
	case err != nil:
		return err
	case there.Fenced:
		return fault.New(fault.Conflict, "host %s was fenced: %s", heir.Host, there.Why)
	}
	heir.BootID = there.BootID
	_, err = r.agent.writer.NameHeir(ctx, vm, heir.Host, func(run *inventory.VMRun) error {
		switch {
		case run.Owner != r.agent.Host():
			return fault.New(fault.Conflict, "host %s owns it", run.Owner)
		case run.Heir.Host == heir.Host && run.Heir.Migration == heir.Migration && run.Heir.Generation == heir.Generation:
			return nil
		case !run.Heir.IsZero():
			return fault.New(fault.Conflict, "host %s is heir by migration %s", run.Heir.Host, run.Heir.Migration)
		case run.Generation+1 != heir.Generation:
			return fault.New(fault.Conflict, "it was started again meanwhile, as generation %d", run.Generation)
		}
		run.Heir = heir
		return nil
	})
	return err
}

// ClearHeir implements migrate.Records.
func (r records) ClearHeir(ctx context.Context, vm inventory.VMID, id inventory.MigrationID) error {
	_, err := r.agent.writer.UpdateRun(ctx, vm, func(run *inventory.VMRun) error {
		if run.Owner == r.agent.Host() && (run.Heir.IsZero() || run.Heir.Migration == id) {
			// The generation of the attempt is burnt, also when it ended before the heir was named: the target may
			// have made its lock record with it.
			run.Generation++
			run.Heir = inventory.Heir{}
		}
		return nil
	})
	return err
}

// TakeOwner implements migrate.Records.
func (r records) TakeOwner(ctx context.Context, vm inventory.VMID, id inventory.MigrationID) error {
	_, err := r.agent.writer.UpdateRun(ctx, vm, func(run *inventory.VMRun) error {
		if run.Owner == r.agent.Host() && run.Heir.IsZero() {
			return nil
		}
		if run.Heir.Host != r.agent.Host() || run.Heir.Migration != id {
			return fault.New(fault.Conflict, "host %s is owner, and this host is not heir by migration %s", run.Owner, id)
		}
		run.Owner, run.Generation, run.Heir = run.Heir.Host, run.Heir.Generation, inventory.Heir{}
		return nil
	})
	return err
}

// Run implements migrate.Records.
func (r records) Run(ctx context.Context, vm inventory.VMID) (inventory.VMRun, error) {
	stored, err := r.agent.Store.VM(ctx, string(vm))
	return stored.Run, err
}

// HeirLost implements migrate.Records. The epoch is read first: a heir that is fenced by then is owner already, or never will be by what it
// knew before.
func (r records) HeirLost(ctx context.Context, vm inventory.VMID, id inventory.MigrationID) (why string, err error) {
	stored, err := r.agent.Store.VM(ctx, string(vm))
	heir := stored.Run.Heir
	if err != nil || heir.Migration != id {
		return "", err
	}
	there, err := r.agent.Store.Epoch(ctx, heir.Host)
	switch {
	case fault.Is(err, fault.NotFound):
		why = fmt.Sprintf("host %s was removed from the cluster", heir.Host)
	case err != nil:
		return "", err
	case there.Fenced:
		why = there.Why
	case heir.Booted(there.BootID):
		why = fmt.Sprintf("host %s was booted since", heir.Host)
	default:
		return "", nil
	}
	stored, err = r.agent.Store.VM(ctx, string(vm))
	if err != nil || stored.Run.Heir.Migration != id {
		return "", err // it had become owner before
	}
	return why, nil
}

// Released implements migrate.Records.
func (r records) Released(ctx context.Context, id inventory.MigrationID) (bool, error) {
	m, err := r.agent.Store.Migration(ctx, id)
	return m.Status.Released, err
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
func (f far) Prepare(ctx context.Context, r migrate.PrepareRequest) ([]string, error) {
	resp, err := f.client().Prepare(ctx, connect.NewRequest(&godwitv1.PrepareRequest{
		Migration: string(r.Migration), Vm: wire.VM(r.VM), Source: string(r.Source), SourceEpoch: r.SourceEpoch, DryRun: r.DryRun,
	}))
	if err != nil {
		return nil, wire.FromFault(err)
	}
	return resp.Msg.GetReasons(), nil
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
