package vnet

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// stateVersion is that of the state file. A newer file is refused: a downgrade needs a fresh directory.
const stateVersion = 1

// saveEvery bounds how often the state file is written.
const saveEvery = 10 * time.Millisecond

// state is what a switch remembers for its own restart. Queued frames are not part of it.
type state struct {
	Version  int
	Host     inventory.HostID
	Networks []NetworkSpec
	Peers    []Peer
	Ports    []portState
	Leases   map[inventory.NetworkID]map[string]string
}

type portState struct {
	Spec      PortSpec
	Mode      PortMode
	Moves     uint64
	Migration inventory.MigrationID `json:",omitempty"`
	Peer      inventory.HostID      `json:",omitempty"`
	Committed bool                  `json:",omitempty"`
}

// changed has the state file written soon. It is behind by milliseconds, which only a switch that dies at that moment
// notices; the agent repeats what it wants, so that heals too.
func (s *Switch) changed() { signal(s.dirty) }

// runSaver writes the state file when something changed, and at the end.
func (s *Switch) runSaver(ctx context.Context) {
	select { // before the old state is restored there is nothing to save
	case <-s.ready:
	case <-ctx.Done():
		return
	}
	for ctx.Err() == nil {
		select {
		case <-s.dirty:
			s.trySave()
		case <-ctx.Done():
		}
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
		}
	}
	s.trySave()
}

func (s *Switch) trySave() {
	if err := s.save(); err != nil {
		s.log.Error("state not saved, a restart would lose changes", slog.Any("err", err))
	}
}

func (s *Switch) save() error {
	st := state{Version: stateVersion, Host: s.cfg.Host, Leases: map[inventory.NetworkID]map[string]string{}}
	s.mu.Lock()
	for _, id := range sortedKeys(s.networks) {
		st.Networks = append(st.Networks, s.networks[id].spec)
	}
	for _, id := range sortedKeys(s.trunks) {
		st.Peers = append(st.Peers, s.trunks[id].peer)
	}
	for id, leases := range s.leases {
		st.Leases[id] = maps.Clone(leases)
	}
	s.mu.Unlock()
	s.look(func() {
		for _, id := range sortedKeys(s.fabric.ports) {
			if p := s.fabric.ports[id]; p.io != nil {
				now := p.status()
				mode := p.mode
				if mode == ModeHeld { // a new process has nothing in its hands
					mode = ModeNormal
				}
				st.Ports = append(st.Ports, portState{
					Spec: p.spec, Mode: mode, Moves: p.moves, Migration: now.Migration, Peer: now.Host, Committed: p.committed,
				})
			}
		}
	})
	b, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.cfg.Dir, stateFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// restore brings back what the state file remembers. What cannot come back is logged, not fatal: a switch with one port
// less is better than none.
func (s *Switch) restore(ctx context.Context) error {
	path := filepath.Join(s.cfg.Dir, stateFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Internal, "switch: %w", err)
	}
	var st state
	if err := json.Unmarshal(b, &st); err != nil {
		return fault.New(fault.Internal, "switch: %s is damaged: %w: remove it, the agent sets everything again", path, err)
	}
	if st.Version > stateVersion || st.Host != s.cfg.Host {
		return fault.New(fault.Incompatible, "switch: %s is of host %s and version %d, this is host %s and version %d: remove it",
			path, st.Host, st.Version, s.cfg.Host, stateVersion)
	}
	s.mu.Lock()
	maps.Copy(s.leases, st.Leases)
	s.mu.Unlock()
	s.warn("networks not restored", s.SetNetworks(ctx, st.Networks))
	s.ops.Lock()
	for _, ps := range st.Ports {
		s.warn("port not restored", s.restorePort(ctx, ps))
	}
	s.ops.Unlock()
	if len(st.Peers) > 0 {
		s.warn("peers not restored", s.SetPeers(ctx, st.Peers))
	}
	s.log.InfoContext(ctx, "state restored", slog.Int("ports", len(st.Ports)), slog.Int("networks", len(st.Networks)), slog.Int("peers", len(st.Peers)))
	return nil
}

func (s *Switch) warn(event string, err error) {
	if err != nil {
		s.log.Warn(event, slog.Any("err", err)) //nolint:sloglint // one of three constants
	}
}

func (s *Switch) restorePort(ctx context.Context, ps portState) error {
	p, err := newPort(ps.Spec, ps.Mode)
	if err != nil {
		return err
	}
	p.moves = ps.Moves
	way := passage{id: ps.Migration, key: keyOfMigration(ps.Migration), peer: ps.Peer}
	switch ps.Mode {
	case ModeForwarding:
		way.first = uint64(time.Now().UnixNano()) // later than any number of the process before
		way.sequence = way.first
		p.leave, p.flushed = way, map[inventory.HostID]bool{}
		if ps.Committed {
			p.committed, p.until = true, time.Now().Add(forwardLinger)
		}
	case ModeReserved, ModeNormal:
		if ps.Migration != "" {
			p.arrive = way
		}
	case ModeHeld:
	}
	return s.plug(ctx, p)
}
