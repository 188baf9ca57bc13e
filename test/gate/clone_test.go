package gate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// studio is a host with a VM that is off and has something on its disk.
type studio struct {
	*lab.Cluster
}

func (s *studio) godwit(t *testing.T, args ...string) {
	t.Helper()
	if _, err := s.Hosts[0].Godwit(step(t), args...); err != nil {
		t.Fatal(err)
	}
}

// refused demands that the command fails with the exit code and says all of the words.
func (s *studio) refused(t *testing.T, code int, says []string, args ...string) {
	t.Helper()
	_, said, err := s.Hosts[0].Command(step(t), args...)
	if lab.ExitCode(err) != code {
		t.Errorf("godwit %s: exit code %d, not %d: %s", strings.Join(args, " "), lab.ExitCode(err), code, said)
	}
	for _, word := range says {
		if !strings.Contains(string(said), word) {
			t.Errorf("godwit %s says %q, without %q", strings.Join(args, " "), said, word)
		}
	}
}

func (s *studio) vm(t *testing.T, name string) *godwitv1.VM {
	t.Helper()
	vm, err := s.Hosts[0].VM(step(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// disk returns where the n-th disk of a VM is.
func (s *studio) disk(t *testing.T, name string, n int) string {
	t.Helper()
	return filepath.Join(s.Datastore, s.vm(t, name).GetSpec().GetDisks()[n].GetFile().GetPath())
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(step(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// write fills the first 64 KiB of an image with a byte.
func write(t *testing.T, path, pattern string) {
	t.Helper()
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P "+pattern+" 0 64k", path)
}

// holds demands that the image begins with 64 KiB of a byte.
func holds(t *testing.T, path, pattern string) {
	t.Helper()
	if out := tool(t, "qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read -P "+pattern+" 0 64k", path); strings.Contains(out, "failed") {
		t.Errorf("%s does not begin with %s: %s", path, pattern, out)
	}
}

// The story: a VM is cloned and made a template; thin clones of that take no room, go their own ways, and keep their template from being
// destroyed, started or changed, until the last of them is gone. An agent that is killed leaves no half clone.
func TestClonesAndTemplates(t *testing.T) {
	t.Parallel()
	s := &studio{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	s.godwit(t, "network", "create", "lan", "--subnet", "10.13.0.0/24")
	s.godwit(t, "vm", "create", "golden", "--memory", "64M", "--disk", "size=64M", "--disk", "size=8M", "--nic", "lan")
	write(t, s.disk(t, "golden", 0), "0x11")

	s.godwit(t, "vm", "clone", "golden", "copy")
	golden, copied := s.vm(t, "golden"), s.vm(t, "copy")
	holds(t, s.disk(t, "copy", 0), "0x11")
	if out := tool(t, "qemu-img", "info", s.disk(t, "copy", 0)); strings.Contains(out, "backing file") {
		t.Errorf("a full copy stands on another image:\n%s", out)
	}
	switch was, is := golden.GetSpec(), copied.GetSpec(); {
	case golden.GetId() == copied.GetId(), was.GetUuid() == is.GetUuid(), was.GetNics()[0].GetMac() == is.GetNics()[0].GetMac():
		t.Errorf("the clone has something of the original's identity: %v", copied)
	case len(is.GetDisks()) != 2, is.GetMemory() != was.GetMemory(), copied.GetRun().GetGeneration() != 0:
		t.Errorf("the clone is %v", copied)
	}
	s.refused(t, 4, []string{"copy already"}, "vm", "clone", "golden", "copy")

	s.godwit(t, "vm", "template", "golden")
	s.godwit(t, "vm", "clone", "golden", "thin-1")
	s.godwit(t, "vm", "clone", "golden", "thin-2")
	s.godwit(t, "vm", "clone", "golden", "full-1", "--full")
	info, err := os.Stat(s.disk(t, "thin-1", 0))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > int64(inventory.MiB) {
		t.Errorf("a thin clone takes %d bytes", info.Size())
	}
	write(t, s.disk(t, "thin-1", 0), "0x22")
	holds(t, s.disk(t, "thin-1", 0), "0x22")
	for _, name := range []string{"golden", "thin-2", "full-1"} {
		holds(t, s.disk(t, name, 0), "0x11")
	}

	both := []string{"thin-1, thin-2"}
	s.refused(t, 4, both, "vm", "destroy", "golden", "--delete-disks")
	s.refused(t, 4, both, "vm", "template", "golden", "--undo")
	for _, args := range [][]string{
		words("vm start golden"), words("vm disk add golden --size 1M"), words("vm disk grow golden disk0 --size 1G"), words("vm disk rm golden disk0"),
		words("vm nic add golden lan"), words("vm set golden --cpus 2"),
	} {
		s.refused(t, 4, []string{"it is a template", "--undo"}, args...)
	}

	t.Run("a thin clone runs and moves", func(t *testing.T) {
		s.godwit(t, "vm", "move", "thin-1", "--to", "host-2")
		s.godwit(t, "vm", "start", "thin-1")
		if vm := s.vm(t, "thin-1"); vm.GetRun().GetOwner() != "host-2" || vm.GetStatus().GetState() != inventory.Running.String() {
			t.Errorf("it is %s on %s", vm.GetStatus().GetState(), vm.GetRun().GetOwner())
		}
		s.refused(t, 4, []string{"only a stopped VM can be cloned"}, "vm", "clone", "thin-1", "again")
		s.godwit(t, "vm", "stop", "thin-1", "--force")
		s.godwit(t, "vm", "move", "thin-1", "--to", "host-1")
	})
	t.Run("an agent killed while it clones", func(t *testing.T) {
		ended := make(chan error, 1)
		ctx := step(t)
		go func() {
			_, err := s.Hosts[0].Godwit(ctx, "vm", "clone", "copy", "half")
			ended <- err
		}()
		killAgent(t, s.Hosts[0])
		<-ended
		left := leftovers(t, s.Datastore, "half-")
		if _, err := s.Hosts[0].VM(step(t), "half"); err != nil && len(left) > 0 {
			t.Errorf("there is no clone, but %v", left)
		} else if err == nil && len(left) != 2 {
			t.Errorf("the clone has %v", left)
		}
		_, _ = s.Hosts[0].Godwit(step(t), "vm", "destroy", "half", "--delete-disks") // whichever it was
	})

	for _, name := range []string{"thin-1", "thin-2"} {
		s.godwit(t, "vm", "destroy", name, "--delete-disks")
	}
	s.godwit(t, "vm", "template", "golden", "--undo")
	s.godwit(t, "vm", "set", "golden", "--cpus", "2", "--memory", "96M")
	if spec := s.vm(t, "golden").GetSpec(); spec.GetCpus() != 2 || spec.GetMemory() != int64(96*inventory.MiB) {
		t.Errorf("it has %d CPUs and %d bytes", spec.GetCpus(), spec.GetMemory())
	}
	s.godwit(t, "vm", "disk", "grow", "golden", "disk0", "--size", "80M")
	s.godwit(t, "vm", "disk", "add", "golden", "--size", "1M")
	s.godwit(t, "vm", "start", "golden")
	s.godwit(t, "vm", "stop", "golden", "--force")
	holds(t, s.disk(t, "golden", 0), "0x11")
	if left := leftovers(t, s.Datastore, "half-"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
