package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/godwit-vm/godwit/internal/driver/datastore"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// arbiters says of each datastore of this host who keeps two hosts from writing to one image.
type arbiters struct {
	mu      sync.Mutex
	of      map[inventory.DatastoreID]verdict
	claimed map[inventory.DatastoreID]inventory.HostID // local ones that another host has too
}

type verdict struct {
	arbiter authority.Arbiter
	why     string
	local   bool
}

// judge asks the datastore, once: what it is mounted with does not change under QEMUs that have it open.
func (s *arbiters) judge(ds *datastore.Datastore, m Mount) {
	arbiter, why := ds.Arbiter(m.Shared)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[inventory.DatastoreID]verdict{}
	}
	s.of[ds.ID] = verdict{arbiter, why, !m.Shared}
}

// compare looks whether other hosts have a datastore that is local here, and reports whether that has changed.
func (s *arbiters) compare(self inventory.HostID, hosts []inventory.Host) bool {
	claimed := map[inventory.DatastoreID]inventory.HostID{}
	for _, h := range hosts {
		if h.ID == self {
			continue
		}
		for _, d := range h.Spec.Datastores {
			claimed[d.ID] = h.ID
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for id, v := range s.of {
		changed = changed || v.local && claimed[id] != s.claimed[id]
	}
	s.claimed = claimed
	return changed
}

// arbiter returns who arbitrates a datastore, and why; one that is not known is the lease's.
func (s *arbiters) arbiter(id inventory.DatastoreID) (authority.Arbiter, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, known := s.of[id]
	switch {
	case !known:
		return authority.LeaseArbitrates, "it is not mounted here"
	case v.local && s.claimed[id] != "":
		return authority.LeaseArbitrates, "declared local, but host " + string(s.claimed[id]) + " has it too"
	}
	return v.arbiter, v.why
}

// arbiter says who arbitrates the VM's storage: the storage only where it does so for everything that the VM writes, and it writes something that
// a second copy could not open.
func (v *vm) arbiter() authority.Arbiter {
	v.mu.Lock()
	spec := v.stored.Spec
	v.mu.Unlock()
	return v.agent.arbiterOf(spec)
}

func (a *Agent) arbiterOf(spec inventory.VMSpec) authority.Arbiter {
	written := []inventory.File{spec.Boot.Vars}
	for _, d := range spec.Disks {
		written = append(written, d.File)
	}
	written = slices.DeleteFunc(written, inventory.File.IsZero)
	for _, f := range written {
		if arbiter, _ := a.arbiters.arbiter(f.Datastore); arbiter != authority.StorageArbitrates {
			return authority.LeaseArbitrates
		}
	}
	if len(written) == 0 {
		return authority.LeaseArbitrates
	}
	return authority.StorageArbitrates
}

// retellWarden tells the warden of the VMs whose arbiter has changed.
func (a *Agent) retellWarden(ctx context.Context) {
	a.each(func(v *vm) bool {
		v.vcpus.mu.Lock()
		defer v.vcpus.mu.Unlock()
		if !v.vcpus.told {
			return true
		}
		if err := v.tellWarden(ctx, v.vcpus.stands); err != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "the warden does not know who arbitrates", slog.Any("err", err))
		}
		return true
	})
}
