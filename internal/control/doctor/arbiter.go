package doctor

import (
	"cmp"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Arbiter is who keeps two hosts from writing to one image of a datastore, and from what that was decided.
type Arbiter struct {
	Name    string // of the datastore
	Arbiter inventory.Arbiter
	Why     string
}

// Arbiters says which VMs stop while the host cannot reach the store. Either answer is good: it is how the site's storage is.
func Arbiters(all []Arbiter) Check {
	if len(all) == 0 {
		return Check{Name: "arbiter", State: Good, Detail: "this host has no datastore"}
	}
	slices.SortFunc(all, func(a, b Arbiter) int { return cmp.Compare(a.Name, b.Name) })
	var lines []string
	for _, d := range all {
		line := d.Name + ": vms stop while the store is away (" + d.Why + ")"
		if d.Arbiter == inventory.StorageArbitrates {
			line = d.Name + ": vms run on while the store is away (" + d.Why + ")"
		}
		lines = append(lines, line)
	}
	return Check{Name: "arbiter", State: Good, Detail: strings.Join(lines, "; ")}
}
