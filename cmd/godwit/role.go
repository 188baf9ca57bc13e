package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
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
	switchMemory = 24 << 20
	storeMemory  = 48 << 20
	wardenMemory = 24 << 20
)

// agentWaits bounds how long a starting agent waits for store and switch, which start beside it.
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
				return fault.Wrap("role", name, run(cmd.Context(), c, roleRun{set, cgroup, carriers, line, log}))
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
	add("agent", agentMemory, runAgent)
	return cmd
}

// roleRun is what a role gets from its warden.
type roleRun struct {
	set      *config.Config
	cgroup   string   // of VMs
	carriers carriers // of bridge networks
	line     *warden.Line
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

func runStore(ctx context.Context, c *hostConfig, r roleRun) error {
	r.line.Starting("opens the store in " + c.dir)
	proofs := make(chan chan struct{})
	var beat errgroup.Group
	ctx, end := context.WithCancel(ctx)
	defer func() { end(); _ = beat.Wait() }() // it returns no error
	return store.Serve(ctx, store.ServerConfig{
		Name: string(c.Host), Dir: filepath.Join(c.dir, "store"),
		ClientURL: "https://" + net.JoinHostPort(c.Address, portStore), PeerURL: "https://" + net.JoinHostPort(c.Address, portStorePeer),
		CAFile: filepath.Join(c.pki(), peer.CACertificateFile), CertFile: filepath.Join(c.pki(), peer.CertificateFile),
		KeyFile: filepath.Join(c.pki(), peer.KeyFile), Proofs: proofs, Quota: r.set.StoreQuota,
		Ready: func(endpoint string) {
			r.log.LogAttrs(ctx, slog.LevelInfo, "store answers", slog.String("endpoint", endpoint))
			beat.Go(func() error {
				r.line.Beat(ctx, func(ctx context.Context) error { return proven(ctx, proofs) })
				return nil
			})
		},
	})
}

// proven asks a loop to close a channel.
func proven(ctx context.Context, loop chan<- chan struct{}) error {
	done := make(chan struct{})
	select {
	case loop <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
	claimed, release, err := claim(ctx, c, identity, r)
	if err != nil {
		return err
	}
	defer release()
	inventory, err := waitForStore(ctx, c, identity, r)
	if err != nil {
		return err
	}
	defer func() { _ = inventory.Close() }() // read only from here on
	conf := agent.Config{
		Host: c.Host, Identity: identity, Address: c.agentAddress(), Trunk: c.trunkAddress(), Version: version, RunDir: r.set.Run,
		Cgroup: r.cgroup, CacheDir: r.set.Cache, Binary: r.set.Binary, Store: inventory, Authority: claimed, Endpoints: c.Endpoints, Peers: peer.NewDialer(identity),
		Switch: vnet.NewClient(switchSocket(r.set.Run)), Carriers: r.carriers, Starting: r.line.Starting, Watchdog: r.set.Watchdog, WatchdogTimeout: r.set.Authority.Watchdog, Log: r.log, Memory: agentMemory, Data: c.dir,
	}
	defer conf.Peers.Close()
	defer conf.Switch.Close()
	if conf.CA, err = peer.LoadCA(c.pki()); err != nil && !fault.Is(err, fault.NotFound) {
		return err
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
func claim(ctx context.Context, c *hostConfig, identity *peer.Identity, r roleRun) (_ *agent.Authority, release func(), err error) {
	conf := agent.AuthorityConfig{Host: c.Host, Warden: r.line, Settings: authoritySettings(r.set), RunDir: r.set.Run, Log: r.log}
	waiting, done := context.WithCancel(ctx)
	var standby sync.WaitGroup
	standby.Go(func() { agent.StandBy(waiting, conf) })
	defer standby.Wait() // QEMU's monitor serves one at a time
	defer done()
	renewals, err := waitForStore(ctx, c, identity, r)
	if err != nil {
		return nil, nil, err
	}
	conf.Store = renewals
	a, err := agent.Claim(ctx, conf)
	if err != nil {
		return nil, nil, errors.Join(err, renewals.Close())
	}
	return a, func() {
		a.End(ctx)
		_ = renewals.Close() // nothing is pending
	}, nil
}

// waitForStore opens the store, which may be starting too, or be on a host that is.
func waitForStore(ctx context.Context, c *hostConfig, identity *peer.Identity, r roleRun) (*store.Store, error) {
	for {
		r.line.Starting("waits for the store at " + strings.Join(c.Endpoints, ", "))
		s, err := store.Open(ctx, store.Config{Endpoints: c.Endpoints, TLS: identity.StoreTLS()})
		if err == nil {
			openFull(ctx, s, r.log)
		}
		if err == nil || !fault.Is(err, fault.Unavailable) {
			if err == nil && c.Member {
				err = s.InitCluster(ctx, c.Cluster)
			}
			return s, err
		}
		r.log.LogAttrs(ctx, slog.LevelWarn, "store does not answer yet", slog.Any("err", err))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// openFull rescues a store that takes no writes: no agent could start on it, and without an agent nobody leads who would rescue it.
func openFull(ctx context.Context, s *store.Store, log *slog.Logger) {
	h, err := s.Health(ctx)
	if err != nil || !h.NoSpace() {
		return // what is wrong is said by whoever uses it next
	}
	log.LogAttrs(ctx, slog.LevelError, "the store is full and takes no writes: it is rescued", slog.String("full", h.FullText()))
	if err := s.Rescue(ctx); err != nil {
		log.LogAttrs(ctx, slog.LevelError, "the store stays full", slog.Any("err", err))
	}
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
