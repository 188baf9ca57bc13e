package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/fault"
)

// The roles' shares of memory: the garbage collector works harder before a role takes more (runtime/debug.SetMemoryLimit).
const (
	agentMemory  = 24 << 20
	switchMemory = 120 << 20 // as a rule 24 MiB; at the limit it must not be late with what it keeps for a guest that stands
	storeMemory  = 48 << 20
	wardenMemory = 24 << 20
)

// agentWaits bounds how long a starting agent waits for the switch, which starts beside it. For the store it waits as long as that takes: its
// members may all be on other machines.
const agentWaits = 30 * time.Second

func newRole() *cobra.Command {
	cmd := &cobra.Command{Use: "role", Short: "The processes that \"godwit run\" starts", Hidden: true}
	add := func(name string, memory int64, run func(context.Context, *hostConfig, roleRun) error) {
		var cgroup string
		var networks []string
		role := &cobra.Command{
			Use: name, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				thrifty(memory)
				set, c, err := settingsOf(cmd)
				if err != nil {
					return err
				}
				carriers, err := carriersOf(set, networks)
				if err != nil {
					return err
				}
				log := openLog(cmd.Context(), cmd, name, set, nil)
				// Whoever is left without a warden makes room at once for what the next one starts.
				line, err := warden.Inherited(func() { os.Exit(exitUnavailable) }, log)
				if err != nil {
					return err
				}
				warden.ProtectRole()
				if err := os.MkdirAll(set.Run, 0o711); err != nil { //nolint:gosec // QEMU's user passes through to its own sockets
					return fault.New(fault.Internal, "run directory: %w", err)
				}
				release, err := warden.Claim(cmd.Context(), set.Run, name, line)
				if err != nil {
					return err
				}
				defer release()
				return fault.Wrap("role", name, run(cmd.Context(), c, roleRun{set: set, cgroup: cgroup, carriers: carriers, line: line, log: log}))
			},
		}
		settingFlags(role, true)
		role.Flags().StringVar(&cgroup, "cgroup", "godwit", "cgroup that VMs have theirs below")
		if name == "agent" {
			networkFlag(role, &networks)
		}
		cmd.AddCommand(role)
	}
	add("store", storeMemory, runStore)
	add("switch", switchMemory, runSwitch)
	add("agent", agentMemory, func(ctx context.Context, c *hostConfig, r roleRun) error {
		if c.Witness {
			return runWitness(ctx, c, r)
		}
		return runAgent(ctx, c, r)
	})
	return cmd
}

// roleRun is what a role gets from its warden.
type roleRun struct {
	set      *config.Config
	cgroup   string   // of VMs
	carriers carriers // of bridge networks
	line     *warden.Line
	renewals *store.Store // of an agent: the connection of its authority
	log      *slog.Logger
}

// settled is when a process has started up and what that took can be given back.
const settled = 5 * time.Second

// thrifty makes the garbage collector work rather than the process grow: hosts are there for VMs.
func thrifty(memory int64) {
	debug.SetMemoryLimit(memory)
	debug.SetGCPercent(25)
	time.AfterFunc(settled, debug.FreeOSMemory)
}

func runSwitch(ctx context.Context, c *hostConfig, r roleRun) error {
	identity, err := peer.Load(c.pki())
	if err != nil {
		return err
	}
	server, client := identity.TrunkTLS()
	s, err := vnet.New(vnet.Config{
		Host: c.Host, Dir: filepath.Join(r.set.Run, "switch"), Control: switchSocket(r.set.Run), TrunkAddr: c.trunkAddress(),
		ServerTLS: server, ClientTLS: client, PeerID: identity.PeerHost, Log: r.log,
	})
	if err != nil {
		return err
	}
	warden.Hurry()
	r.line.Starting("restores ports and networks")
	all, ctx := errgroup.WithContext(ctx)
	ended := make(chan struct{})
	all.Go(func() error { defer close(ended); return s.Run(ctx) })
	all.Go(func() error {
		select {
		case <-s.Ready():
			r.line.Beat(ctx, s.Alive)
		case <-ended:
		}
		return nil
	})
	return all.Wait()
}

func switchSocket(run string) string { return filepath.Join(run, "switch.sock") }

