package vnet

import (
	"context"
	"net"
	"reflect"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// SetNetworks makes exactly these networks exist; see Client.SetNetworks.
func (s *Switch) SetNetworks(ctx context.Context, specs []NetworkSpec) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	wanted := map[inventory.NetworkID]NetworkSpec{}
	keys := map[netKey]inventory.NetworkID{}
	for _, spec := range specs {
		if spec.ID == "" {
			return fault.New(fault.Invalid, "network without an id")
		}
		if other, taken := keys[keyOfNetwork(spec.ID)]; taken {
			return fault.New(fault.Invalid, "networks %s and %s: the same id, or the same 64-bit hash: rename one", other, spec.ID)
		}
		if spec.Gateway != nil {
			if _, err := planGateway(spec.ID, *spec.Gateway); err != nil {
				return err
			}
		}
		keys[keyOfNetwork(spec.ID)] = spec.ID
		wanted[spec.ID] = spec
	}
	if err := s.dropNetworks(wanted); err != nil {
		return err
	}
	var problem error
	for _, id := range sortedKeys(wanted) {
		if err := s.setNetwork(ctx, wanted[id]); err != nil && problem == nil {
			problem = err // the others shall work all the same
		}
	}
	s.changed()
	return problem
}

// dropNetworks removes the networks that are not wanted, or none if one of them still has ports.
func (s *Switch) dropNetworks(wanted map[inventory.NetworkID]NetworkSpec) error {
	var drop []*network
	for _, id := range sortedKeys(s.networks) {
		if _, keep := wanted[id]; keep {
			continue
		}
		busy := ""
		s.look(func() {
			for p := range s.fabric.networks[keyOfNetwork(id)].ports {
				if p.io != nil {
					busy = p.spec.ID
				}
			}
		})
		if busy != "" {
			return fault.New(fault.Conflict, "network %s still has port %s: remove it first", id, busy)
		}
		drop = append(drop, s.networks[id])
	}
	for _, n := range drop {
		s.stopGateway(n)
		s.mu.Lock()
		delete(s.networks, n.spec.ID)
		delete(s.leases, n.spec.ID)
		s.mu.Unlock()
		s.look(func() { delete(s.fabric.networks, keyOfNetwork(n.spec.ID)) })
	}
	return nil
}

func (s *Switch) setNetwork(ctx context.Context, spec NetworkSpec) error {
	s.mu.Lock()
	n := s.networks[spec.ID]
	if n == nil {
		n = &network{spec: NetworkSpec{ID: spec.ID}}
		s.networks[spec.ID] = n
	}
	s.mu.Unlock()
	s.look(func() {
		if key := keyOfNetwork(spec.ID); s.fabric.networks[key] == nil {
			s.fabric.networks[key] = newSegment(spec.ID)
		}
	})
	if reflect.DeepEqual(n.spec, spec) && (spec.Gateway == nil) == (n.gateway == nil) {
		return nil
	}
	if n.gateway != nil && n.gateway.adjust(spec.Gateway) {
		s.mu.Lock()
		n.spec = spec
		s.mu.Unlock()
		return nil
	}
	s.stopGateway(n)
	s.mu.Lock()
	n.spec = spec
	s.mu.Unlock()
	if spec.Gateway == nil {
		return nil
	}
	return s.startGateway(ctx, n)
}

// SetPeers makes exactly these hosts the trunk peers; see Client.SetPeers.
func (s *Switch) SetPeers(_ context.Context, peers []Peer) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	wanted := map[inventory.HostID]Peer{}
	for _, p := range peers {
		if p.ID == s.cfg.Host {
			continue
		}
		if _, _, err := net.SplitHostPort(p.Addr); p.ID == "" || len(p.ID) > 255 || err != nil {
			return fault.New(fault.Invalid, "peer %q at %q: an id and host:port are needed", p.ID, p.Addr)
		}
		if _, twice := wanted[p.ID]; twice {
			return fault.New(fault.Invalid, "peer %s is named twice", p.ID)
		}
		wanted[p.ID] = p
	}
	if len(wanted) > 0 && s.cfg.ClientTLS == nil {
		return fault.New(fault.Invalid, "switch: peers need trunks, and this switch was started without certificates")
	}
	for _, id := range sortedKeys(s.trunks) {
		if wanted[id] != s.trunks[id].peer {
			s.stopTrunk(s.trunks[id])
		}
	}
	for _, id := range sortedKeys(wanted) {
		if s.trunks[id] == nil && !s.startTrunk(wanted[id]) {
			return fault.New(fault.Unavailable, "switch is ending")
		}
	}
	s.changed()
	return nil
}

// startTrunk makes a trunk and has it run. The caller holds ops.
func (s *Switch) startTrunk(p Peer) bool {
	t := &trunk{
		peer: p, link: &link{host: p.ID, out: newQueue(trunkQueueMax)}, fabric: s.fabric, log: s.log,
		dials: s.cfg.Host < p.ID, dial: s.dialTrunk,
		accepted: make(chan net.Conn, 1), stopped: make(chan struct{}), since: time.Now(),
	}
	stop := make(chan struct{})
	t.stop = func() { close(stop) }
	s.look(func() { s.fabric.links[p.ID] = t.link })
	s.mu.Lock()
	s.trunks[p.ID] = t
	s.mu.Unlock()
	return s.start(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer close(t.stopped)
		go func() { // ends with t.run at the latest
			select {
			case <-stop:
				cancel()
			case <-ctx.Done():
			}
		}()
		t.run(ctx)
	})
}

// stopTrunk ends a trunk and waits for it. The caller holds ops.
func (s *Switch) stopTrunk(t *trunk) {
	t.stop()
	select {
	case <-t.stopped:
	case <-s.ended:
	}
	s.look(func() { delete(s.fabric.links, t.peer.ID) })
	s.mu.Lock()
	delete(s.trunks, t.peer.ID)
	s.mu.Unlock()
}
