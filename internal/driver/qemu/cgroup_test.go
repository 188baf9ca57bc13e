package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The story: a VM's cgroup was frozen and killed by the warden, and is there still when the VM is started again. The new process is neither killed nor
// frozen for it.
func TestAKilledCgroupIsNoTrap(t *testing.T) {
	if os.Geteuid() != 0 || cgroupMount() == "" {
		t.Skip("needs root and cgroup v2")
	}
	path := fmt.Sprintf("godwit-test/trap-%d", os.Getpid())
	start := func(args ...string) *exec.Cmd {
		t.Helper()
		dir, why := makeCgroup(path)
		if dir == "" {
			t.Skip(why)
		}
		t.Cleanup(func() {
			if err := removeCgroup(dir); err != nil {
				t.Error(err)
			}
		})
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		if err := startIn(cmd, dir); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	first := start("sleep", "1000")
	dir := filepath.Join(cgroupMount(), path)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := killCgroup(dir); err != nil {
		t.Skipf("an older kernel: %v", err)
	}
	if err := first.Wait(); err == nil {
		t.Error("the first ended by itself")
	}
	if err := start("true").Wait(); err != nil {
		t.Errorf("the next one in its cgroup: %v", err)
	}
}
