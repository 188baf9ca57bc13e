package qmp

import (
	"context"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// MigrationStatus is where QEMU's own migration stands (QAPI "MigrationStatus").
type MigrationStatus string

// The statuses. QEMU before 9.0 or so goes through device only with pause-before-switchover.
const (
	MigrationNone            MigrationStatus = "none"
	MigrationSetup           MigrationStatus = "setup"
	MigrationActive          MigrationStatus = "active"
	MigrationPreSwitchover   MigrationStatus = "pre-switchover"
	MigrationDevice          MigrationStatus = "device"
	MigrationPostcopy        MigrationStatus = "postcopy-active"
	MigrationPostcopyPaused  MigrationStatus = "postcopy-paused"
	MigrationPostcopyRecover MigrationStatus = "postcopy-recover"
	MigrationCompleted       MigrationStatus = "completed"
	MigrationFailed          MigrationStatus = "failed"
	MigrationCancelling      MigrationStatus = "cancelling"
	MigrationCancelled       MigrationStatus = "cancelled"
	MigrationWaitUnplug      MigrationStatus = "wait-unplug"
)

// Ended reports whether QEMU has nothing more to do for this migration, however it went.
func (s MigrationStatus) Ended() bool {
	return s == MigrationCompleted || s == MigrationFailed || s == MigrationCancelled
}

// Migration is the answer of query-migrate, source or target. Figures that QEMU does not give in its status are zero.
type Migration struct {
	Status           MigrationStatus // "" before the first migration
	Error            string          // QEMU's reason, when it failed
	Blocked          []string        // why the VM cannot migrate, when it cannot
	Total            time.Duration   // since the start. 7.2 may say 0 right after completed: ask again some ms later
	Downtime         time.Duration   // only when completed
	ExpectedDowntime time.Duration
	Setup            time.Duration
	Throttle         int // percent of vCPU time that auto-converge takes away
	RAM              MigrationRAM
}

// MigrationRAM is how far the memory is.
type MigrationRAM struct {
	Total       inventory.Bytes
	Remaining   inventory.Bytes
	Transferred inventory.Bytes
	Precopy     inventory.Bytes
	DowntimeRAM inventory.Bytes // sent while the VM was stopped
	Postcopy    inventory.Bytes
	DirtyRate   inventory.BytesPerSecond // of the last round; 0 until the second
	SendRate    inventory.BytesPerSecond // recent throughput
	Rounds      int                      // dirty bitmap synchronisations so far
	PageSize    inventory.Bytes
	NormalPages int64 // pages sent whole
	ZeroPages   int64
}

// migrationInfo is query-migrate's answer on the wire (QAPI "MigrationInfo"); times in milliseconds.
type migrationInfo struct {
	Status   MigrationStatus `json:"status"`
	Error    string          `json:"error-desc"`
	Blocked  []string        `json:"blocked-reasons"`
	Total    int64           `json:"total-time"`
	Downtime int64           `json:"downtime"`
	Expected int64           `json:"expected-downtime"`
	Setup    int64           `json:"setup-time"`
	Throttle int             `json:"cpu-throttle-percentage"`
	RAM      struct {
		Total       int64   `json:"total"`
		Remaining   int64   `json:"remaining"`
		Transferred int64   `json:"transferred"`
		Precopy     int64   `json:"precopy-bytes"`
		Downtime    int64   `json:"downtime-bytes"`
		Postcopy    int64   `json:"postcopy-bytes"`
		DirtyPages  int64   `json:"dirty-pages-rate"`
		Mbps        float64 `json:"mbps"`
		Syncs       int     `json:"dirty-sync-count"`
		PageSize    int64   `json:"page-size"`
		Normal      int64   `json:"normal"`
		Duplicate   int64   `json:"duplicate"`
	} `json:"ram"`
}

// Migration asks how the migration stands. The source may not answer at all while it is in the device phase and the target does
// not read (measured with 7.2 and 10.0), so never rest a time limit on it.
func (c *Conn) Migration(ctx context.Context) (Migration, error) {
	var w migrationInfo
	if err := c.Do(ctx, "query-migrate", nil, &w); err != nil {
		return Migration{}, err
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return Migration{
		Status: w.Status, Error: w.Error, Blocked: w.Blocked, Throttle: w.Throttle,
		Total: ms(w.Total), Downtime: ms(w.Downtime), ExpectedDowntime: ms(w.Expected), Setup: ms(w.Setup),
		RAM: MigrationRAM{
			Total: inventory.Bytes(w.RAM.Total), Remaining: inventory.Bytes(w.RAM.Remaining),
			Transferred: inventory.Bytes(w.RAM.Transferred), Precopy: inventory.Bytes(w.RAM.Precopy),
			DowntimeRAM: inventory.Bytes(w.RAM.Downtime), Postcopy: inventory.Bytes(w.RAM.Postcopy),
			DirtyRate: inventory.BytesPerSecond(w.RAM.DirtyPages * w.RAM.PageSize),
			SendRate:  inventory.BytesPerSecond(w.RAM.Mbps * 1e6 / 8),
			Rounds:    w.RAM.Syncs, PageSize: inventory.Bytes(w.RAM.PageSize),
			NormalPages: w.RAM.Normal, ZeroPages: w.RAM.Duplicate,
		},
	}, nil
}

// Migrate begins to send the VM to uri ("unix:/path", "fd:name"). It returns when QEMU has begun; how it goes is told by
// MIGRATION events. Capabilities and parameters are set before.
func (c *Conn) Migrate(ctx context.Context, uri string) error {
	return c.Do(ctx, "migrate", map[string]any{"uri": uri}, nil)
}

// MigrateIncoming makes a QEMU that was started with -incoming defer listen on uri. With stayOnError (abilities:
// incoming-stay-on-error, QEMU 9.1 on) it does not exit when the stream is bad, so that Migration can tell why.
func (c *Conn) MigrateIncoming(ctx context.Context, uri string, stayOnError bool) error {
	args := map[string]any{"uri": uri}
	if stayOnError {
		args["exit-on-error"] = false
	}
	return c.Do(ctx, "migrate-incoming", args, nil)
}

// MigrateCancel asks QEMU to give the migration up; the MIGRATION event "cancelled" says when it has. QEMU ends a write that hangs by
// shutting its socket down, so over "fd:" of a full pipe, which has no shutdown, the event never comes.
func (c *Conn) MigrateCancel(ctx context.Context) error {
	return c.Do(ctx, "migrate_cancel", nil, nil)
}

// MigrateContinue goes on from pre-switchover, where pause-before-switchover has stopped.
func (c *Conn) MigrateContinue(ctx context.Context) error {
	return c.SendMigrateContinue(ctx).Wait(ctx, nil)
}

// SendMigrateContinue does what MigrateContinue does, and leaves the answer to Wait.
func (c *Conn) SendMigrateContinue(ctx context.Context) *Sent {
	return c.Send(ctx, "migrate-continue", map[string]any{"state": MigrationPreSwitchover})
}

// SetMigrationCapabilities switches migration capabilities on or off; both ends need the same before
// MigrateIncoming. A name that this QEMU lacks is refused as a whole.
func (c *Conn) SetMigrationCapabilities(ctx context.Context, on map[string]bool) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	list := make([]capability, 0, len(on))
	for name, state := range on {
		list = append(list, capability{name, state})
	}
	return c.Do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list}, nil)
}

