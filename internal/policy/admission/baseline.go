package admission

import (
	"slices"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// models ranks QEMU's named CPU models, best first, Intel's and AMD's apart as a cluster rarely mixes them. Only models
// that a live migration can rely on are in it: no "host", no "max". Names are those of query-cpu-definitions in QEMU 10.0.
var models = []string{
	"SapphireRapids", "Icelake-Server", "Cascadelake-Server", "Skylake-Server", "Broadwell", "Haswell", "IvyBridge", "SandyBridge",
	"EPYC-Genoa", "EPYC-Milan", "EPYC-Rome", "EPYC", "Opteron_G3", "Westmere", "Nehalem", "Penryn", "Conroe", "qemu64",
}

// Baseline returns the best CPU model that every one of the hosts can run in full, "" when there is none. A VM created with
// it can migrate anywhere in the cluster, which is what vSphere calls EVC.
func Baseline(hosts []inventory.Host) string {
	if len(hosts) == 0 {
		return ""
	}
	for _, model := range models {
		lacks := func(h inventory.Host) bool { return !slices.Contains(h.Spec.QEMU.CPUModels, model) }
		if !slices.ContainsFunc(hosts, lacks) {
			return model
		}
	}
	return ""
}
