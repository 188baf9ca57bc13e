package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/carry"
	"github.com/godwit-vm/godwit/internal/control/warden"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
)

// sayStarting is how often a member says that it is still starting: without a majority of the others it cannot serve, however long that takes.
const sayStarting = 20 * time.Second

// runStore runs the host's member of the store.
func runStore(ctx context.Context, c *hostConfig, r roleRun) error {
	proofs := make(chan chan struct{})
	ready := make(chan struct{})
	var beat errgroup.Group
	ctx, end := context.WithCancel(ctx)
	defer func() { end(); _ = beat.Wait() }() // it returns no error
	beat.Go(func() error {
		tick := time.NewTicker(sayStarting)
		defer tick.Stop()
		for {
			r.line.Starting("opens the store in " + c.storeDir() + ", with a majority of its members")
			select {
			case <-ready:
				r.line.Beat(ctx, func(ctx context.Context) error { return proven(ctx, proofs) })
				return nil
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
	conf := store.ServerConfig{
		Name: string(c.Host), Dir: c.storeDir(), Join: c.StoreJoin, MemberID: c.MemberID, ClientURL: c.storeClient(), PeerURL: c.storePeer(),
		CAFile: filepath.Join(c.pki(), peer.CACertificateFile), CertFile: filepath.Join(c.pki(), peer.CertificateFile),
		KeyFile: filepath.Join(c.pki(), peer.KeyFile), Proofs: proofs, Quota: r.set.StoreQuota,
		Ready: func(endpoint string) {
			r.log.LogAttrs(ctx, slog.LevelInfo, "store answers", slog.String("endpoint", endpoint))
			close(ready)
		},
	}
	if list := filepath.Join(c.pki(), peer.RevokedFile); exists(list) {
		conf.CRLFile = list
	}
	return store.Serve(ctx, conf)
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

// openStore opens the store with this host's identity, for commands that need no agent.
func (c *hostConfig) openStore(ctx context.Context) (*store.Store, error) {
	identity, err := peer.Load(c.pki())
	if err != nil {
		return nil, err
	}
	access, err := c.storeTLS(identity)
	if err != nil {
		return nil, err
	}
	return store.Open(ctx, store.Config{Endpoints: c.Endpoints, TLS: access})
}

// waitForStore opens the store, which may be starting too, or be on a host that is. A host that was removed from the cluster is told so.
func waitForStore(ctx context.Context, c *hostConfig, identity *peer.Identity, r roleRun) (*store.Store, error) {
	access, err := c.storeTLS(identity)
	if err != nil {
		return nil, err
	}
	for {
		r.line.Starting("waits for the store at " + strings.Join(c.Endpoints, ", "))
		s, err := store.Open(ctx, store.Config{Endpoints: c.Endpoints, TLS: access})
		if err == nil {
			err = c.enter(ctx, s, identity, r)
			if err == nil {
				return s, nil
			}
			_ = s.Close() // another one is opened; nothing is pending
		}
		if removed := c.removed(ctx, identity); removed != nil {
			return nil, removed
		}
		if !fault.Is(err, fault.Unavailable) {
			return nil, err
		}
		r.log.LogAttrs(ctx, slog.LevelWarn, "store does not answer yet", slog.Any("err", err))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// enter finds out that the store takes writes and knows this host; the first host makes the cluster's record in it.
func (c *hostConfig) enter(ctx context.Context, s *store.Store, identity *peer.Identity, r roleRun) error {
	if !c.Foreign {
		openFull(ctx, s, r.log)
	}
	if c.Member && c.StoreJoin == "" {
		if err := s.InitCluster(ctx, c.Cluster, c.Host); err != nil {
			return err
		}
	}
	_, err := s.Epoch(ctx, c.Host)
	if fault.Is(err, fault.NotFound) {
		return identity.WasRemoved()
	}
	return err
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

// removed asks the agents beside the members of the store whether this host is of the cluster still; nil when none says that it is not.
func (c *hostConfig) removed(ctx context.Context, identity *peer.Identity) error {
	ctx, done := context.WithTimeout(ctx, 2*time.Second)
	defer done()
	for _, endpoint := range c.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || c.Foreign || u.Hostname() == c.Address {
			continue
		}
		if err := identity.Removed(ctx, net.JoinHostPort(u.Hostname(), portAgent)); err != nil {
			return err
		}
	}
	return nil
}

// The files of the access to a store that is not Godwit's own, beside the host's identity.
const (
	accessCA          = "etcd-ca.crt"
	accessCertificate = "etcd.crt"
	accessKey         = "etcd.key"
)

// storeTLS returns how this host reaches the store.
func (c *hostConfig) storeTLS(identity *peer.Identity) (*tls.Config, error) {
	if !c.Foreign {
		return identity.StoreTLS(), nil
	}
	access, err := readAccess(c.pki())
	if err != nil {
		return nil, err
	}
	return accessTLS(access)
}

// readAccess reads the files of the access; those that are not there stay empty.
func readAccess(dir string) (*agent.StoreAccess, error) {
	access := &agent.StoreAccess{}
	for name, into := range map[string]*[]byte{accessCA: &access.CA, accessCertificate: &access.Certificate, accessKey: &access.Key} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Internal, "access to the store: %w", err)
		}
		*into = text
	}
	return access, nil
}

// follow keeps this host's part in the store while its agent runs, and the agent's connections where the store is.
func (c *hostConfig) follow(ctx context.Context, identity *peer.Identity, r roleRun, connections ...*store.Store) error {
	return carry.Follow(ctx, carry.Config{
		Host: c.Host, Stores: connections, Foreign: c.Foreign, Log: r.log, Revoked: identity.SaveRevoked,
		State: carry.State{Endpoints: c.Endpoints, Member: c.Member, ID: c.MemberID, Folder: c.Folder, Join: c.StoreJoin},
		Save: func(s carry.State) error {
			part := func(c *hostConfig) error {
				c.Endpoints, c.Member, c.MemberID, c.Folder, c.StoreJoin = s.Endpoints, s.Member, s.ID, s.Folder, s.Join
				return nil
			}
			return errors.Join(part(c), c.change(part))
		},
		Want:  func(on bool) { r.line.Want("store", on) },
		Claim: func(ctx context.Context) (func(), error) { return warden.Claim(ctx, r.set.Run, "store", nil) },
		Remove: func(folder string) error {
			old := *c
			old.Folder = folder
			return store.RemoveData(old.storeDir())
		},
	})
}
