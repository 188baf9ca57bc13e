// Package agent is a host's side of Godwit: it runs the host's VMs, each owned by one goroutine, moves them, and answers for
// the host.
//
// What the agent knows it can lose: VMs are processes of their own with a run directory each, and an agent that starts
// finds them again (adopt.go), in the middle of a migration too. It keeps inventory in the store only, and telemetry in
// memory only. It does not decide where VMs belong; it starts what its host owns and refuses what a hand-over forbids.
//
//	API call ─► vm.calls ─► ┌─────────────┐ ─► QEMU (driver/qemu, driver/qmp)
//	QEMU's events ────────► │ one goroutine│ ─► switch ports (driver/vnet), lock records (driver/datastore)
//	end of a migration ───► │   per VM     │ ─► run record and status (driver/store)
//	                        └─────────────┘
package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/access"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// Config is what an Agent is made of. The drivers are open and stay the caller's to close.
type Config struct {
	Host       inventory.HostID
	Identity   *peer.Identity
	Address    string // host:port of the agent, as others reach it
	Trunk      string // host:port of the switch's trunk listener
	Version    string
	RunDir     string // sockets, run directories and journals; on tmpfs
	Cgroup     string // below the cgroup v2 mount: each VM's is CGROUP/HOST/VM
	Data       string // the host's data folder, which the doctor looks at
	CacheDir   string // results of probes
	Binary     string // QEMU; empty: the usual place
	User       *qemu.User
	Datastores []Mount
	Store      *store.Store
	Authority  *Authority // claimed by this agent; Run's caller ends it
	Peers      *peer.Dialer
	Switch     *vnet.Client
	Carriers   map[inventory.NetworkID]bridge.Carrier // of the bridge networks that this host is to have
	CA         *peer.CA                               // nil on all hosts but the one that made the cluster
	Secret     []byte                                 // of the cluster, with which the key of the CA is sealed
	// StoreClient and StorePeer are the URLs of the member of the store that this host can carry; empty with a store that is not Godwit's own, whose
	// access is StoreAccess.
	StoreClient, StorePeer string
	StoreAccess            *StoreAccess
	Memory                 int64             // bytes that the agent of a host without VMs is to keep below; 0: not looked after
	Watchdog               string            // the device that the warden is to arm, "" for none, for the doctor
	Starting               func(what string) // told each step until the agent is ready; may take no time
	Log                    *slog.Logger

	WatchdogTimeout time.Duration // of Watchdog
}

// Mount is a datastore of this host.
type Mount struct {
	Path   string
	Shared bool
}

// Agent runs a host. New makes it, Run runs it; all other methods may be called by many goroutines while it runs.
type Agent struct {
	Config

	writer    *store.Writer
	desk      *access.Desk
	tasks     *task.Keeper
	abilities qemu.Abilities
	stores    map[inventory.DatastoreID]*datastore.Datastore
	arbiters  arbiters
	started   time.Time
	ready     chan struct{}              // closed when every VM that runs here is adopted
	spawned   chan func(context.Context) // what requests begin and Run runs and waits for
	ended     chan struct{}              // closed when Run takes no more of it

	terms       terms
	rebooted    bool       // the host was booted since an agent took in what was here
	fenced      bool       // what was here of VMs was ended, since the host was fenced
	verdictOnce sync.Mutex // one correctness probe at a time
	publishing  sync.Mutex // held over describing the host and writing that, so that no older one overtakes
	verdict     inventory.Verdict

	networksMu sync.Mutex                                    // may be taken with mu held
	networks   map[inventory.NetworkID]inventory.NetworkSpec // all, as last read

	mu       sync.Mutex
	vms      map[inventory.VMID]*vm
	incoming map[inventory.MigrationID]*arrival
	before   map[inventory.MigrationID]bool // migrations that were open when this agent started
	cut      map[inventory.MigrationID]bool // those of them that were open when the host was booted
	moves    map[string]*coming             // cold migrations that bring files here

	published  inventory.HostSpec
	announcing map[string]context.CancelFunc // by port: guests that have just arrived
}

