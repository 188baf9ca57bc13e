package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// PhaseUnknown is what the name of a phase reads as that a newer version wrote. It is not final, and it is no phase in
// which this version may act.
const PhaseUnknown = inventory.Phase(-1)

// Migration returns the message of a whole migration.
func Migration(m inventory.Migration) *godwitv1.Migration {
	return &godwitv1.Migration{Id: string(m.ID), Spec: MigrationSpec(m.Spec), Status: MigrationStatus(m.Status)}
}

// FromMigration returns the migration of the message.
func FromMigration(m *godwitv1.Migration) inventory.Migration {
	return inventory.Migration{
		ID:     inventory.MigrationID(m.GetId()),
		Spec:   FromMigrationSpec(m.GetSpec()),
		Status: FromMigrationStatus(m.GetStatus()),
	}
}

// MigrationSpec returns the message of what was asked for.
func MigrationSpec(s inventory.MigrationSpec) *godwitv1.MigrationSpec {
	return &godwitv1.MigrationSpec{
		Vm:          string(s.VM),
		VmName:      s.VMName,
		Source:      string(s.Source),
		Target:      string(s.Target),
		Bandwidth:   int64(s.Bandwidth),
		DowntimeMax: span(s.DowntimeMax),
		Requested:   stamp(s.Requested),
		By:          s.By,
		Canceled:    s.Canceled,
	}
}

// FromMigrationSpec returns the spec of the message.
func FromMigrationSpec(m *godwitv1.MigrationSpec) inventory.MigrationSpec {
	return inventory.MigrationSpec{
		VM:          inventory.VMID(m.GetVm()),
		VMName:      m.GetVmName(),
		Source:      inventory.HostID(m.GetSource()),
		Target:      inventory.HostID(m.GetTarget()),
		Bandwidth:   inventory.BytesPerSecond(m.GetBandwidth()),
		DowntimeMax: fromSpan(m.GetDowntimeMax()),
		Requested:   fromStamp(m.GetRequested()),
		By:          m.GetBy(),
		Canceled:    m.GetCanceled(),
	}
}

// MigrationStatus returns the message of where a migration stands.
func MigrationStatus(s inventory.MigrationStatus) *godwitv1.MigrationStatus {
	return &godwitv1.MigrationStatus{
		Phase:    s.Phase.String(),
		Reason:   s.Reason,
		Reasons:  texts(s.Reasons),
		Progress: progress(s.Progress),
		Started:  stamp(s.Started),
		Ended:    stamp(s.Ended),
		Result:   result(s.Result),
		Released: s.Released, SourceDiscarded: s.SourceDiscarded,
	}
}

// FromMigrationStatus returns where the migration of the message stands.
func FromMigrationStatus(m *godwitv1.MigrationStatus) inventory.MigrationStatus {
	return inventory.MigrationStatus{
		Phase:    fromPhase(m.GetPhase()),
		Reason:   m.GetReason(),
		Reasons:  ids[string](m.GetReasons()),
		Progress: fromProgress(m.GetProgress()),
		Started:  fromStamp(m.GetStarted()),
		Ended:    fromStamp(m.GetEnded()),
		Result:   fromResult(m.GetResult()),
		Released: m.GetReleased(), SourceDiscarded: m.GetSourceDiscarded(),
	}
}

func fromPhase(name string) inventory.Phase {
	if name == "" {
		return inventory.Planned
	}
	for p := inventory.Planned; p <= inventory.Undecided; p++ {
		if p.String() == name {
			return p
		}
	}
	return PhaseUnknown
}

func progress(p inventory.Progress) *godwitv1.Progress {
	if p == (inventory.Progress{}) {
		return nil
	}
	return &godwitv1.Progress{
		Round:      narrow(p.Round),
		Total:      int64(p.Total),
		Remaining:  int64(p.Remaining),
		Sent:       int64(p.Sent),
		DirtyRate:  int64(p.DirtyRate),
		SendRate:   int64(p.SendRate),
		Eta:        span(p.ETA),
		Throttle:   narrow(p.Throttle),
		Elapsed:    span(p.Elapsed),
		DowntimeBy: span(p.DowntimeBy),
	}
}

func fromProgress(m *godwitv1.Progress) inventory.Progress {
	return inventory.Progress{
		Round:      int(m.GetRound()),
		Total:      inventory.Bytes(m.GetTotal()),
		Remaining:  inventory.Bytes(m.GetRemaining()),
		Sent:       inventory.Bytes(m.GetSent()),
		DirtyRate:  inventory.BytesPerSecond(m.GetDirtyRate()),
		SendRate:   inventory.BytesPerSecond(m.GetSendRate()),
		ETA:        fromSpan(m.GetEta()),
		Throttle:   int(m.GetThrottle()),
		Elapsed:    fromSpan(m.GetElapsed()),
		DowntimeBy: fromSpan(m.GetDowntimeBy()),
	}
}

func result(r inventory.MigrationResult) *godwitv1.MigrationResult {
	if r == (inventory.MigrationResult{}) {
		return nil
	}
	return &godwitv1.MigrationResult{
		Total:        span(r.Total),
		Downtime:     span(r.Downtime),
		StopToResume: span(r.StopToResume),
		Sent:         int64(r.Sent),
		Rounds:       narrow(r.Rounds),
	}
}

func fromResult(m *godwitv1.MigrationResult) inventory.MigrationResult {
	return inventory.MigrationResult{
		Total:        fromSpan(m.GetTotal()),
		Downtime:     fromSpan(m.GetDowntime()),
		StopToResume: fromSpan(m.GetStopToResume()),
		Sent:         inventory.Bytes(m.GetSent()),
		Rounds:       int(m.GetRounds()),
	}
}
