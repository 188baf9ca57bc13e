package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func noHost(id inventory.HostID) error {
	return fault.New(fault.NotFound, "no host %q: see godwit host ls", string(id))
}

// InitCluster names the cluster, and makes the hosts that are given its first members. It is done once, by the first host; fault.Exists when it
// was done before with another name. Done again with the same name it changes nothing.
func (s *Store) InitCluster(ctx context.Context, name string, first ...inventory.HostID) error {
	value, err := clusters.pack(name)
	if err != nil {
		return err
	}
	epoch, err := hostEpochs.pack(Epoch{})
	if err != nil {
		return err
	}
	then := []clientv3.Op{clientv3.OpPut(keyCluster, value)}
	for _, host := range first {
		then = append(then, clientv3.OpPut(keyHost(host, partEpoch), epoch))
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{absent(keyCluster)}, then, []clientv3.Op{clientv3.OpGet(keyCluster)})
	if err != nil {
		return fault.Wrap("init", "cluster "+name, err)
	}
	if resp.Succeeded {
		return nil
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) == 1 {
		was, err := read(clusters, keyCluster, kvs[0])
		if err != nil || was == name {
			return err
		}
		return fault.New(fault.Exists, "init cluster %s: the store belongs to cluster %s already", name, was)
	}
	return fault.New(fault.Conflict, "init cluster %s: the store changed meanwhile: try again", name)
}

// Admit makes a host a member as UseToken does, but without a token: for one that has joined before (certificate.Begin). One that is a
// member stays as it is.
func (s *Store) Admit(ctx context.Context, host inventory.HostID) error {
	if err := checkID("host", host); err != nil {
		return err
	}
	epoch, err := hostEpochs.pack(Epoch{})
	if err != nil {
		return err
	}
	key := keyHost(host, partEpoch)
	_, err = s.txn(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, epoch)}, nil)
	return fault.Wrap("admit", "host "+string(host), err)
}

// Cluster returns the cluster's name, or fault.NotFound before InitCluster.
func (s *Store) Cluster(ctx context.Context) (string, error) {
	rec, revision, err := load(ctx, s, keyCluster, clusters)
	if err == nil && revision == 0 {
		err = fault.New(fault.NotFound, "the store belongs to no cluster yet: run godwit init on the first host")
	}
	return rec.value, err
}

// Hosts returns all hosts that have said what they are, as of one moment, ordered by id.
func (s *Store) Hosts(ctx context.Context) ([]inventory.Host, error) {
	resp, err := s.get(ctx, rootHost, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "hosts", err)
	}
	hosts, err := gatherHosts(resp.Kvs)
	return hosts, fault.Wrap("list", "hosts", err)
}

// Host returns one host; fault.NotFound when no agent of that host has ever written its spec.
func (s *Store) Host(ctx context.Context, id inventory.HostID) (inventory.Host, error) {
	if checkID("host", id) != nil {
		return inventory.Host{}, noHost(id)
	}
	resp, err := s.get(ctx, keyHost(id, ""), clientv3.WithPrefix())
	if err != nil {
		return inventory.Host{}, fault.Wrap("read", "host "+string(id), err)
	}
	hosts, err := gatherHosts(resp.Kvs)
	if err != nil {
		return inventory.Host{}, fault.Wrap("read", "host "+string(id), err)
	}
	if len(hosts) == 0 {
		return inventory.Host{}, noHost(id)
	}
	return hosts[0], nil
}

func gatherHosts(kvs []*mvccpb.KeyValue) ([]inventory.Host, error) {
	var hosts []inventory.Host
	var h inventory.Host
	var whole bool
	flush := func() {
		if whole {
			hosts = append(hosts, h)
		}
	}
	for _, kv := range kvs {
		key := string(kv.GetKey())
		id, part := split(rootHost, key)
		if h.ID != inventory.HostID(id) {
			flush()
			h, whole = inventory.Host{ID: inventory.HostID(id)}, false
		}
		var err error
		switch part {
		case partSpec:
			whole = true
			h.Spec, err = read(hostSpecs, key, kv)
		case partStatus:
			h.Status, err = read(hostStatuses, key, kv)
		case partStanding:
			h.Standing, err = read(hostStandings, key, kv)
		}
		if err != nil {
			return nil, err
		}
	}
	flush()
	return hosts, nil
}

