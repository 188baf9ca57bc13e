package warden

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/host"
)

// The story: systemd starts godwit in a cgroup that it has delegated, once and then again. Both times it settles in the leaf, and VMs
// belong beside it; in a cgroup that nobody delegated it stays.
func TestSettlesInADelegatedCgroup(t *testing.T) {
	mount := host.CgroupMount()
	if mount == "" || os.Geteuid() != 0 {
		t.Skip("needs root and cgroup v2")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := "warden-test-" + strconv.Itoa(os.Getpid()) + ".service"
	dir := filepath.Join(mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() {
		for _, d := range []string{filepath.Join(dir, rolesIn), dir} {
			if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	settle := func() string {
		t.Helper()
		group, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer group.Close()
		cmd := exec.CommandContext(t.Context(), self, "settle")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got, want := settle(), `godwit/run-a\x2db /`+name; got != want {
		t.Errorf("without a delegation: %q, not %q", got, want)
	}
	if err := unix.Setxattr(dir, "trusted.delegate", []byte("1"), 0); err != nil {
		t.Skipf("this kernel's cgroups take no marks: %v", err)
	}
	for range 2 {
		if got, want := settle(), name+"/vms /"+name+"/roles"; got != want {
			t.Errorf("with a delegation: %q, not %q", got, want)
		}
	}
}
