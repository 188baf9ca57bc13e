package ha

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// Candidate is a host that may take a VM over.
type Candidate struct {
	Host    inventory.HostID
	Free    inventory.Bytes // memory that no VM has, those that are on their way there taken off
	VMs     int
	Against []string // every reason why it cannot take this VM
}

// Choose returns the host that takes a VM of a dead host over: of those that nothing stands against the one with the most free memory, then
// the one with the fewest VMs, then the first by name. When there is none, it returns every reason.
func Choose(all []Candidate) (host inventory.HostID, reasons []string) {
	var best *Candidate
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Candidate) int { return cmp.Compare(a.Host, b.Host) })
	for i, c := range all {
		switch {
		case len(c.Against) > 0:
			reasons = append(reasons, c.Against...)
		case best == nil || c.Free > best.Free || c.Free == best.Free && c.VMs < best.VMs:
			best = &all[i]
		}
	}
	if best != nil {
		return best.Host, nil
	}
	return "", reasons
}

// NoHost is what is said of a VM that no host can take.
func NoHost(reasons []string) string {
	if len(reasons) == 0 {
		return "no host is up that could run it: start Godwit on one"
	}
	return fmt.Sprintf("no host can run it: %s", strings.Join(reasons, "; "))
}
