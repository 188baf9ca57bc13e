package vnet

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// newPort returns a port in a mode, not yet on its network.
func newPort(spec PortSpec, mode PortMode) (*port, error) {
	if spec.ID == "" {
		return nil, fault.New(fault.Invalid, "port without an id")
	}
	m, err := parseMAC(spec.MAC)
	if err != nil {
		return nil, fault.Wrap("port", spec.ID, err)
	}
	if m.zero() && (spec.Guard || mode == ModeReserved) {
		return nil, fault.New(fault.Invalid, "port %s needs a MAC address to be guarded or reserved", spec.ID)
	}
	p := &port{spec: spec, mac: m, mode: mode, out: newQueue(portQueueMax)}
	if mode == ModeReserved {
		p.gate = make(chan struct{})
	}
	return p, nil
}

// AddPort makes the port exist; see Client.AddPort.
func (s *Switch) AddPort(ctx context.Context, spec PortSpec) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	if old := s.port(spec.ID); old != nil && !s.returning(old) {
		if old.spec == spec {
			return nil
		}
		return fault.New(fault.Exists, "port %s exists with another network, address or socket: remove it first", spec.ID)
	}
	p, err := newPort(spec, ModeNormal)
	if err != nil {
		return err
	}
	return s.plug(ctx, p)
}

// Reserve makes the port exist for a guest that is to come; see Client.Reserve.
func (s *Switch) Reserve(ctx context.Context, spec PortSpec, id inventory.MigrationID, source inventory.HostID) error {
	if id == "" || source == "" || source == s.cfg.Host {
		return fault.New(fault.Invalid, "port %s: a reservation needs a migration and another host as its source", spec.ID)
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	if old := s.port(spec.ID); old != nil {
		var was PortStatus
		s.look(func() { was = old.status() })
		switch {
		case was.PortSpec == spec && was.Mode == ModeReserved && was.Migration == id && was.Host == source:
			return nil
		case s.returning(old):
		default:
			return fault.New(fault.Conflict, "port %s is %s already: remove it first", spec.ID, was.Mode)
		}
	}
	p, err := newPort(spec, ModeReserved)
	if err != nil {
		return err
	}
	p.arrive = passage{id: id, key: keyOfMigration(id), peer: source}
	return s.plug(ctx, p)
}

// look runs read with the fabric at rest.
func (s *Switch) look(read func()) {
	s.fabric.mu.Lock()
	defer s.fabric.mu.Unlock()
	read()
}

func (s *Switch) returning(p *port) bool {
	committed := false
	s.look(func() { committed = p.committed })
	return committed
}

// port returns the port of that id, or nil. Gateways are not found.
func (s *Switch) port(id string) *port {
	var p *port
	s.look(func() { p = s.fabric.ports[id] })
	if p != nil && p.io == nil {
		return nil
	}
	return p
}

func (s *Switch) mustPort(id string) (*port, error) {
	if p := s.port(id); p != nil {
		return p, nil
	}
	return nil, fault.New(fault.NotFound, "port %s: not on this switch", id)
}

// plug gives the port its socket and puts it on its network. The caller holds ops.
func (s *Switch) plug(ctx context.Context, p *port) error {
	var lingers []*port // of the same guest, from when it left; now it comes back
	s.look(func() {
		for _, old := range s.fabric.ports {
			if old.committed && (old.spec.ID == p.spec.ID || old.mac == p.mac && old.spec.Network == p.spec.Network) {
				lingers = append(lingers, old)
			}
		}
	})
	for _, old := range lingers {
		s.unplug(old)
	}
	l, err := listenSocket(ctx, p.spec)
	if err != nil {
		return err
	}
	p.io = &socket{listener: l, path: p.spec.Socket, fabric: s.fabric, port: p, log: s.log, closing: make(chan struct{})}
	s.fabric.mu.Lock()
	err = s.fabric.addPort(p, time.Now())
	s.fabric.mu.Unlock()
	if err != nil {
		p.io.close()
		return err
	}
	if !s.start(p.io.run) {
		p.io.close()
		return fault.New(fault.Unavailable, "port %s: the switch is ending", p.spec.ID)
	}
	s.log.InfoContext(ctx, "port added", slog.String("port", p.spec.ID), slog.String("network", string(p.spec.Network)), slog.String("mode", string(p.mode)))
	s.changed()
	return nil
}

// unplug takes the port off its network; portLeft closes its socket.
func (s *Switch) unplug(p *port) {
	s.fabric.mu.Lock()
	defer s.fabric.unlock()
	s.fabric.removePort(p)
}

// portLeft follows every removal of a port from the fabric.
func (s *Switch) portLeft(p *port) {
	if p.io != nil {
		p.io.close()
		s.log.Info("port removed", slog.String("port", p.spec.ID))
	}
	s.changed()
}

// RemovePort closes and forgets the port; see Client.RemovePort.
func (s *Switch) RemovePort(_ context.Context, id string) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	if p := s.port(id); p != nil {
		s.unplug(p)
	}
	return nil
}

