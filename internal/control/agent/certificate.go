package agent

import (
	"context"
	"net"
	"time"

	"github.com/godwit-vm/godwit/internal/control/certificate"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// keepCertificate rotates the host's certificate when a third of its life is left, and tries again until it is done.
func (a *Agent) keepCertificate(ctx context.Context) {
	certificate.Keep(ctx, a.Identity, a.Log, func(ctx context.Context) error {
		_, err := a.RotateCertificate(ctx)
		return err
	})
}

// RotateCertificate gives this host a new key and a certificate for it, signed here or by another host that can, and returns when that ends. New
// connections of every process of the host show it; those that are open go on with the old one, which stays valid to its end.
func (a *Agent) RotateCertificate(ctx context.Context) (time.Time, error) {
	holder := certificate.Holder{Host: a.Host(), Identity: a.Identity, Store: a.Store, Writer: a.writer, Peers: a.Peers}
	err := a.tasks.Run(ctx, "host.rotate-certificate", string(a.Host()), string(a.Host()), func(ctx context.Context, _ *task.Task) error {
		return holder.Rotate(ctx, func(ctx context.Context, csr []byte) ([]byte, error) {
			if a.CA != nil || len(a.Secret) > 0 {
				return a.SignCertificate(ctx, a.Host(), csr)
			}
			return holder.Ask(ctx, csr)
		})
	})
	return a.Identity.Expires(), fault.Wrap("rotate certificate of", "host "+string(a.Host()), err)
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
	signed, err := ca.Sign(csr, host, []string{address})
	if err != nil {
		return nil, err
	}
	a.tasks.Event(ctx, inventory.Event{Kind: "host.certified", Object: string(host), ObjectName: string(host), Message: "a new certificate was signed by " + string(a.Host())})
	return signed, nil
}
