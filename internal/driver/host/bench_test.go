package host

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkList looks at the cgroups of a host with 100 VMs.
func BenchmarkList(b *testing.B) {
	mount := CgroupMount()
	if mount == "" || os.Geteuid() != 0 {
		b.Skip("needs root and cgroup v2")
	}
	path := fmt.Sprintf("host-bench-%d", os.Getpid())
	for i := range 100 {
		dir := filepath.Join(mount, path, fmt.Sprintf("vm-%d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Skipf("no cgroup can be made: %v", err)
		}
		defer func() { _ = os.Remove(filepath.Join(mount, path)) }() // the last one finds it empty
		defer func() { _ = os.Remove(dir) }()
	}
	c, err := OpenCgroups(path)
	if err != nil {
		b.Fatal(err)
	}
	var all []Cgroup
	b.ReportAllocs()
	for b.Loop() {
		if all, err = c.List(all[:0]); err != nil || len(all) != 100 {
			b.Fatalf("%d cgroups: %v", len(all), err)
		}
	}
}