// Hold stops writing to the port's client; see Client.Hold.
func (s *Switch) Hold(ctx context.Context, id string, drain time.Duration) error {
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	if err := s.fabric.hold(p); err != nil {
		return err
	}
	ctx, done := context.WithTimeout(ctx, drain)
	defer done()
	return p.io.waitRead(ctx)
}

// Unhold lets a held port carry frames again; see Client.Unhold.
func (s *Switch) Unhold(_ context.Context, id string) error {
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	return s.fabric.resume(p, false, time.Now())
}

// Forward sends what is queued to the target host; see Client.Forward.
func (s *Switch) Forward(ctx context.Context, id string, target inventory.HostID, migration inventory.MigrationID, again int) error {
	if migration == "" || target == "" || target == s.cfg.Host {
		return fault.New(fault.Invalid, "port %s: forwarding needs a migration and another host as its target", id)
	}
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	if err := p.io.waitHeard(ctx); err != nil {
		return err
	}
	frames := p.io.recent.last(again)
	if err := s.fabric.startForward(p, target, migration, frames, time.Now()); err != nil {
		for _, fr := range frames {
			fr.release()
		}
		return err
	}
	p.io.recent.end()
	s.log.InfoContext(ctx, "port forwards", slog.String("port", id), slog.String("host", string(target)), slog.String("migration", string(migration)))
	s.changed()
	return nil
}

// Abort takes a held or forwarding port back to normal; see Client.Abort.
func (s *Switch) Abort(_ context.Context, id string, migration inventory.MigrationID) error {
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	var was PortStatus
	s.look(func() { was = p.status() })
	if was.Mode == ModeForwarding && was.Migration != migration {
		return fault.New(fault.Conflict, "port %s forwards for migration %s, not %s", id, was.Migration, migration)
	}
	if err := s.fabric.resume(p, true, time.Now()); err != nil {
		return err
	}
	s.changed()
	return nil
}

// Commit drops the copies of a forwarding port; see Client.Commit.
func (s *Switch) Commit(_ context.Context, id string, migration inventory.MigrationID) error {
	p := s.port(id)
	if p == nil {
		return nil
	}
	if err := s.fabric.commit(p, migration, time.Now()); err != nil {
		return err
	}
	s.changed()
	return nil
}

// Open lets the guest of a reserved port onto the network; see Client.Open.
func (s *Switch) Open(ctx context.Context, id string, migration inventory.MigrationID) error {
	p, err := s.mustPort(id)
	if err != nil {
		return err
	}
	if err := s.fabric.open(p, migration, time.Now()); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "port opened", slog.String("port", id), slog.String("migration", string(migration)))
	s.changed()
	return nil
}

// Discard removes a reserved port; see Client.Discard.
func (s *Switch) Discard(_ context.Context, id string, migration inventory.MigrationID) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	p := s.port(id)
	if p == nil {
		return nil
	}
	s.fabric.mu.Lock()
	defer s.fabric.unlock()
	if p.mode != ModeReserved || p.arrive.id != migration {
		return fault.New(fault.Conflict, "port %s is %s and not reserved for migration %s", id, p.mode, migration)
	}
	s.fabric.removePort(p)
	return nil
}
