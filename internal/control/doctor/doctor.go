// Package doctor examines a machine: what it can and cannot do for VMs, and how to mend what it cannot.
//
// Each check is two small functions: one that reads facts and one that judges them, so that every judgement can be told as a
// story without the machine it is about. Checks change nothing but for a file that they make on a datastore and remove, and
// need no agent: godwit doctor runs them on a machine that is no host yet, and the agent runs them for its own host beside
// those that only it can make (control/agent/doctor.go).
package doctor

import (
	"context"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
)

// The states of a Check.
const (
	Good = "good"
	Warn = "warn" // something is missing that can be done without
	Bad  = "bad"  // something that Godwit needs
)

// Check is one finding about a machine.
type Check struct {
	Name   string
	State  string // Good, Warn or Bad
	Detail string
	Fix    string // what to do; "" when nothing is to be done
}

// Config says what machine is examined.
type Config struct {
	QEMU       qemu.ProbeConfig
	Data, Run  string // folders of the host, there or not
	Datastores []Folder
	// Watchdog is the device that is to reset this machine, "" for none, within WatchdogTimeout after it was fed last.
	Watchdog        string
	WatchdogTimeout time.Duration
	Armed           bool // the host's warden has it open and armed
	Running         bool // the caller is the agent, whose own limits are those of the host's
}

// Folder is a datastore as the host is told of it.
type Folder struct {
	Name   string
	Path   string
	Shared bool // other hosts are said to mount it too
}

// machineChecks are the checks that Machine makes, in the order in which a person reads them.
var machineChecks = []func(context.Context, Config) []Check{
	one(func(Config) Check { return judgeSpace(readMemory()) }),
	one(func(Config) Check { return judgeClock(readClock()) }),
	one(func(c Config) Check { return judgeData(readFolder(c.Data)) }),
	one(func(c Config) Check { return judgeRun(readFolder(c.Run)) }),
	limits,
	one(func(Config) Check { return judgeService(readService("/")) }),
	one(func(c Config) Check { return judgeWatchdog(readWatchdog("/", c)) }),
	func(ctx context.Context, _ Config) []Check { return []Check{judgeFirewall(readFirewall(ctx))} },
	folders,
}

func one(check func(Config) Check) func(context.Context, Config) []Check {
	return func(_ context.Context, c Config) []Check { return []Check{check(c)} }
}

// Machine examines the machine without its QEMU. It takes as long as its slowest datastore, folderMax at most.
func Machine(ctx context.Context, c Config) []Check {
	var all []Check
	for _, check := range machineChecks {
		all = append(all, check(ctx, c)...)
	}
	return all
}

// Probe examines the machine's QEMU for a caller that has not probed it: its abilities, KVM, and whether its live migration keeps
// memory intact, which takes some seconds unless it was found out before. user is who VMs are to run as, "" for the caller.
func Probe(ctx context.Context, c Config, user string, needed []string) []Check {
	all := []Check{User(user, c.QEMU.User)}
	abilities, err := qemu.Probe(ctx, c.QEMU)
	if err != nil {
		return append([]Check{{
			Name: "qemu", State: Bad, Detail: err.Error(), Fix: "install QEMU (Debian: qemu-system-x86 and qemu-utils), 8.2 or newer",
		}}, all...)
	}
	verdict, err := qemu.CheckMigration(ctx, c.QEMU, abilities.Accelerator)
	return append([]Check{QEMU(abilities, needed), KVM(abilities), Migration(verdict, err), UEFI(), judgeCgroup(abilities.NoCgroup)}, all...)
}

// certificateWarn is how long before its end a certificate is worth a warning.
const certificateWarn = 30 * 24 * time.Hour

// Certificate judges the host's certificate at the time now.
func Certificate(expires, now time.Time) Check {
	left := expires.Sub(now)
	c := Check{Name: "certificate", State: Good, Detail: "valid until " + expires.UTC().Format(time.DateOnly)}
	switch {
	case left <= 0:
		c.State, c.Detail = Bad, "it ended on "+expires.UTC().Format(time.DateOnly)+": other hosts refuse this one"
	case left < certificateWarn:
		c.State, c.Detail = Warn, "it ends on "+expires.UTC().Format(time.DateOnly)
	}
	if c.State != Good {
		c.Fix = "check the machine's clock; join the host anew with a token of godwit token create"
	}
	return c
}

// CPU compares the best CPU model of this host with the best that all hosts of the cluster can run; "" stands for none.
func CPU(here, everywhere string, hosts int) Check {
	c := Check{Name: "cpu", State: Good, Detail: "the best CPU model of this host is " + here}
	switch {
	case here == "":
		c.State, c.Detail, c.Fix = Bad, "QEMU offers no CPU model that a migration could rely on", "install a newer QEMU"
	case hosts > 1 && everywhere == "":
		c.State, c.Detail = Warn, "no CPU model runs on all hosts: VMs cannot migrate between all of them"
		c.Fix = "run hosts with processors of one vendor and the same accelerator; godwit host info lists what each can"
	case hosts > 1 && everywhere == here:
		c.Detail += ", and all " + count(hosts) + " hosts have it"
	case hosts > 1:
		c.Detail += "; new VMs get " + everywhere + ", which all " + count(hosts) + " hosts have"
	}
	return c
}

// Reach judges the ports of other hosts that were tried from here: those that did not answer, and how many did.
func Reach(silent []string, answered int) Check {
	if len(silent) == 0 {
		return Check{Name: "ports", State: Good, Detail: count(answered) + " ports of the cluster answer from here"}
	}
	return Check{
		Name: "ports", State: Warn, Detail: "no answer from " + join(silent),
		Fix: "check that those hosts run, and that the network and their firewalls let TCP 7443, 7444, 2379 and 2380 through",
	}
}
