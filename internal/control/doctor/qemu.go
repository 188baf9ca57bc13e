package doctor

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// QEMU judges a QEMU by its abilities; needed are the migration capabilities that Godwit cannot do without.
func QEMU(a qemu.Abilities, needed []string) Check {
	c := Check{Name: "qemu", State: Good, Detail: a.Version + " at " + a.Path}
	var missing []string
	for _, name := range needed {
		if !slices.Contains(a.Capabilities, name) {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0:
		c.State, c.Fix = Bad, "install QEMU 7.2 or newer"
		c.Detail += " lacks " + join(missing)
	case !a.Has(qemu.FeatureSandbox):
		c.State, c.Fix = Warn, "install a QEMU that was built with seccomp, as Debian's is"
		c.Detail += ": VMs run without its sandbox"
	case !a.Has(qemu.FeatureReconnect):
		c.State, c.Fix = Warn, "install QEMU 9.2 or newer"
		c.Detail += ": guests lose their network when the switch process is restarted"
	}
	return c
}

// KVM judges the accelerator that was found by running a guest.
func KVM(a qemu.Abilities) Check {
	return judgeKVM(a.Why, readVirtualisation("/"))
}

// virtualisation is what the kernel says of the processor.
type virtualisation struct {
	extension  string // "vmx", "svm", "" for none
	hypervisor bool   // this machine is a VM itself
	nested     bool   // guests may run VMs of their own
}

func readVirtualisation(root string) (v virtualisation) {
	text, err := os.ReadFile(root + "proc/cpuinfo")
	if err != nil {
		return v
	}
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(key) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(value) {
			switch flag {
			case "vmx", "svm":
				v.extension = flag
			case "hypervisor":
				v.hypervisor = true
			}
		}
		break
	}
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if text, err := os.ReadFile(root + "sys/module/" + module + "/parameters/nested"); err == nil {
			v.nested = v.nested || strings.ContainsAny(string(text), "1Y")
		}
	}
	return v
}

// judgeKVM judges why KVM is not used, "" when a guest has run 64-bit code under it.
func judgeKVM(why string, v virtualisation) Check {
	c := Check{Name: "kvm", State: Good, Detail: "a guest has run 64-bit code"}
	if why == "" {
		if v.nested {
			c.Detail += "; nested virtualisation is on"
		}
		return c
	}
	c.State, c.Detail = Warn, "VMs run under emulation (tcg), many times slower: "+why
	switch {
	case strings.Contains(why, "may not open"): // it is there
		c.Fix = "usermod --append --groups kvm godwit-vm, and see that this group may open /dev/kvm"
	case v.extension != "":
		c.Fix = "load kvm_intel or kvm_amd, and let the VMs' user open /dev/kvm"
	case v.hypervisor:
		c.Fix = "this machine is a VM itself: switch nested virtualisation on at its host"
	default:
		c.Fix = "enable virtualisation (VT-x, AMD-V) in the firmware, then load kvm_intel or kvm_amd"
	}
	return c
}

// Migration judges the correctness probe: does QEMU's live migration keep memory intact? err says that it could not be made.
func Migration(verdict inventory.Verdict, err error) Check {
	c := Check{Name: "migration", State: Good, Detail: verdict.Detail}
	switch {
	case err != nil:
		c.State, c.Detail, c.Fix = Bad, "the probe could not be made: "+err.Error(), "see godwit's log, then run godwit doctor again"
	case verdict.State != inventory.VerdictGood:
		c.State, c.Fix = Bad, "install a newer QEMU (Debian 12: from the backports suite): live migration is refused until then"
	}
	return c
}

// UEFI tells whether VMs with UEFI can run here.
func UEFI() Check {
	f, err := qemu.FindFirmware()
	if err != nil {
		return Check{Name: "uefi", State: Warn, Detail: "no UEFI firmware: VMs with --uefi cannot run here", Fix: "install the ovmf package"}
	}
	return Check{Name: "uefi", State: Good, Detail: fmt.Sprintf("%s, %d bytes", f.Code, f.CodeSize)}
}

// User judges who VMs run as: the name that was asked for, and the user that was found by it; "" and nil stand for none.
func User(name string, found *qemu.User) Check {
	switch {
	case found != nil:
		return Check{Name: "user", State: Good, Detail: "VMs run as " + found.Name}
	case name != "":
		return Check{
			Name: "user", State: Bad, Detail: "there is no unprivileged user " + name,
			Fix: "useradd --system --no-create-home --shell /usr/sbin/nologin " + name,
		}
	}
	return Check{
		Name: "user", State: Warn, Detail: "VMs run as the user of the agent",
		Fix: "start godwit as root, and VMs run as an unprivileged user of their own",
	}
}

// judgeCgroup judges why VMs get no cgroup of their own, "" when they do.
func judgeCgroup(why string) Check {
	if why == "" {
		return Check{Name: "cgroup", State: Good, Detail: "VMs get one each"}
	}
	return Check{Name: "cgroup", State: Warn, Detail: why, Fix: "mount cgroup2 and start godwit as root or with a delegated cgroup"}
}

func join(words []string) string { return strings.Join(words, ", ") }

func count(n int) string { return strconv.Itoa(n) }