// MigrationCapabilities returns all migration capabilities by name and whether they are on.
func (c *Conn) MigrationCapabilities(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	err := c.Do(ctx, "query-migrate-capabilities", nil, &list)
	on := make(map[string]bool, len(list))
	for _, l := range list {
		on[l.Name] = l.State
	}
	return on, err
}

// MigrationParameters are the migration parameters that Godwit sets. Zero fields are left as they are.
type MigrationParameters struct {
	BandwidthMax     inventory.BytesPerSecond // QEMU's default is 128 MiB/s
	DowntimeMax      time.Duration            // the predicted pause at which the switchover begins; whole milliseconds
	ThrottleInitial  int                      // percent, auto-converge
	ThrottleStep     int                      // percent, auto-converge
	ThrottleMax      int                      // percent, auto-converge
	Channels         int                      // multifd
	AnnounceInitial  time.Duration
	AnnounceMax      time.Duration
	AnnounceRounds   int
	AnnounceStep     time.Duration
	SwitchoverRate   inventory.BytesPerSecond // avail-switchover-bandwidth, QEMU 8.2 on: what the pause is predicted with
	PostcopyRateMax  inventory.BytesPerSecond
	ThrottleTailSlow bool
}

// DowntimeNone asks for a switchover only when next to nothing is left to send: 1 ms, the least with which QEMU asks at the end of a round what the guest has
// written in it. With 0 it stops the guest there, however much that is (migration_iteration_run in migration/migration.c).
const DowntimeNone = time.Millisecond

// SetMigrationParameters sets the parameters that are not zero.
func (c *Conn) SetMigrationParameters(ctx context.Context, p MigrationParameters) error {
	args := map[string]any{}
	set := func(name string, n int64) {
		if n != 0 {
			args[name] = n
		}
	}
	set("max-bandwidth", int64(p.BandwidthMax))
	set("downtime-limit", p.DowntimeMax.Milliseconds())
	set("cpu-throttle-initial", int64(p.ThrottleInitial))
	set("cpu-throttle-increment", int64(p.ThrottleStep))
	set("max-cpu-throttle", int64(p.ThrottleMax))
	set("multifd-channels", int64(p.Channels))
	set("announce-initial", p.AnnounceInitial.Milliseconds())
	set("announce-max", p.AnnounceMax.Milliseconds())
	set("announce-rounds", int64(p.AnnounceRounds))
	set("announce-step", p.AnnounceStep.Milliseconds())
	set("avail-switchover-bandwidth", int64(p.SwitchoverRate))
	set("max-postcopy-bandwidth", int64(p.PostcopyRateMax))
	if p.ThrottleTailSlow {
		args["cpu-throttle-tailslow"] = true
	}
	return c.Do(ctx, "migrate-set-parameters", args, nil)
}

// MigrationParameters returns all parameters by name as QEMU gives them: numbers are float64, times milliseconds, rates bytes per second.
func (c *Conn) MigrationParameters(ctx context.Context) (map[string]any, error) {
	var all map[string]any
	err := c.Do(ctx, "query-migrate-parameters", nil, &all)
	return all, err
}

// AnnounceParameters say how often a NIC announces itself by reverse ARP (RFC 903).
type AnnounceParameters struct {
	Initial time.Duration // before the first repetition
	Max     time.Duration // between two
	Rounds  int
	Step    time.Duration // by which the wait grows
}

// AnnounceSelf makes all NICs announce themselves, so that switches learn where the VM is. QEMU does so by itself after an incoming
// migration (5 times within 800 ms).
func (c *Conn) AnnounceSelf(ctx context.Context, p AnnounceParameters) error {
	return c.Do(ctx, "announce-self", map[string]any{
		"initial": p.Initial.Milliseconds(), "max": p.Max.Milliseconds(), "rounds": p.Rounds, "step": p.Step.Milliseconds(),
	}, nil)
}
