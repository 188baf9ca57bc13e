package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Renew renews the authority of the writer's host for the lease, by one linearisable transaction under its epoch. Only a nil error means
// that it was done, and the caller counts the lease from a moment before the call. After any other error but ErrEpochOver it may
// have been done all the same, but it will not be done later than one that is called after it and succeeds: a renewal that is still on its way
// could otherwise put its short lease in the place of a longer one that the host counts on. It tries once, and again at once where
// it only had to learn what was there: a caller with little time left decides itself what to do next. One call at a time.
func (w *Writer) Renew(ctx context.Context, lease time.Duration, fencing inventory.Fencing) error {
	w.mu.Lock()
	w.renewed++
	sequence := w.renewed
	w.mu.Unlock()
	value, err := renewals.pack(inventory.Renewal{Sequence: sequence, Lease: lease, Fencing: fencing})
	if err != nil {
		return err
	}
	for range attemptsMax {
		done, err := w.renew(ctx, value)
		if err != nil || done {
			return err
		}
	}
	return fault.New(fault.Conflict, "renew authority of host %s: it changes all the time: is the agent running twice?", w.host)
}

// renew tries once, and learns the revisions of both keys when it compared others.
func (w *Writer) renew(ctx context.Context, value string) (bool, error) {
	epochKey, aliveKey := keyHost(w.host, partEpoch), keyAlive(w.host)
	w.mu.Lock()
	epoch, alive := w.revision, w.alive
	w.mu.Unlock()
	resp, err := w.s.txn(ctx, []clientv3.Cmp{unchanged(epochKey, epoch), unchanged(aliveKey, alive), exists(epochKey)},
		[]clientv3.Op{clientv3.OpPut(aliveKey, value)}, []clientv3.Op{clientv3.OpGet(epochKey), clientv3.OpGet(aliveKey)})
	if err != nil {
		return false, err
	}
	alive = resp.Header.GetRevision()
	if !resp.Succeeded {
		if err := w.learnEpoch(resp.Responses[0].GetResponseRange().GetKvs()); err != nil {
			return false, err
		}
		alive = 0
		if kvs := resp.Responses[1].GetResponseRange().GetKvs(); len(kvs) == 1 {
			alive = kvs[0].GetModRevision()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive = alive
	return resp.Succeeded, nil
}

// Renewals returns the last renewal of every host that has an epoch, ordered by host, as of one moment of the store, by one linearisable
// read. A host that never renewed has Revision 0.
func (s *Store) Renewals(ctx context.Context) ([]inventory.Renewal, error) {
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	resp, err := s.client.Txn(call).Then(
		clientv3.OpGet(rootHost, clientv3.WithPrefix()), clientv3.OpGet(rootAlive, clientv3.WithPrefix())).Commit()
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	last := map[inventory.HostID]inventory.Renewal{}
	for _, kv := range resp.Responses[1].GetResponseRange().GetKvs() {
		id, _ := split(rootAlive, string(kv.GetKey()))
		r, err := read(renewals, string(kv.GetKey()), kv)
		if err != nil {
			return nil, err
		}
		r.Host, r.Revision = inventory.HostID(id), kv.GetModRevision()
		last[r.Host] = r
	}
	var all []inventory.Renewal
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		id, part := split(rootHost, string(kv.GetKey()))
		if part != partEpoch {
			continue
		}
		e, err := read(hostEpochs, string(kv.GetKey()), kv)
		if err != nil {
			return nil, err
		}
		r := last[inventory.HostID(id)]
		r.Host, r.Epoch, r.BootID, r.Fenced = inventory.HostID(id), e.Epoch, e.BootID, e.Fenced
		all = append(all, r)
	}
	return all, nil
}

// Fence ends the epoch of a host whose last renewal had this revision, by one transaction that writes the events too: it is fault.Conflict
// when the host has renewed, or its agent begun an epoch, since. From then on no transaction of the host's agent succeeds, and its VMs may be
// given to others (Term.Reassign). Only the leader may, and only after the wait or the proof of policy/authority. To fence a host that is
// fenced does nothing.
func (t *Term) Fence(ctx context.Context, host inventory.HostID, revision int64, why string, events ...inventory.Event) error {
	key := keyHost(host, partEpoch)
	old, epochRevision, err := load(ctx, t.w.s, key, hostEpochs)
	if err != nil {
		return err
	}
	if epochRevision == 0 {
		return noHost(host)
	}
	if old.value.Fenced {
		return nil
	}
	now := old.value
	now.Epoch, now.Fences, now.Fenced, now.Why = now.Epoch+1, now.Fences+1, true, why
	value, err := hostEpochs.repack(old, now)
	if err != nil {
		return err
	}
	ops, err := putEvents(events)
	if err != nil {
		return err
	}
	done, err := t.w.commit(ctx, []clientv3.Cmp{unchanged(key, epochRevision), unchanged(keyAlive(host), revision)}, append(ops, clientv3.OpPut(key, value))...)
	if err != nil {
		return fault.Wrap("fence", "host "+string(host), err)
	}
	if !done {
		return fault.New(fault.Conflict, "fence host %s: it has given a sign of life meanwhile", host)
	}
	return nil
}

// Reassign changes the run record of a VM whose hosts in dead are dead, and says so in its place record, in one transaction that compares
// both, and the epoch of each of the dead, and writes the events. inventory.VMRun.Dead says who is dead; one that is not,
// or no longer, is fault.Conflict, and so is a new owner that leaves the cluster. change may be called several times; its error ends the attempt
// and is returned as it is.
func (t *Term) Reassign(
	ctx context.Context, id inventory.VMID, dead []inventory.HostID, change func(*inventory.VMRun, *inventory.VMPlace) error, events ...inventory.Event,
) (inventory.VMRun, error) {
	runKey, placeKey := keyVM(id, partRun), keyVM(id, partPlace)
	ops, err := putEvents(events)
	if err != nil {
		return inventory.VMRun{}, err
	}
	for range attemptsMax {
		run, runRevision, err := load(ctx, t.w.s, runKey, vmRuns)
		if err != nil {
			return inventory.VMRun{}, err
		}
		if runRevision == 0 {
			return inventory.VMRun{}, noVM(string(id))
		}
		place, placeRevision, err := load(ctx, t.w.s, placeKey, vmPlaces)
		if err != nil {
			return inventory.VMRun{}, err
		}
		still, err := t.stillDead(ctx, dead, run.value)
		if err != nil {
			return inventory.VMRun{}, err
		}
		newRun, newPlace := run.value, place.value
		if err := change(&newRun, &newPlace); err != nil {
			return inventory.VMRun{}, err
		}
		if newRun.Owner != "" && newRun.Owner != run.value.Owner {
			stays, err := t.w.stays(ctx, newRun.Owner)
			if err != nil {
				return inventory.VMRun{}, err
			}
			still = append(still, stays...)
		}
		runText, err := vmRuns.repack(run, newRun)
		if err != nil {
			return inventory.VMRun{}, err
		}
		placeText, err := vmPlaces.repack(place, newPlace)
		if err != nil {
			return inventory.VMRun{}, err
		}
		done, err := t.w.commit(ctx, append(still, unchanged(runKey, runRevision), unchanged(placeKey, placeRevision)),
			append([]clientv3.Op{clientv3.OpPut(runKey, runText), clientv3.OpPut(placeKey, placeText)}, ops...)...)
		if err != nil {
			return inventory.VMRun{}, err
		}
		if done {
			return newRun, nil
		}
	}
	return inventory.VMRun{}, fault.New(fault.Conflict, "vm %s was changed by others %d times meanwhile: try again", id, attemptsMax)
}

// stillDead compares that each of the hosts is dead for the VM and stays so.
func (t *Term) stillDead(ctx context.Context, dead []inventory.HostID, run inventory.VMRun) ([]clientv3.Cmp, error) {
	var cmps []clientv3.Cmp
	for _, host := range dead {
		epoch, revision, err := load(ctx, t.w.s, keyHost(host, partEpoch), hostEpochs)
		if err != nil {
			return nil, err
		}
		if !run.Dead(host, epoch.value.sign(revision != 0)) {
			return nil, fault.New(fault.Conflict, "host %s has come back meanwhile", host)
		}
		cmps = append(cmps, unchanged(keyHost(host, partEpoch), revision))
	}
	return cmps, nil
}

// PutPlace writes what the leader says of a VM that exists; nothing is written when it says so already.
func (t *Term) PutPlace(ctx context.Context, id inventory.VMID, change func(*inventory.VMPlace) error) error {
	_, err := apply(ctx, t.w, edit[inventory.VMPlace]{
		what: "place of vm " + string(id), key: keyVM(id, partPlace), codec: vmPlaces, change: change,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			return t.whileThere(ctx, keyVM(id, partSpec), noVM(string(id)))
		},
	})
	return err
}

