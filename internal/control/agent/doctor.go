package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/control/doctor"
	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
)

// Check is one finding about this host.
type Check = doctor.Check

// Doctor examines this host, running the probes that have no cached result. What needs no agent is examined by control/doctor.
func (a *Agent) Doctor(ctx context.Context) []Check {
	checks := []Check{a.checkQEMU(), a.checkKVM(), a.checkMemory(ctx), doctor.UEFI(), a.checkUser(), a.checkCgroup(), a.checkSwitch(ctx), a.checkBridges(ctx)}
	checks = append(checks, doctor.Certificate(a.Identity.Expires(), time.Now()))
	checks = append(checks, a.checkArbiters())
	checks = append(checks, a.checkStore(ctx))
	checks = append(checks, a.checkOthers(ctx)...)
	return append(checks, doctor.Machine(ctx, a.examined())...)
}

// examined says to the doctor what machine this is.
func (a *Agent) examined() doctor.Config {
	c := doctor.Config{QEMU: a.probe(), Data: a.Data, Run: a.RunDir, Watchdog: a.Watchdog, WatchdogTimeout: a.WatchdogTimeout, Running: true}
	c.Armed = a.Authority.warden.Fencing() == inventory.FencedByWatchdog
	for _, m := range a.Datastores {
		folder := doctor.Folder{Path: m.Path, Shared: m.Shared}
		for _, ds := range a.stores {
			if ds.Path == m.Path {
				folder.Name = ds.Name
			}
		}
		c.Datastores = append(c.Datastores, folder)
	}
	return c
}

func (a *Agent) checkQEMU() Check { return doctor.QEMU(a.abilities, migrate.Needed()) }

func (a *Agent) checkKVM() Check { return doctor.KVM(a.abilities) }

// checkMemory is the correctness probe: does QEMU's migration keep memory intact?
func (a *Agent) checkMemory(ctx context.Context) Check {
	return doctor.Migration(a.checkMigration(ctx, true))
}

func (a *Agent) checkUser() Check { return doctor.User("", a.User) }

// checkArbiters says of each datastore who keeps two hosts from writing to one image.
func (a *Agent) checkArbiters() Check {
	var all []doctor.Arbiter
	for _, ds := range a.stores {
		arbiter, why := a.arbiters.arbiter(ds.ID)
		all = append(all, doctor.Arbiter{Name: ds.Name, Arbiter: arbiter, Why: why})
	}
	return doctor.Arbiters(all)
}

// reachMax bounds how long a port of another host may take to answer.
const reachMax = time.Second

// checkOthers compares this host with the others and tries their ports.
func (a *Agent) checkOthers(ctx context.Context) []Check {
	hosts, err := a.Store.Hosts(ctx)
	if err != nil {
		return []Check{{Name: "store", State: doctor.Bad, Detail: err.Error(), Fix: "see godwit's log on the host that has the store"}}
	}
	self := inventory.Host{ID: a.Host(), Spec: inventory.HostSpec{QEMU: a.abilities.QEMU(a.knownVerdict())}}
	cpu := doctor.CPU(admission.Baseline([]inventory.Host{self}), admission.Baseline(hosts), len(hosts))
	ports := map[string]string{} // address to what it is
	for _, endpoint := range a.Store.Endpoints() {
		_, address, _ := strings.Cut(endpoint, "://")
		ports[address] = "the store"
	}
	for _, h := range hosts {
		if h.ID != a.Host() {
			ports[h.Spec.Address], ports[h.Spec.Trunk] = string(h.ID)+"'s agent", string(h.ID)+"'s switch"
		}
	}
	delete(ports, "") // an older host says nothing of its switch
	var mu sync.Mutex
	var silent []string
	var all sync.WaitGroup
	for address, what := range ports {
		all.Go(func() {
			within, done := context.WithTimeout(ctx, reachMax)
			defer done()
			if !a.Reachable(within, address) {
				mu.Lock()
				silent = append(silent, what+" ("+address+")")
				mu.Unlock()
			}
		})
	}
	all.Wait()
	slices.Sort(silent)
	return []Check{cpu, doctor.Reach(silent, len(ports)-len(silent))}
}

func (a *Agent) checkCgroup() Check {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.vms {
		v.mu.Lock()
		p := v.process
		v.mu.Unlock()
		if p == nil {
			continue
		}
		if dir, why := p.Cgroup(); dir == "" {
			return Check{Name: "cgroup", State: "warn", Detail: why, Fix: "mount cgroup2 and start godwit as root or with a delegated cgroup"}
		}
		return Check{Name: "cgroup", State: "good", Detail: "each VM has its own"}
	}
	return Check{Name: "cgroup", State: "good", Detail: "not looked at: no VM runs here"}
}

func (a *Agent) checkSwitch(ctx context.Context) Check {
	status, err := a.Switch.Status(ctx)
	if err != nil {
		return Check{Name: "switch", State: "bad", Detail: err.Error(), Fix: "see godwit's log: the warden starts it again by itself"}
	}
	var down []string
	for _, p := range status.Peers {
		if !p.Connected {
			down = append(down, fmt.Sprintf("%s (%s)", p.ID, p.Error))
		}
	}
	if len(down) > 0 {
		return Check{Name: "switch", State: "warn", Detail: "no trunk to " + strings.Join(down, ", "), Fix: "check that those hosts run and that their trunk port can be reached"}
	}
	return Check{Name: "switch", State: "good", Detail: fmt.Sprintf("%d ports, %d trunks", len(status.Ports), len(status.Peers))}
}
