package store

import (
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// MemberPlans returns the plans for all members of the store, ordered by host.
func (s *Store) MemberPlans(ctx context.Context) ([]inventory.MemberPlan, error) {
	return listed(ctx, s, rootMember, memberPlans, func(p *inventory.MemberPlan, host inventory.HostID) { p.Host = host })
}

// MemberPlan returns the plan for the member of one host; fault.NotFound when there is none.
func (s *Store) MemberPlan(ctx context.Context, host inventory.HostID) (inventory.MemberPlan, error) {
	rec, revision, err := load(ctx, s, keyMember(host), memberPlans)
	if err == nil && revision == 0 {
		err = fault.New(fault.NotFound, "no member of the store is planned for host %s", host)
	}
	rec.value.Host = host
	return rec.value, err
}

// PutMemberPlan writes the plan for the member of a host, whose spec must be there still. Nothing is written when it says so already.
func (t *Term) PutMemberPlan(ctx context.Context, p inventory.MemberPlan) error {
	_, err := apply(ctx, t.w, edit[inventory.MemberPlan]{
		what: "member of host " + string(p.Host), key: keyMember(p.Host), codec: memberPlans,
		before: func(context.Context) ([]clientv3.Cmp, error) {
			return []clientv3.Cmp{exists(keyHost(p.Host, partSpec))}, nil
		},
		refused: func(ctx context.Context) error {
			_, err := t.w.s.Host(ctx, p.Host)
			return err
		},
		change: func(old *inventory.MemberPlan) error {
			*old = p
			return nil
		},
	})
	return err
}

// DropMemberPlan removes the plan for the member of a host; none is what was wanted.
func (t *Term) DropMemberPlan(ctx context.Context, host inventory.HostID) error {
	_, err := t.w.commit(ctx, nil, clientv3.OpDelete(keyMember(host)))
	return fault.Wrap("drop", "member of host "+string(host), err)
}

func notLeaving(host inventory.HostID) error {
	return fault.New(fault.NotFound, "host %s is not to be removed any more", host)
}

// Removals returns the hosts that are to leave the cluster, ordered by host.
func (s *Store) Removals(ctx context.Context) ([]inventory.Removal, error) {
	return listed(ctx, s, rootRemoval, removals, func(r *inventory.Removal, host inventory.HostID) { r.Host = host })
}

// PlanRemoval asks for the removal of a host that the cluster knows. A plan that is there is kept, but for Force, which can be added.
func (w *Writer) PlanRemoval(ctx context.Context, r inventory.Removal) error {
	_, err := apply(ctx, w, edit[inventory.Removal]{
		what: "removal of host " + string(r.Host), key: keyRemoval(r.Host), codec: removals,
		before: func(context.Context) ([]clientv3.Cmp, error) {
			return []clientv3.Cmp{exists(keyHost(r.Host, partEpoch))}, nil
		},
		refused: func(ctx context.Context) error {
			_, err := w.s.Epoch(ctx, r.Host)
			return err
		},
		change: func(old *inventory.Removal) error {
			if old.Since.IsZero() {
				*old = r
			}
			old.Force = old.Force || r.Force
			return nil
		},
	})
	return err
}

// CancelRemoval takes the plan back; none is what was wanted.
func (w *Writer) CancelRemoval(ctx context.Context, host inventory.HostID) error {
	_, err := w.commit(ctx, nil, clientv3.OpDelete(keyRemoval(host)))
	return fault.Wrap("cancel", "removal of host "+string(host), err)
}

// RemovalWaits notes what the removal of a host waits for, if it is still planned.
func (t *Term) RemovalWaits(ctx context.Context, host inventory.HostID, what string) error {
	_, err := apply(ctx, t.w, edit[inventory.Removal]{
		what: "removal of host " + string(host), key: keyRemoval(host), codec: removals,
		missing: notLeaving(host),
		change: func(r *inventory.Removal) error {
			r.Waits = what
			return nil
		},
	})
	return err
}

// EndEpoch ends the present epoch of a host that is to be removed, so that its agent changes nothing more, and returns the revision that
// RemoveHost compares. An agent that begins another epoch meanwhile is seen by that. Of a host that is fenced the epoch has ended. A removal
// that was taken back is fault.NotFound.
func (t *Term) EndEpoch(ctx context.Context, host inventory.HostID) (revision int64, err error) {
	key := keyHost(host, partEpoch)
	for range attemptsMax {
		if err := t.mayRemove(ctx, host); err != nil {
			return 0, err
		}
		old, was, err := load(ctx, t.w.s, key, hostEpochs)
		if err != nil {
			return 0, err
		}
		if was == 0 {
			return 0, noHost(host)
		}
		if old.value.Fenced {
			return was, nil
		}
		now := old.value
		now.Epoch, now.Why = now.Epoch+1, "it leaves the cluster"
		value, err := hostEpochs.repack(old, now)
		if err != nil {
			return 0, err
		}
		done, err := t.w.commit(ctx, []clientv3.Cmp{unchanged(key, was), exists(keyRemoval(host))}, clientv3.OpPut(key, value))
		if err != nil {
			return 0, err
		}
		if !done {
			continue
		}
		// Only a record that still holds the epoch that was written here is the end of one: the next start of the agent may have come first.
		ended, revision, err := load(ctx, t.w.s, key, hostEpochs)
		if err != nil {
			return 0, err
		}
		if revision != 0 && ended.value.Epoch == now.Epoch {
			return revision, nil
		}
	}
	return 0, fault.New(fault.Conflict, "end epoch of host %s: its agent starts all the time", host)
}

// mayRemove refuses a host whose removal is not planned any more.
func (t *Term) mayRemove(ctx context.Context, host inventory.HostID) error {
	_, revision, err := load(ctx, t.w.s, keyRemoval(host), removals)
	if err == nil && revision == 0 {
		err = notLeaving(host)
	}
	return err
}

// RemoveHost forgets a host, by one transaction that compares its epoch's revision, the list of revoked certificates that revoked was
// made from, and that the removal was not taken back: every record of the host, its renewal, and the plans for it. From then on its name
// is free. Conflict: look anew.
func (t *Term) RemoveHost(ctx context.Context, host inventory.HostID, epochRevision int64, revoked []byte, revokedRevision int64) error {
	old, _, err := load(ctx, t.w.s, keyRevoked, revocationLists)
	if err != nil {
		return err
	}
	value, err := revocationLists.repack(old, revoked)
	if err != nil {
		return err
	}
	still := []clientv3.Cmp{unchanged(keyHost(host, partEpoch), epochRevision), unchanged(keyRevoked, revokedRevision), exists(keyRemoval(host))}
	done, err := t.w.commit(ctx, still,
		clientv3.OpDelete(keyHost(host, ""), clientv3.WithPrefix()), clientv3.OpDelete(keyAlive(host)), clientv3.OpDelete(keyMember(host)),
		clientv3.OpDelete(keyRemoval(host)), clientv3.OpPut(keyRevoked, value))
	if err != nil {
		return fault.Wrap("remove", "host "+string(host), err)
	}
	if !done {
		if err := t.mayRemove(ctx, host); err != nil {
			return err
		}
		return fault.New(fault.Conflict, "remove host %s: its agent was started meanwhile, or another host removed", host)
	}
	return nil
}

// Revoked returns the CA's list of certificates that it has taken back, in DER, and the revision that RemoveHost compares; nil and 0 when
// there is none yet.
func (s *Store) Revoked(ctx context.Context) (list []byte, revision int64, err error) {
	rec, revision, err := load(ctx, s, keyRevoked, revocationLists)
	return rec.value, revision, err
}

// PutRevoked replaces the list of revoked certificates that had the revision; fault.Conflict when another came first.
func (t *Term) PutRevoked(ctx context.Context, list []byte, revision int64) error {
	old, _, err := load(ctx, t.w.s, keyRevoked, revocationLists)
	if err != nil {
		return err
	}
	value, err := revocationLists.repack(old, list)
	if err != nil {
		return err
	}
	done, err := t.w.commit(ctx, []clientv3.Cmp{unchanged(keyRevoked, revision)}, clientv3.OpPut(keyRevoked, value))
	if err == nil && !done {
		err = fault.New(fault.Conflict, "it changed meanwhile")
	}
	return fault.Wrap("put", "list of revoked certificates", err)
}

// Certificates returns those of a host that the cluster has noted.
func (s *Store) Certificates(ctx context.Context, host inventory.HostID) ([]inventory.HostCertificate, error) {
	root := keyHost(host, partCert)
	resp, err := s.get(ctx, root, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var all []inventory.HostCertificate
	for _, kv := range resp.Kvs {
		c, err := read(hostCertificates, string(kv.Key), kv)
		if err != nil {
			return nil, err
		}
		c.Serial = strings.TrimPrefix(string(kv.Key), root)
		all = append(all, c)
	}
	return all, nil
}

// NoteCertificate notes a certificate of the writer's own host, so that it can be taken back one day.
func (w *Writer) NoteCertificate(ctx context.Context, c inventory.HostCertificate) error {
	_, err := apply(ctx, w, edit[inventory.HostCertificate]{
		what: "certificate of host " + string(w.host), key: keyHost(w.host, partCert+c.Serial), codec: hostCertificates,
		change: func(old *inventory.HostCertificate) error {
			*old = c
			return nil
		},
	})
	return err
}

// SealedCA returns the sealed key of the cluster's CA; fault.NotFound when no host has put it there yet.
func (s *Store) SealedCA(ctx context.Context) ([]byte, error) {
	rec, revision, err := load(ctx, s, keySealed, sealedKeys)
	if err == nil && revision == 0 {
		err = fault.New(fault.NotFound, "the store has no key of the cluster's ca: start godwit on the host that made the cluster")
	}
	return rec.value, err
}

// PutSealedCA keeps the sealed key of the CA, unless there is one.
func (w *Writer) PutSealedCA(ctx context.Context, box []byte) error {
	value, err := sealedKeys.pack(box)
	if err != nil {
		return err
	}
	_, err = w.commit(ctx, []clientv3.Cmp{absent(keySealed)}, clientv3.OpPut(keySealed, value))
	return fault.Wrap("keep", "key of the ca", err)
}

// listed returns the records below a root, whose keys are the root and the id of a host.
func listed[T any](ctx context.Context, s *Store, root string, c codec[T], name func(*T, inventory.HostID)) ([]T, error) {
	resp, err := s.get(ctx, root, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var all []T
	for _, kv := range resp.Kvs {
		one, err := read(c, string(kv.Key), kv)
		if err != nil {
			return nil, err
		}
		name(&one, inventory.HostID(strings.TrimPrefix(string(kv.Key), root)))
		all = append(all, one)
	}
	return all, nil
}
