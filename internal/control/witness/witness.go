// Package witness is the agent of a machine that runs no VMs: it is known to the cluster, answers that it lives, and lets its host carry a
// member of the store (control/carry does that). It needs no QEMU, no switch and no datastore.
package witness

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/certificate"
	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Config is what a witness is made of.
type Config struct {
	Host     inventory.HostID
	Address  string // host:port at which it answers
	Version  string
	Identity *peer.Identity
	Store    *store.Store
	// StoreClient and StorePeer are the URLs of the member that it can carry.
	StoreClient, StorePeer string
	Lease                  time.Duration        // of its renewals
	Proofs                 <-chan chan struct{} // each channel sent here is closed by the loop that renews: a sign of life
	Log                    *slog.Logger
}

const (
	renewEvery = time.Second
	renewMax   = 900 * time.Millisecond
)

// Run introduces the witness and lives until ctx ends. An error that has store.ErrEpochOver on its path says that it was fenced, removed, or
// started twice: it may be run again.
func Run(ctx context.Context, c Config) error {
	boot, err := host.BootID()
	if err != nil {
		return err
	}
	epoch, _, err := certificate.Begin(ctx, c.Store, c.Host, c.Identity, boot)
	if err != nil {
		return err
	}
	w := c.Store.As(c.Host, epoch.Epoch)
	if err := w.NoteCertificate(ctx, c.Identity.Certificate()); err != nil {
		return err
	}
	if err := w.PutHostSpec(ctx, inventory.HostSpec{
		Address: c.Address, Version: c.Version, CPUs: runtime.NumCPU(), Witness: true, StoreClient: c.StoreClient, StorePeer: c.StorePeer,
	}); err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return c.renew(ctx, w) })
	all.Go(func() error {
		peers := peer.NewDialer(c.Identity)
		defer peers.Close()
		holder := certificate.Holder{Host: c.Host, Identity: c.Identity, Store: c.Store, Writer: w, Peers: peers}
		certificate.Keep(ctx, c.Identity, c.Log, func(ctx context.Context) error { return holder.Rotate(ctx, holder.Ask) })
		return nil
	})
	all.Go(func() error {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.Address)
		if err != nil {
			return fault.New(fault.Unavailable, "%w: is another agent on that address?", err)
		}
		server := &peer.Server{Identity: c.Identity, HTTP: http.HandlerFunc(answer)}
		return server.Run(ctx, l)
	})
	return all.Wait()
}

// answer tells whoever calls what this is.
func answer(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "this is a witness: it carries the store and answers no calls", http.StatusNotFound)
}

// renew gives a sign of life every second. It has no VMs, so nothing of it has to be proven dead.
func (c Config) renew(ctx context.Context, w *store.Writer) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		within, done := context.WithTimeout(ctx, renewMax)
		err := w.Renew(within, c.Lease, inventory.FencedByNobody)
		done()
		if errors.Is(err, store.ErrEpochOver) {
			return err
		}
		for due := false; !due; {
			select {
			case <-tick.C:
				due = true
			case done := <-c.Proofs:
				close(done)
			case <-ctx.Done():
				return nil
			}
		}
	}
}
