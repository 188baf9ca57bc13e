package agent

import (
	"context"
	"fmt"
	"strings"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Check is one finding about this host.
type Check struct {
	Name   string
	State  string // "good", "warn": something is missing that can be done without; "bad"
	Detail string
	Fix    string
}

// Doctor examines this host, running the probes that have no cached result.
func (a *Agent) Doctor(ctx context.Context) []Check {
	return []Check{a.checkQEMU(), a.checkKVM(), a.checkMemory(ctx), a.checkUEFI(), a.checkUser(), a.checkCgroup(), a.checkDatastores(), a.checkSwitch(ctx)}
}

func (a *Agent) checkQEMU() Check {
	c := Check{Name: "qemu", State: "good", Detail: a.abilities.Version + " at " + a.abilities.Path}
	if missing := a.lacks(); len(missing) > 0 {
		c.State, c.Fix = "bad", "install QEMU 7.2 or newer"
		c.Detail += " lacks " + strings.Join(missing, ", ")
	} else if !a.abilities.Has("netdev-reconnect") {
		c.State, c.Fix = "warn", "install QEMU 9.2 or newer"
		c.Detail += ": guests lose their network when the switch process is restarted"
	}
	return c
}

func (a *Agent) checkKVM() Check {
	if a.abilities.Why == "" {
		return Check{Name: "kvm", State: "good", Detail: "a guest has run 64-bit code"}
	}
	return Check{
		Name: "kvm", State: "warn", Detail: "VMs run under emulation (tcg): " + a.abilities.Why,
		Fix: "enable virtualisation in the firmware, load kvm_intel or kvm_amd, and let the VMs' user open /dev/kvm",
	}
}

// checkMemory is the correctness probe: does QEMU's migration keep memory intact?
func (a *Agent) checkMemory(ctx context.Context) Check {
	verdict, err := a.checkMigration(ctx, true)
	c := Check{Name: "migration", Detail: verdict.Detail}
	switch {
	case err != nil:
		c.State, c.Detail, c.Fix = "bad", "the probe could not be made: "+err.Error(), "see godwit's log, then run godwit doctor again"
	case verdict.State == inventory.VerdictGood:
		c.State = "good"
	default:
		c.State, c.Fix = "bad", "install a newer QEMU (Debian 12: from the backports suite): live migration is refused until then"
	}
	return c
}

// checkUEFI tells whether VMs with UEFI can run here.
func (a *Agent) checkUEFI() Check {
	f, err := qemu.FindFirmware()
	if err != nil {
		return Check{Name: "uefi", State: "warn", Detail: "no UEFI firmware: VMs with --uefi cannot run here", Fix: "install the ovmf package"}
	}
	return Check{Name: "uefi", State: "good", Detail: fmt.Sprintf("%s, %d bytes", f.Code, f.CodeSize)}
}

func (a *Agent) checkUser() Check {
	if a.User == nil {
		return Check{Name: "user", State: "warn", Detail: "VMs run as the user of the agent", Fix: "start godwit as root, and VMs run as an unprivileged user of their own"}
	}
	return Check{Name: "user", State: "good", Detail: "VMs run as " + a.User.Name}
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

func (a *Agent) checkDatastores() Check {
	if len(a.stores) == 0 {
		return Check{Name: "datastore", State: "warn", Detail: "this host has none", Fix: "godwit datastore add NAME=PATH"}
	}
	var parts []string
	for _, ds := range a.stores {
		free, _, err := ds.Space()
		if err != nil {
			return Check{Name: "datastore", State: "bad", Detail: err.Error(), Fix: "mount it again"}
		}
		parts = append(parts, fmt.Sprintf("%s: %v free", ds.Name, free))
	}
	return Check{Name: "datastore", State: "good", Detail: strings.Join(parts, ", ")}
}

func (a *Agent) checkSwitch(ctx context.Context) Check {
	status, err := a.Switch.Status(ctx)
	if err != nil {
		return Check{Name: "switch", State: "bad", Detail: err.Error(), Fix: "see godwit's log: the parent process starts it again by itself"}
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