// PutStanding writes what the leader says of a host that is a member, and the events in the same transaction. Nothing is written when it
// says so already: it may be repeated after a lost answer, and is told once.
func (t *Term) PutStanding(ctx context.Context, host inventory.HostID, change func(*inventory.HostStanding) error, events ...inventory.Event) error {
	ops, err := putEvents(events)
	if err != nil {
		return err
	}
	e := edit[inventory.HostStanding]{
		what: "standing of host " + string(host), key: keyHost(host, partStanding), codec: hostStandings, change: change,
		before: func(ctx context.Context) ([]clientv3.Cmp, error) {
			return t.whileThere(ctx, keyHost(host, partEpoch), noHost(host))
		},
	}
	if len(ops) > 0 {
		e.with = func(inventory.HostStanding) ([]clientv3.Cmp, []clientv3.Op) { return nil, ops }
		e.changed = true
	}
	_, err = apply(ctx, t.w, e)
	return err
}

// whileThere compares that a key exists, so that nothing is written about an object that was removed meanwhile.
func (t *Term) whileThere(ctx context.Context, key string, missing error) ([]clientv3.Cmp, error) {
	resp, err := t.w.s.get(ctx, key, clientv3.WithCountOnly())
	if err == nil && resp.Count == 0 {
		err = missing
	}
	return []clientv3.Cmp{exists(key)}, err
}
