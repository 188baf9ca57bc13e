package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// HostView is a host as another one sees it.
type HostView struct {
	inventory.Host
	Answers bool
	Store   string // its part in the store: "member", "learner", or empty
}

// pingMax bounds the question whether another host answers.
const pingMax = time.Second

// Hosts returns all hosts and whether each answers this one.
func (a *Agent) Hosts(ctx context.Context) ([]HostView, error) {
	all, err := a.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]HostView, len(all))
	var asked sync.WaitGroup
	for i, h := range all {
		views[i].Host = h
		if h.ID == a.Host() {
			views[i].Answers = true
			views[i].Status = a.status()
			continue
		}
		asked.Go(func() { views[i].Answers = a.Reachable(ctx, h.Spec.Address) })
	}
	asked.Wait()
	return views, a.partsInStore(ctx, views)
}

// partsInStore fills in what part each host has in the store, as etcd has it.
func (a *Agent) partsInStore(ctx context.Context, views []HostView) error {
	if a.StorePeer == "" {
		return nil // the store is not Godwit's own
	}
	members, err := a.Store.Members(ctx)
	if err != nil {
		return err
	}
	for i, v := range views {
		for _, m := range members {
			if v.Spec.StorePeer == "" || m.Peer != v.Spec.StorePeer {
				continue
			}
			views[i].Store = "member"
			if m.Learner {
				views[i].Store = "learner"
			}
		}
	}
	return nil
}

// Reachable reports whether something listens at a host's address.
func (a *Agent) Reachable(ctx context.Context, address string) bool {
	dialer := net.Dialer{Timeout: pingMax}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was sent
	return true
}

// Process is one of Godwit's own processes on this host.
type Process struct {
	Role     string
	PID      int
	Resident inventory.Bytes
}

// Self returns this host with its processes.
func (a *Agent) Self(ctx context.Context) (inventory.Host, []Process, error) {
	h, err := a.describe(ctx)
	if err != nil {
		return h, nil, err
	}
	var processes []Process
	add := func(role string, pid int) {
		proc, err := procfs.NewProc(pid)
		if err != nil {
			return
		}
		if stat, err := proc.Stat(); err == nil {
			processes = append(processes, Process{role, pid, inventory.Bytes(stat.ResidentMemory())})
		}
	}
	warden := os.Getppid()
	add("warden", warden)
	procs, err := procfs.AllProcs()
	if err != nil {
		return h, nil, fault.New(fault.Internal, "process list: %w", err)
	}
	for _, p := range procs {
		stat, err := p.Stat()
		if err != nil || stat.PPID != warden {
			continue
		}
		if args, err := p.CmdLine(); err == nil && len(args) > 2 && args[1] == "role" {
			add(args[2], p.PID)
		}
	}
	return h, processes, nil
}

// describe returns this host as it is now, with the free memory of this moment.
func (a *Agent) describe(ctx context.Context) (inventory.Host, error) {
	h := inventory.Host{ID: a.Host(), Spec: inventory.HostSpec{
		Address: a.Address, Trunk: a.Trunk, Version: a.Version, CPUs: runtime.NumCPU(), Memory: memory().total,
		Epoch: a.writer.Epoch(), QEMU: a.abilities.QEMU(a.knownVerdict()), NetworkAll: true,
		StoreClient: a.StoreClient, StorePeer: a.StorePeer,
	}, Status: a.status()}
	for _, m := range a.Datastores {
		for _, ds := range a.stores {
			if ds.Path == m.Path {
				arbiter, why := a.arbiters.arbiter(ds.ID)
				h.Spec.Datastores = append(h.Spec.Datastores, inventory.DatastoreMount{
					ID: ds.ID, Name: ds.Name, Path: m.Path, Shared: m.Shared, Arbiter: arbiter, Why: why,
				})
			}
		}
	}
	if f, err := qemu.FindFirmware(); err == nil {
		h.Spec.UEFI = inventory.UEFI{Code: f.Code, CodeSize: f.CodeSize, VarsSize: f.VarsSize}
	}
	networks, err := a.Store.Networks(ctx)
	if err != nil {
		return h, err
	}
	h.Spec.Networks, h.Spec.Missing = a.bridges(networks)
	return h, nil
}

