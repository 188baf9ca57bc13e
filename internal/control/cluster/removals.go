package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Removals is the loop that takes hosts out of the cluster. Whoever asked has planned it in the store; the loop waits until nothing needs the
// host any more, its member of the store among that (Members), takes back its certificates and forgets it in one transaction.
type Removals struct {
	Store *store.Store
	CA    func(context.Context) (*peer.CA, error)
	// Revoked returns this host's own copy of the list of revoked certificates; nil: none.
	Revoked func() []byte
	Event   func(context.Context, inventory.Event)
	Log     *slog.Logger

	merged bool // the store's list is not older than this host's
}

const (
	removalsEvery = time.Second
	// resignsAfter is how long a host leads that is to leave the cluster and that the election has chosen all the same: no other host led then.
	resignsAfter = 30 * time.Second
)

// Name implements Loop.
func (*Removals) Name() string { return "removals" }

// Run implements Loop.
func (r *Removals) Run(ctx context.Context, term *store.Term) error {
	ctx, end := context.WithCancel(ctx)
	changes := r.Store.Watch(ctx, store.Removals)
	tick := time.NewTicker(removalsEvery)
	defer tick.Stop()
	defer func() {
		end()
		for range changes { // until the watch has ended
			continue
		}
	}()
	began := time.Now()
	for {
		within, done := context.WithTimeout(ctx, stepMax)
		leaves, err := r.look(within, term)
		done()
		if leaves && (!term.Leaves() || time.Since(began) >= resignsAfter) {
			return errResigns
		}
		if err != nil && ctx.Err() == nil {
			r.Log.LogAttrs(ctx, slog.LevelWarn, "removal of hosts", slog.Any("err", err))
		}
		select {
		case <-changes:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look takes a step with each removal, and reports whether the host that leads is to leave: it cannot take itself out, since it would end the epoch
// under which it acts.
func (r *Removals) look(ctx context.Context, term *store.Term) (leaves bool, err error) {
	behind := r.merge(ctx, term)
	all, err := r.Store.Removals(ctx)
	for _, one := range all {
		waits, err := "", behind
		if one.Host == term.Writer().Host() {
			leaves, waits = true, "until another host leads the cluster"
		} else if err == nil {
			waits, err = r.remove(ctx, term, one)
		}
		if err != nil {
			waits = err.Error() // whoever asked sees it, and may take it back
		}
		if waits == "" {
			continue
		}
		if err := term.RemovalWaits(ctx, one.Host, waits); err != nil && !fault.Is(err, fault.NotFound) {
			return leaves, err
		}
	}
	return leaves, errors.Join(behind, err)
}

// merge brings the store's list of revoked certificates up to this host's own, once in a term: a restore takes the store back to an older one,
// and every host drops what is older than its own.
func (r *Removals) merge(ctx context.Context, term *store.Term) error {
	if r.merged {
		return nil
	}
	list, revision, err := r.Store.Revoked(ctx)
	if err != nil {
		return err
	}
	if own := r.Revoked(); len(own) > 0 {
		ca, err := r.CA(ctx)
		if err != nil {
			return err
		}
		merged, err := ca.Merge(list, own)
		if err != nil {
			return err
		}
		if merged != nil {
			if err := term.PutRevoked(ctx, merged, revision); err != nil {
				return err
			}
		}
	}
	r.merged = true
	return nil
}

// remove takes the host out, or returns what it waits for.
func (r *Removals) remove(ctx context.Context, term *store.Term, one inventory.Removal) (waits string, err error) {
	epoch, err := r.Store.Epoch(ctx, one.Host)
	if fault.Is(err, fault.NotFound) {
		return "", term.Writer().CancelRemoval(ctx, one.Host) // it is out already
	}
	if err != nil {
		return "", err
	}
	if one.Force && !epoch.Fenced {
		return "until it is proven dead: godwit host confirm-dead " + string(one.Host), nil
	}
	if waits, err := r.needed(ctx, one.Host); waits != "" || err != nil {
		return waits, err
	}
	if err := r.moveGateways(ctx, term, one.Host); err != nil {
		return "", err
	}
	revision, err := term.EndEpoch(ctx, one.Host)
	if err != nil {
		return "", err
	}
	// What its agent had under way when its epoch ended has come to the store before that or not at all.
	if waits, err := r.needed(ctx, one.Host); waits != "" || err != nil {
		return waits, err
	}
	ca, err := r.CA(ctx)
	if err != nil {
		return "", err
	}
	certificates, err := r.Store.Certificates(ctx, one.Host)
	if err != nil {
		return "", err
	}
	list, listRevision, err := r.Store.Revoked(ctx)
	if err != nil {
		return "", err
	}
	if len(list) == 0 { // each host has the first, empty one, and takes only newer ones
		if list, err = ca.Revoke(nil); err != nil {
			return "", err
		}
	}
	if list, err = ca.Revoke(list, certificates...); err != nil {
		return "", err
	}
	if err := term.RemoveHost(ctx, one.Host, revision, list, listRevision); err != nil {
		return "", err
	}
	message := fmt.Sprintf("%d certificates of it are revoked", len(certificates))
	r.Event(ctx, inventory.Event{Kind: "host.removed", Object: string(one.Host), ObjectName: string(one.Host), By: one.By, Message: message})
	r.Log.LogAttrs(ctx, slog.LevelInfo, "host removed from the cluster", slog.String("host", string(one.Host)))
	return "", nil
}

// needed returns what still needs the host.
func (r *Removals) needed(ctx context.Context, host inventory.HostID) (string, error) {
	vms, err := r.Store.VMs(ctx)
	if err != nil {
		return "", err
	}
	if names := inventory.VMsOf(vms, host); len(names) > 0 {
		return "until others have its VMs: " + strings.Join(names, ", "), nil
	}
	plans, err := r.Store.MemberPlans(ctx)
	if err != nil {
		return "", err
	}
	members, err := r.Store.Members(ctx)
	if err != nil {
		return "", err
	}
	hosts, err := r.Store.Hosts(ctx)
	if err != nil {
		return "", err
	}
	// One that never started carries nothing, and the members of a store that is not Godwit's own are nobody's here, whatever their names.
	can := slices.ContainsFunc(hosts, func(h inventory.Host) bool { return h.ID == host && h.Spec.StorePeer != "" })
	carries := slices.ContainsFunc(plans, func(p inventory.MemberPlan) bool { return p.Host == host }) ||
		can && slices.ContainsFunc(members, func(m store.Member) bool { return hostOf(m, hosts, plans) == host })
	if carries {
		return "until another host carries its member of the store", nil
	}
	return "", nil
}

// moveGateways gives the gateways of a host that goes to the one that leads.
func (r *Removals) moveGateways(ctx context.Context, term *store.Term, host inventory.HostID) error {
	networks, err := r.Store.Networks(ctx)
	if err != nil {
		return err
	}
	for _, n := range networks {
		if n.Spec.Gateway != host {
			continue
		}
		n.Spec.Gateway = term.Writer().Host()
		if err := term.Writer().PutNetwork(ctx, n); err != nil {
			return err
		}
		r.Event(ctx, inventory.Event{
			Kind: "network.gateway-moved", Object: string(n.ID), ObjectName: string(n.ID),
			Message: fmt.Sprintf("to host %s, since host %s leaves the cluster", n.Spec.Gateway, host),
		})
	}
	return nil
}