// New opens the datastores and probes QEMU. It fails when the store cannot be reached before ctx ends.
func New(ctx context.Context, c Config) (*Agent, error) {
	if c.Starting == nil {
		c.Starting = func(string) {}
	}
	a := &Agent{
		Config: c, tasks: task.New(c.Host), stores: map[inventory.DatastoreID]*datastore.Datastore{}, started: time.Now(), ready: make(chan struct{}),
		spawned: make(chan func(context.Context)), ended: make(chan struct{}),
		vms: map[inventory.VMID]*vm{}, incoming: map[inventory.MigrationID]*arrival{}, before: map[inventory.MigrationID]bool{}, cut: map[inventory.MigrationID]bool{},
		moves:    map[string]*coming{},
		networks: map[inventory.NetworkID]inventory.NetworkSpec{}, announcing: map[string]context.CancelFunc{},
	}
	for _, m := range c.Datastores {
		ds, err := datastore.Open(m.Path)
		if err != nil {
			return nil, err
		}
		a.stores[ds.ID] = ds
		a.arbiters.judge(ds, m)
	}
	a.sweepImages(ctx)
	for _, dir := range []string{"vms", "ports", "journal"} {
		// Others may pass through but not look: QEMU's user reaches its own sockets below.
		if err := os.MkdirAll(filepath.Join(c.RunDir, dir), 0o711); err != nil {
			return nil, fault.New(fault.Internal, "run directory: %w", err)
		}
	}
	var err error
	if a.abilities, err = qemu.Probe(ctx, a.probe()); err != nil {
		return nil, err
	}
	a.rebooted, a.fenced = c.Authority.rebooted(), c.Authority.cast
	a.writer = c.Store.As(c.Host, c.Authority.Epoch())
	a.desk = access.New(c.Store, a.writer, a.tasks)
	a.tasks.KeepIn(ledger{a.writer, a}, c.Log)
	hosts, err := c.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	a.arbiters.compare(a.Host(), hosts)
	if err := a.introduce(ctx); err != nil {
		return nil, err
	}
	if c.Authority.restored() {
		if err := a.settleRestored(ctx); err != nil {
			return nil, err
		}
		if err := c.Authority.restoredSettled(); err != nil {
			return nil, err
		}
	}
	return a, a.publish(ctx)
}

func (a *Agent) probe() qemu.ProbeConfig {
	return qemu.ProbeConfig{Binary: a.Binary, User: a.User, CacheDir: a.CacheDir}
}

// Desk returns the host's desk for users and their tokens.
func (a *Agent) Desk() *access.Desk { return a.desk }

// Epoch returns the epoch of this agent.
func (a *Agent) Epoch() uint64 { return a.writer.Epoch() }

// Host returns the id of the agent's host.
func (a *Agent) Host() inventory.HostID { return a.Config.Host }

// Run adopts what runs here and serves until ctx ends. VMs go on without it.
func (a *Agent) Run(ctx context.Context) error {
	loops, ctx := errgroup.WithContext(ctx)
	loops.Go(func() error {
		defer close(a.ended)
		for {
			select {
			case f := <-a.spawned:
				loops.Go(func() error { f(ctx); return nil })
			case <-ctx.Done():
				return nil
			}
		}
	})
	loops.Go(func() error { return a.keepStandstill(ctx) })
	loops.Go(func() error { return a.keepSuperseded(ctx) })
	loops.Go(func() error { return a.followNetworks(ctx) })
	loops.Go(func() error { return a.followLinks(ctx) })
	loops.Go(func() error { return a.followMigrations(ctx) })
	loops.Go(func() error { return a.followHosts(ctx) })
	loops.Go(func() error { return a.followVMs(ctx) })
	loops.Go(func() error { a.keepStatus(ctx); return nil })
	loops.Go(func() error { a.keepTasks(ctx); return nil })
	loops.Go(func() error { a.keepCertificate(ctx); return nil })
	loops.Go(func() error {
		if _, err := a.checkMigration(ctx, false); err != nil && ctx.Err() == nil {
			a.Log.LogAttrs(ctx, slog.LevelError, "migration probe", slog.Any("err", err))
		}
		return nil
	})
	if err := a.Authority.clear(ctx, a.Starting); err != nil {
		return errors.Join(err, loops.Wait())
	}
	a.sweepFiles(ctx)
	if err := a.adopt(ctx); err != nil {
		return err
	}
	close(a.ready)
	a.endTasks(ctx)
	return loops.Wait()
}

