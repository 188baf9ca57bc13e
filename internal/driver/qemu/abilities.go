package qemu

import (
	"os"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Features that Probe looks for by name. Each is one that some QEMU, kernel or build that we support lacks.
const (
	FeatureSandbox       = "sandbox"                // -sandbox: built with seccomp
	FeatureIOUring       = "io_uring"               // aio=io_uring, in QEMU and allowed by the kernel
	FeatureReconnect     = "netdev-reconnect"       // -netdev stream,reconnect-ms (QEMU 9.2 on)
	FeatureStayOnError   = "incoming-stay-on-error" // migrate-incoming exit-on-error (9.1 on): the target can say why
	FeatureBlockActive   = "block-active"           // query-named-block-nodes tells active (10.0 on)
	FeatureSwitchoverAck = "switchover-ack"         // migration capability (8.1 on)
	FeatureMappedRAM     = "mapped-ram"             // migration capability (9.0 on)
	FeatureMultifd       = "multifd"                // migration capability
	FeaturePostcopy      = "postcopy-ram"           // migration capability
	FeaturePreempt       = "postcopy-preempt"       // migration capability
	FeatureDirtyLimit    = "dirty-limit"            // migration capability (8.1 on), usable with KVM's dirty ring only
	FeatureReturnPath    = "return-path"            // migration capability
	FeaturePause         = "pause-before-switchover"
	FeatureLateActivate  = "late-block-activate"
	FeatureValidateUUID  = "validate-uuid"
	FeatureAutoConverge  = "auto-converge"
	FeatureEvents        = "events"
	FeatureSwitchoverBW  = "avail-switchover-bandwidth" // migration parameter (8.2 on)
)

// Abilities is what one QEMU binary can do on this host, as it says itself and as was tried.
type Abilities struct {
	Path         string   `json:"path"`
	Version      string   `json:"version"` // "10.0.2 (Debian 1:10.0.2+ds-2)"
	Build        string   `json:"build"`   // identity of the binary, for caches
	Accelerator  string   `json:"accelerator"`
	Why          string   `json:"why"` // why it is tcg, when it is
	Machines     []string `json:"machines"`
	CPUModels    []string `json:"cpu_models"` // named, migration-safe, without unavailable features under this accelerator
	Capabilities []string `json:"capabilities"`
	Features     []string `json:"features"`
	NoCgroup     string   `json:"-"` // why VMs get no cgroup of their own here; "" when they do
}

// Has reports whether a feature is there.
func (a Abilities) Has(feature string) bool { return slices.Contains(a.Features, feature) }

// Machine returns the machine type that a new VM gets: the newest versioned q35, "" when there is none.
func (a Abilities) Machine() string {
	if len(a.Machines) == 0 {
		return ""
	}
	return a.Machines[0]
}

// modelsByVendor are models worth having as a default, best first, by the CPU's vendor as /proc/cpuinfo names it. They come
// without the features that microcode has taken from many hosts (TSX).
var modelsByVendor = map[string][]string{
	"GenuineIntel": {
		"SapphireRapids", "Icelake-Server-noTSX", "Cascadelake-Server-noTSX", "Skylake-Server-noTSX-IBRS",
		"Broadwell-noTSX", "Haswell-noTSX", "IvyBridge", "SandyBridge", "Westmere", "Nehalem",
	},
	"AuthenticAMD": {"EPYC-Genoa", "EPYC-Milan", "EPYC-Rome", "EPYC", "Opteron_G3"},
}

// CPUModel returns the model that a new VM gets when nobody chose one: the best usable one of the given vendor (Vendor tells this host's),
// under TCG Westmere, the newest that TCG can run in full. It is "" when no model is usable.
func (a Abilities) CPUModel(vendor string) string {
	wanted := []string{"Westmere"}
	if a.Accelerator == KVM {
		wanted = modelsByVendor[vendor]
	}
	for _, model := range append(slices.Clone(wanted), "qemu64") {
		if slices.Contains(a.CPUModels, model) {
			return model
		}
	}
	return ""
}

// Vendor returns the vendor of this host's CPU, "" when it is not known.
func Vendor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "vendor_id" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// QEMU returns the abilities as the inventory keeps them of a host, with the verdict of CheckMigration.
func (a Abilities) QEMU(migration inventory.Verdict) inventory.QEMU {
	return inventory.QEMU{
		Path: a.Path, Version: a.Version, Build: a.Build, Accelerator: a.Accelerator, Why: a.Why,
		Machines: slices.Clone(a.Machines), CPUModels: slices.Clone(a.CPUModels), Migration: migration,
	}
}
