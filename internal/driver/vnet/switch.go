package vnet

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The files of a switch in its directory.
const (
	stateFile = "switch.json"
	lockFile  = "switch.lock"
)

// Config says how a Switch runs. Everything else is set through the control socket and remembered.
type Config struct {
	// Host is this host's id; with peers, the smaller id dials.
	Host inventory.HostID
	// Dir holds the state file and the lock; it is made if missing. A directory in /run is right: what it remembers is
	// of no use after a reboot.
	Dir string
	// Control is the path of the control socket, made with mode 0600.
	Control string
	// TrunkAddr is the address the trunk listener binds, host:port. Empty: no trunks come in.
	TrunkAddr string
	// ServerTLS and ClientTLS are for trunks that come in and go out; they hold this host's certificate and the cluster's
	// CA. TLS 1.3, ALPN and a required client certificate are added here. Without a ServerName the peer's id is used.
	ServerTLS, ClientTLS *tls.Config
	// PeerID returns the host that a verified connection's certificate names.
	PeerID func(tls.ConnectionState) (inventory.HostID, error)
	// Log gets state changes; nil is slog.Default().
	Log *slog.Logger
}

// Switch is the switch process's body. Make it with New, run it with Run, drive it with a Client. Its own methods are
// those of Client and may be called by many goroutines while Run runs.
type Switch struct {
	cfg    Config
	log    *slog.Logger
	fabric *fabric
	began  time.Time

	spawn  chan func(context.Context) // taken by Run, which waits for what it starts
	timers chan struct{}              // a deadline has come nearer
	proofs chan chan struct{}         // closed by the loop of timers: it runs
	ready  chan struct{}              // closed when Run has restored and listens
	ended  chan struct{}              // closed when Run starts nothing more
	dirty  chan struct{}              // the state file is behind

	ops sync.Mutex // one change of ports, networks or peers at a time; held over file and socket work

	mu        sync.Mutex // guards the maps, for readers that do not hold ops
	networks  map[inventory.NetworkID]*network
	trunks    map[inventory.HostID]*trunk
	trunkAddr string
	leases    map[inventory.NetworkID]map[string]string // of gateways, remembered
}

// network is a network as this switch runs it.
type network struct {
	spec    NetworkSpec
	gateway *gateway
}

// New returns a switch that does nothing yet. It checks the configuration, fault.Invalid.
func New(cfg Config) (*Switch, error) {
	if cfg.Host == "" || cfg.Dir == "" || cfg.Control == "" {
		return nil, fault.New(fault.Invalid, "switch: host, directory and control socket must be set")
	}
	if len(cfg.Control) > socketPathMax {
		return nil, fault.New(fault.Invalid, "switch: control socket %q is longer than %d bytes: use a shorter directory", cfg.Control, socketPathMax)
	}
	if (cfg.TrunkAddr != "" || cfg.ClientTLS != nil) && (cfg.ServerTLS == nil || cfg.ClientTLS == nil || cfg.PeerID == nil) {
		return nil, fault.New(fault.Invalid, "switch: trunks need certificates for both directions and a way to tell peers")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Switch{
		cfg: cfg, log: cfg.Log, fabric: newFabric(cfg.Host, cfg.Log), began: time.Now(),
		spawn: make(chan func(context.Context)), timers: make(chan struct{}, 1), proofs: make(chan chan struct{}),
		ready: make(chan struct{}), ended: make(chan struct{}), dirty: make(chan struct{}, 1),
		networks: map[inventory.NetworkID]*network{}, trunks: map[inventory.HostID]*trunk{},
		leases: map[inventory.NetworkID]map[string]string{},
	}
	s.fabric.timers = func() { signal(s.timers) }
	s.fabric.left = s.portLeft
	return s, nil
}

// signal leaves a token in a channel of capacity 1.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Ready is closed once Run has restored the state and listens on all sockets.
func (s *Switch) Ready() <-chan struct{} { return s.ready }

// Run restores ports, networks and peers from the state file and serves until ctx ends; then it closes every socket and
// waits for all it started. The state file stays, so that the next Run goes on. A second switch on the same directory is
// fault.Conflict. Run may be called once.
func (s *Switch) Run(ctx context.Context) error {
	unlock, err := s.lock()
	if err != nil {
		close(s.ended)
		return err
	}
	defer unlock()
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	defer close(s.ended) // first: nobody waits for a start any more

	if s.cfg.TrunkAddr != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.TrunkAddr)
		if err != nil {
			return fault.New(fault.Unavailable, "switch: trunk listener: %w: is another switch on that address?", err)
		}
		s.mu.Lock()
		s.trunkAddr = l.Addr().String()
		s.mu.Unlock()
		all.Go(func() { s.acceptTrunks(ctx, l) })
	}
	all.Go(func() { s.runTimers(ctx) })
	all.Go(func() { s.runSaver(ctx) })

	served := make(chan error, 1)
	all.Go(func() {
		if err := s.restore(ctx); err != nil {
			served <- err
			return
		}
		served <- s.serveControl(ctx)
	})
	for {
		select {
		case <-ctx.Done():
			s.log.InfoContext(ctx, "switch ends")
			return nil
		case err := <-served:
			if ctx.Err() != nil {
				return nil // the caller asked for the end, which is how the control server came to its own
			}
			return err
		case f := <-s.spawn:
			all.Go(func() { f(ctx) })
		}
	}
}

// start has Run run f; it reports false when Run has ended.
func (s *Switch) start(f func(context.Context)) bool {
	select {
	case s.spawn <- f:
		return true
	case <-s.ended:
		return false
	}
}

// lock makes this the only switch on its directory. The lock ends with the process.
func (s *Switch) lock() (func(), error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return nil, fault.New(fault.Denied, "switch: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.New(fault.Denied, "switch: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.Conflict, "switch: another switch runs in %s", s.cfg.Dir)
		}
		return nil, fault.New(fault.Internal, "switch: lock %s: %w", s.cfg.Dir, err)
	}
	return func() { _ = f.Close() }, nil // releases the lock; nothing was written
}

// runTimers ticks the fabric when something is due.
func (s *Switch) runTimers(ctx context.Context) {
	for {
		now := time.Now()
		t := time.NewTimer(s.fabric.next(now).Sub(now))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-s.timers:
			t.Stop()
		case proven := <-s.proofs:
			t.Stop()
			close(proven)
		case <-t.C:
			s.fabric.tick(time.Now())
		}
	}
}

// Status returns everything about the switch.
func (s *Switch) Status(context.Context) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Host: s.cfg.Host, PID: os.Getpid(), Started: s.began, Trunk: s.trunkAddr}
	for _, id := range sortedKeys(s.trunks) {
		st.Peers = append(st.Peers, s.trunks[id].status())
	}
	f := s.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range sortedKeys(f.ports) {
		if f.ports[id].io != nil {
			st.Ports = append(st.Ports, f.ports[id].status())
		}
	}
	for _, id := range sortedKeys(s.networks) {
		n := NetworkStatus{NetworkSpec: s.networks[id].spec}
		if seg := f.networks[keyOfNetwork(id)]; seg != nil {
			n.Learned, n.DropsIn, n.DropsOut = len(seg.table), seg.dropsIn, seg.dropsOut
			for p := range seg.ports {
				n.DropsIn += p.stats.DropsIn
				n.DropsOut += p.stats.DropsOut
				if p.io != nil {
					n.Ports++
				}
			}
		}
		if g := s.networks[id].gateway; g != nil {
			n.Leases = g.leaseTable()
		}
		st.Networks = append(st.Networks, n)
	}
	return st, nil
}