// spawn runs f with Run's context, which outlives the request that asks for it. It returns false when Run is ending.
func (a *Agent) spawn(ctx context.Context, f func(context.Context)) bool {
	select {
	case a.spawned <- f:
		return true
	case <-a.ended:
	case <-ctx.Done():
	}
	return false
}

// Ready is closed when every VM that runs here has been adopted; calls before that may find a VM missing.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// VM returns a VM by name or id, live when it runs here.
func (a *Agent) VM(ctx context.Context, nameOrID string) (inventory.VM, error) {
	stored, err := a.Store.VM(ctx, nameOrID)
	if err != nil {
		return inventory.VM{}, err
	}
	return a.live(stored), nil
}

// VMs returns all VMs of the cluster, live where they run here.
func (a *Agent) VMs(ctx context.Context) ([]inventory.VM, error) {
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := a.Store.Standings(ctx)
	if err != nil {
		return nil, err
	}
	for i, vm := range all {
		all[i] = a.live(vm)
		if state := hosts[vm.Run.Owner].State; vm.Run.Owner != a.Host() && state != "" && authority.Standing(state) != authority.Up {
			// What its host wrote last may have been a while ago.
			all[i].Status.State, all[i].Status.Detail = inventory.Unknown, "host "+string(vm.Run.Owner)+" is "+state
		}
	}
	return all, nil
}

// live replaces what the store remembers of a VM by what its loop knows.
func (a *Agent) live(stored inventory.VM) inventory.VM {
	stored.Status = stored.StatusNow()
	if stored.Run.Owner != a.Host() {
		return stored
	}
	if v := a.lookup(stored.ID); v != nil {
		stored.Status = v.snapshot()
	}
	return stored
}

func (a *Agent) lookup(id inventory.VMID) *vm {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.vms[id]
}

// own returns the VM's loop, or why this host cannot act on it.
func (a *Agent) own(id inventory.VMID) (*vm, error) {
	if v := a.lookup(id); v != nil {
		return v, nil
	}
	select {
	case <-a.ready:
		return nil, fault.New(fault.Conflict, "vm %s is not at %s: it moved meanwhile, try again", id, a.Host())
	default:
		return nil, fault.New(fault.Unavailable, "host %s is still looking for its VMs: try again", a.Host())
	}
}

// begin starts the loop of a VM, unless it has one.
func (a *Agent) begin(ctx context.Context, stored inventory.VM, setUp func(*vm)) *vm {
	a.mu.Lock()
	if v := a.vms[stored.ID]; v != nil {
		a.mu.Unlock()
		return v
	}
	v := newVM(a, stored)
	if setUp != nil {
		setUp(v)
	}
	a.vms[stored.ID] = v
	a.limitMemory()
	a.mu.Unlock()
	forget := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.vms[stored.ID] == v {
			delete(a.vms, stored.ID)
			a.limitMemory()
		}
	}
	if !a.spawn(context.WithoutCancel(ctx), func(ctx context.Context) { defer forget(); v.loop(ctx) }) {
		forget()
		close(v.over)
	}
	return v
}

// memoryPerVM is what the agent may take more for each VM: its loop, its monitor, and what its guest said last.
const memoryPerVM = 256 << 10

// limitMemory lets the agent grow with its VMs. A limit that stays while they become many would have the collector run
// all the time: with 100 VMs and the limit of an empty host it took half of the agent's processor time. The caller holds a.mu.
func (a *Agent) limitMemory() {
	if a.Memory > 0 {
		debug.SetMemoryLimit(a.Memory + memoryPerVM*int64(len(a.vms)))
	}
}

// Reach returns how to speak to another host's API.
func (a *Agent) Reach(ctx context.Context, host inventory.HostID) (*http.Client, string, error) {
	h, err := a.Store.Host(ctx, host)
	if err != nil {
		return nil, "", err
	}
	return a.Peers.HTTPClient(host, h.Spec.Address), "https://" + h.Spec.Address, nil
}

// file returns the absolute path of a file on one of this host's datastores.
func (a *Agent) file(f inventory.File) (string, error) {
	ds := a.stores[f.Datastore]
	if ds == nil {
		return "", fault.New(fault.NotFound, "datastore %s is not mounted on %s", f.Datastore, a.Host())
	}
	return ds.Resolve(f.Path)
}