// publish stores what this host says of itself.
func (a *Agent) publish(ctx context.Context) error {
	a.publishing.Lock()
	defer a.publishing.Unlock()
	h, err := a.describe(ctx)
	if err != nil {
		return err
	}
	if err := a.writer.PutHostSpec(ctx, h.Spec); err != nil {
		return err
	}
	a.mu.Lock()
	a.published = h.Spec
	a.mu.Unlock()
	return nil
}

func (a *Agent) status() inventory.HostStatus {
	a.mu.Lock()
	vms := 0
	for _, v := range a.vms {
		v.mu.Lock()
		if v.process != nil || v.target != nil {
			vms++
		}
		v.mu.Unlock()
	}
	a.mu.Unlock()
	return inventory.HostStatus{Started: a.started, MemoryFree: memory().free, VMs: vms}
}

type memoryFigures struct{ total, free inventory.Bytes }

// memory reads the host's memory; "free" is what can be had without swapping (MemAvailable, proc(5)).
func memory() memoryFigures {
	var m memoryFigures
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return m
	}
	info, err := fs.Meminfo()
	if err != nil {
		return m
	}
	if info.MemTotalBytes != nil {
		m.total = inventory.Bytes(*info.MemTotalBytes) //nolint:gosec // no machine has 2^63 bytes
	}
	if info.MemAvailableBytes != nil {
		m.free = inventory.Bytes(*info.MemAvailableBytes) //nolint:gosec // as above
	}
	return m
}

// checkMigration returns the verdict of the correctness probe, running it if no result is cached, and publishes it. With
// fresh a verdict that is not good is asked for again, whatever is cached.
func (a *Agent) checkMigration(ctx context.Context, fresh bool) (inventory.Verdict, error) {
	a.verdictOnce.Lock()
	defer a.verdictOnce.Unlock()
	if v := a.knownVerdict(); v.State == inventory.VerdictGood || v.State == inventory.VerdictBad && !fresh {
		return v, nil
	}
	probe := a.probe()
	probe.Fresh = fresh
	verdict, err := qemu.CheckMigration(ctx, probe, a.abilities.Accelerator)
	if err != nil {
		return verdict, err
	}
	a.mu.Lock()
	a.verdict = verdict
	a.mu.Unlock()
	return verdict, a.publish(ctx)
}

func (a *Agent) knownVerdict() inventory.Verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.verdict
}

// checkNetwork lists what is wrong with a network as it was asked for.
func checkNetwork(n inventory.Network) error {
	var bad []string
	if err := inventory.CheckName("network", string(n.ID)); err != nil {
		bad = append(bad, err.Error())
	}
	bad = append(bad, driverProblems(n.Spec)...)
	prefix, err := netip.ParsePrefix(n.Spec.Subnet)
	switch {
	case n.Spec.Subnet == "" && n.Spec.Gateway == "" && len(n.Spec.Forwards) == 0:
	case n.Spec.Subnet == "":
		bad = append(bad, "a gateway or a forward needs a subnet: give one with --subnet, like 10.10.0.0/24")
	case err != nil || !prefix.Addr().Is4() || prefix.Masked() != prefix:
		bad = append(bad, fmt.Sprintf("subnet %q is no IPv4 network: write it like 10.10.0.0/24", n.Spec.Subnet))
	case prefix.Bits() > 30:
		bad = append(bad, fmt.Sprintf("subnet %s is too small: take /30 or larger", n.Spec.Subnet))
	}
	for _, f := range n.Spec.Forwards {
		if _, err := netip.ParseAddrPort(f.Listen); err != nil {
			bad = append(bad, fmt.Sprintf("forward from %q: write address:port, like 127.0.0.1:2222", f.Listen))
		}
		guest, err := netip.ParseAddrPort(f.Guest)
		if err != nil || prefix.IsValid() && !prefix.Contains(guest.Addr()) {
			bad = append(bad, fmt.Sprintf("forward to %q: write address:port of a guest in the subnet", f.Guest))
		}
	}
	return fault.Refuse(fault.Invalid, bad)
}
