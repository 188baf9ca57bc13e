// Package certificate keeps the certificate of a host young: it says when a new one is due, has it signed, and takes it into
// use. It does not sign (control/agent does), and needs no agent: a witness has a certificate too. Its main type is Holder.
package certificate

import (
	"context"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// lookEvery is how often a host looks whether its certificate is to be rotated, which is due for months before it ends.
const lookEvery = time.Hour

// Holder is a host that has a certificate. Its methods may be called by many goroutines.
type Holder struct {
	Host     inventory.HostID
	Identity *peer.Identity
	Store    *store.Store
	Writer   *store.Writer
	Peers    *peer.Dialer
}

// Begin counts a start of the host's agent or witness (store.NextEpoch). A host that the store does not know has joined after the backup that the
// store was restored from, and is let in again; or it was removed, which the list of revoked certificates tells: that
// is fault.Denied. One that is removed meanwhile is fault.NotFound.
func Begin(ctx context.Context, s *store.Store, host inventory.HostID, identity *peer.Identity, boot string) (now, before store.Epoch, err error) {
	now, before, err = s.NextEpoch(ctx, host, boot)
	if !fault.Is(err, fault.NotFound) {
		return now, before, err
	}
	// A host that is not there cannot be removed: what the list says from here on is the last word.
	list, _, failed := s.Revoked(ctx)
	if failed == nil && len(list) > 0 {
		failed = identity.SaveRevoked(list)
	}
	if failed == nil && identity.TakenBack() {
		failed = identity.WasRemoved()
	}
	if failed == nil {
		failed = s.Admit(ctx, host)
	}
	if failed != nil {
		return now, before, failed
	}
	return s.NextEpoch(ctx, host, boot)
}

// Keep calls rotate when a third of the certificate's life is left, and again until that is done, until ctx ends.
func Keep(ctx context.Context, identity *peer.Identity, log *slog.Logger, rotate func(context.Context) error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if time.Now().After(identity.RenewAt()) {
			if err := rotate(ctx); err != nil && ctx.Err() == nil {
				log.LogAttrs(ctx, slog.LevelWarn, "certificate not rotated yet", slog.Time("expires", identity.Expires()), slog.Any("err", err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Rotate gives the host a new key and a certificate for it, which sign returns. New connections of every process of the host show it; those that are
// open go on with the old one, which stays valid to its end.
func (h Holder) Rotate(ctx context.Context, sign func(ctx context.Context, csr []byte) ([]byte, error)) error {
	request, err := peer.NewRequest(h.Host)
	if err != nil {
		return err
	}
	certificate, err := sign(ctx, request.CSR())
	if err != nil {
		return err
	}
	noted, err := peer.Noted(certificate)
	if err != nil {
		return err
	}
	if err := h.Writer.NoteCertificate(ctx, noted); err != nil { // before it is used, so that it can be taken back
		return err
	}
	return h.Identity.Rotate(request, certificate)
}

// Ask has a request signed by the first other host that can.
func (h Holder) Ask(ctx context.Context, csr []byte) ([]byte, error) {
	hosts, err := h.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	last := fault.New(fault.Unavailable, "no other host is there")
	for _, other := range hosts {
		if other.ID == h.Host || other.Spec.Witness {
			continue
		}
		client := godwitv1connect.NewCertificateServiceClient(h.Peers.HTTPClient(other.ID, other.Spec.Address), "https://"+other.Spec.Address)
		resp, err := client.SignCertificate(ctx, connect.NewRequest(&godwitv1.SignCertificateRequest{Csr: csr}))
		if err == nil {
			return resp.Msg.GetCertificate(), nil
		}
		if err = wire.FromFault(err); !fault.Is(err, fault.NotFound) { // that one cannot sign
			last = fault.New(fault.KindOf(err), "host %s: %w", other.ID, err)
		}
	}
	return nil, fault.New(fault.Unavailable, "no host that can sign has signed it: %w", last)
}