// PutHostSpec writes what the writer's own host says of itself. The spec's epoch is set to the writer's.
func (w *Writer) PutHostSpec(ctx context.Context, spec inventory.HostSpec) error {
	spec.Epoch = w.epoch
	_, err := apply(ctx, w, edit[inventory.HostSpec]{
		what:  "spec of host " + string(w.host),
		key:   keyHost(w.host, partSpec),
		codec: hostSpecs,
		change: func(s *inventory.HostSpec) error {
			*s = spec
			return nil
		},
	})
	return err
}

// PutHostStatus writes how the writer's own host is.
func (w *Writer) PutHostStatus(ctx context.Context, status inventory.HostStatus) error {
	_, err := apply(ctx, w, edit[inventory.HostStatus]{
		what:  "status of host " + string(w.host),
		key:   keyHost(w.host, partStatus),
		codec: hostStatuses,
		change: func(s *inventory.HostStatus) error {
			*s = status
			return nil
		},
	})
	return err
}

// Networks returns all networks as of one moment, ordered by id.
func (s *Store) Networks(ctx context.Context) ([]inventory.Network, error) {
	resp, err := s.get(ctx, rootNetwork, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "networks", err)
	}
	var networks []inventory.Network
	for _, kv := range resp.Kvs {
		id, part := split(rootNetwork, string(kv.Key))
		if part != partSpec {
			continue
		}
		spec, err := read(networkSpecs, string(kv.Key), kv)
		if err != nil {
			return nil, fault.Wrap("list", "networks", err)
		}
		networks = append(networks, inventory.Network{ID: inventory.NetworkID(id), Spec: spec})
	}
	return networks, nil
}

// CreateNetwork records a new network; fault.Exists when the id is taken.
func (w *Writer) CreateNetwork(ctx context.Context, n inventory.Network) error {
	if err := checkID("network", n.ID); err != nil {
		return err
	}
	value, err := networkSpecs.pack(n.Spec)
	if err != nil {
		return fault.Wrap("create", "network "+string(n.ID), err)
	}
	done, err := w.add(ctx, []clientv3.Cmp{absent(keyNetwork(n.ID))}, clientv3.OpPut(keyNetwork(n.ID), value))
	if err != nil {
		return fault.Wrap("create", "network "+string(n.ID), err)
	}
	if !done {
		return fault.New(fault.Exists, "create network %s: the name is taken: choose another", n.ID)
	}
	return nil
}

// PutNetwork writes what the user asks of a network, whether it is there already or not.
func (w *Writer) PutNetwork(ctx context.Context, n inventory.Network) error {
	if err := checkID("network", n.ID); err != nil {
		return err
	}
	_, err := apply(ctx, w, edit[inventory.NetworkSpec]{
		what:  "spec of network " + string(n.ID),
		key:   keyNetwork(n.ID),
		codec: networkSpecs,
		change: func(s *inventory.NetworkSpec) error {
			*s = n.Spec
			return nil
		},
	})
	return err
}

// Standings returns what the leader has said of each host, as of one moment; a host of which it never said anything is missing.
func (s *Store) Standings(ctx context.Context) (map[inventory.HostID]inventory.HostStanding, error) {
	resp, err := s.get(ctx, rootHost, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "hosts", err)
	}
	all := map[inventory.HostID]inventory.HostStanding{}
	for _, kv := range resp.Kvs {
		id, part := split(rootHost, string(kv.Key))
		if part != partStanding {
			continue
		}
		standing, err := read(hostStandings, string(kv.Key), kv)
		if err != nil {
			return nil, fault.Wrap("list", "hosts", err)
		}
		all[inventory.HostID(id)] = standing
	}
	return all, nil
}
