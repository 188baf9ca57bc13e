package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// renewEvery is how often a host looks whether its certificate is to be rotated, which is due for months before it ends.
const renewEvery = time.Hour

// keepCertificate rotates the host's certificate when a third of its life is left, and tries again until it is done.
func (a *Agent) keepCertificate(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		if time.Now().After(a.Identity.RenewAt()) {
			if _, err := a.RotateCertificate(ctx); err != nil && ctx.Err() == nil {
				a.Log.LogAttrs(ctx, slog.LevelWarn, "certificate not rotated yet", slog.Time("expires", a.Identity.Expires()), slog.Any("err", err))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// RotateCertificate gives this host a new key and a certificate for it, signed here or by another host that can, and returns when that ends. New
// connections of every process of the host show it; those that are open go on with the old one, which stays valid to its end.
func (a *Agent) RotateCertificate(ctx context.Context) (time.Time, error) {
	err := a.tasks.Run(ctx, "host.rotate-certificate", string(a.Host()), string(a.Host()), func(ctx context.Context, _ *task.Task) error {
		request, err := peer.NewRequest(a.Host())
		if err != nil {
			return err
		}
		certificate, err := a.signed(ctx, request.CSR())
		if err != nil {
			return err
		}
		noted, err := peer.Noted(certificate)
		if err != nil {
			return err
		}
		if err := a.writer.NoteCertificate(ctx, noted); err != nil { // before it is used, so that it can be taken back
			return err
		}
		return a.Identity.Rotate(request, certificate)
	})
	return a.Identity.Expires(), fault.Wrap("rotate certificate of", "host "+string(a.Host()), err)
}

// signed has the request signed here, or by the first host that can.
func (a *Agent) signed(ctx context.Context, csr []byte) ([]byte, error) {
	if a.CA != nil || len(a.Secret) > 0 {
		return a.SignCertificate(ctx, a.Host(), csr)
	}
	hosts, err := a.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	last := fault.New(fault.Unavailable, "no other host is there")
	for _, h := range hosts {
		if h.ID == a.Host() {
			continue
		}
		client := godwitv1connect.NewCertificateServiceClient(a.Peers.HTTPClient(h.ID, h.Spec.Address), "https://"+h.Spec.Address)
		resp, err := client.SignCertificate(ctx, connect.NewRequest(&godwitv1.SignCertificateRequest{Csr: csr}))
		if err == nil {
			return resp.Msg.GetCertificate(), nil
		}
		if err = wire.FromFault(err); !errors.Is(err, errNoCA) && !fault.Is(err, fault.NotFound) {
			last = fault.New(fault.KindOf(err), "host %s: %w", h.ID, err)
		}
	}
	return nil, fault.New(fault.Unavailable, "no host that can sign has signed it: %w", last)
}

// errNoCA is the answer of a host that cannot sign.
var errNoCA = fault.New(fault.NotFound, "this host has neither the cluster's secret nor the key of its CA")

// SignCertificate signs a new key of a host of the cluster, for the address that the store knows of it: a host cannot have a
// certificate for the name or the address of another. Which host asks is the word of its present certificate.
func (a *Agent) SignCertificate(ctx context.Context, host inventory.HostID, csr []byte) ([]byte, error) {
	if a.CA == nil && len(a.Secret) == 0 {
		return nil, errNoCA
	}
	ca, err := a.SigningCA(ctx)
	if err != nil {
		return nil, err
	}
	h, err := a.Store.Host(ctx, host)
	if err != nil {
		return nil, err
	}
	address, _, err := net.SplitHostPort(h.Spec.Address)
	if err != nil {
		return nil, fault.New(fault.Internal, "address of host %s: %w", host, err)
	}
	certificate, err := ca.Sign(csr, host, []string{address})
	if err != nil {
		return nil, err
	}
	a.tasks.Event(ctx, inventory.Event{Kind: "host.certified", Object: string(host), ObjectName: string(host), Message: "a new certificate was signed by " + string(a.Host())})
	return certificate, nil
}