func runAgent(ctx context.Context, c *hostConfig, r roleRun) error {
	identity, err := peer.Load(c.pki())
	if err != nil {
		return err
	}
	claimed, renewals, release, err := claim(ctx, c, identity, r)
	if err != nil {
		return err
	}
	defer release()
	r.renewals = renewals
	inventory, err := waitForStore(ctx, c, identity, r)
	if err != nil {
		return err
	}
	defer func() { _ = inventory.Close() }() // read only from here on
	conf := agent.Config{
		Host: c.Host, Identity: identity, Address: c.agentAddress(), Trunk: c.trunkAddress(), Version: version, RunDir: r.set.Run,
		Cgroup: r.cgroup, CacheDir: r.set.Cache, Binary: r.set.Binary, Store: inventory, Authority: claimed, Peers: peer.NewDialer(identity),
		Switch: vnet.NewClient(switchSocket(r.set.Run)), Carriers: r.carriers, Starting: r.line.Starting, Watchdog: r.set.Watchdog, WatchdogTimeout: r.set.Authority.Watchdog, Log: r.log, Memory: agentMemory, Data: c.dir,
	}
	defer conf.Peers.Close()
	defer conf.Switch.Close()
	if conf.CA, err = peer.LoadCA(c.pki()); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if conf.Secret, err = peer.LoadSecret(c.pki()); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if c.Foreign {
		if conf.StoreAccess, err = readAccess(c.pki()); err != nil {
			return err
		}
	} else {
		conf.StoreClient, conf.StorePeer = c.storeClient(), c.storePeer()
	}
	if os.Geteuid() == 0 && r.set.User != "" {
		if conf.User, err = qemu.LookupUser(r.set.User); err != nil {
			return err
		}
	}
	for _, d := range c.Datastores {
		conf.Datastores = append(conf.Datastores, agent.Mount{Path: d.Path, Shared: !d.Local})
	}
	r.line.Starting("waits for the switch")
	if err := waitForSwitch(ctx, conf.Switch); err != nil {
		return err
	}
	r.line.Starting("looks at QEMU and opens the datastores")
	a, err := agent.New(ctx, conf)
	if err != nil {
		return err
	}
	return serve(ctx, a, c, r, identity)
}

// claim begins the host's epoch and the renewals of its authority, before anything that takes its time, over a connection of their own. release
// ends both.
func claim(ctx context.Context, c *hostConfig, identity *peer.Identity, r roleRun) (_ *agent.Authority, renewals *store.Store, release func(), err error) {
	if err := ownAddress(ctx, c.agentAddress()); err != nil {
		return nil, nil, nil, err
	}
	conf := agent.AuthorityConfig{Host: c.Host, Identity: identity, Warden: r.line, Settings: authoritySettings(r.set), RunDir: r.set.Run, Log: r.log}
	waiting, done := context.WithCancel(ctx)
	var standby sync.WaitGroup
	alone := conf // StandBy has no store
	standby.Go(func() { agent.StandBy(waiting, alone) })
	defer standby.Wait() // QEMU's monitor serves one at a time
	defer done()
	renewals, err = waitForStore(ctx, c, identity, r)
	if err != nil {
		return nil, nil, nil, err
	}
	conf.Store = renewals
	a, err := agent.Claim(ctx, conf)
	if err != nil {
		return nil, nil, nil, errors.Join(err, renewals.Close())
	}
	return a, renewals, func() {
		a.End(ctx)
		_ = renewals.Close() // nothing is pending
	}, nil
}

// ownAddress finds out that the agent's address is this machine's and free. A copy of a host's data folder on a cloned machine, or a second one
// here, must not begin an epoch: the host's own agent would have to end.
func ownAddress(ctx context.Context, address string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fault.New(fault.Unavailable, "%w: is it this machine's address, and is another agent on that address? A host's data folder is good for one machine", err)
	}
	return l.Close()
}

// waitForSwitch waits until the switch answers.
func waitForSwitch(ctx context.Context, c *vnet.Client) error {
	ctx, done := context.WithTimeout(ctx, agentWaits)
	defer done()
	for {
		_, err := c.Status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// openDatastores makes the folders datastores, or finds that they are.
func openDatastores(all []hostDatastore, user string) error {
	owner := datastore.KeepOwner
	if os.Geteuid() == 0 && user != "" {
		u, err := qemu.LookupUser(user)
		if err != nil {
			return err
		}
		owner = datastore.Owner{UID: int(u.UID), GID: int(u.GID)}
	}
	for _, d := range all {
		made, err := datastore.Create(d.Path, d.Name, owner)
		if fault.Is(err, fault.Exists) {
			made, err = datastore.Open(d.Path)
		}
		if err != nil {
			return err
		}
		if err := made.Close(); err != nil {
			return err
		}
	}
	return nil
}
