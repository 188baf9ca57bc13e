package gate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// makeTiny creates and starts a VM of a tiny guest on the host.
func makeTiny(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	for _, args := range [][]string{
		{"vm", "create", name, "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M"}, {"vm", "start", name},
	} {
		if _, err := h.Godwit(step(t), args...); err != nil {
			t.Fatal(err)
		}
	}
}

// alive reports whether the VM's process lives. One that has ended, and that nobody has asked about yet, has no command line.
func alive(vm *godwitv1.VM) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.GetStatus().GetPid()))
	return err == nil && strings.Contains(string(args), vm.GetId())
}

// running fails the test unless the VM runs in that process on the host, and returns it.
func running(t *testing.T, h *lab.Host, name string, on string, pid int32) *godwitv1.VM {
	t.Helper()
	vm, err := h.VM(step(t), name)
	if err != nil {
		t.Fatal(err)
	}
	if vm.GetStatus().GetState() != inventory.Running.String() || vm.GetRun().GetOwner() != on || pid != 0 && vm.GetStatus().GetPid() != pid {
		t.Errorf("%s is %s on %s with PID %d (%s), not running on %s with PID %d", name, vm.GetStatus().GetState(), vm.GetRun().GetOwner(),
			vm.GetStatus().GetPid(), vm.GetStatus().GetDetail(), on, pid)
	}
	return vm
}

// The story: a cluster is backed up, and lives on: a VM moves, another is made, a certificate is rotated. Then its store is lost, and restored
// from the backup while all VMs run on. Each stays in its process. The one that has moved belongs to the host that it moved to and cannot be started where
// the backup has it; the one that another host has taken is ended here; the one that the backup does not know is left alone and named; and
// the next start has a generation that was never given.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	c := startCluster(t, lab.Options{Hosts: 2})
	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{Pages: 64, Fill: 8 << 10, Rate: 16}), 0o644); err != nil {
		t.Fatal(err)
	}
	first, second := c.Hosts[0], c.Hosts[1]
	makeTiny(t, first, "stays")
	makeTiny(t, first, "moves")
	makeTiny(t, first, "stolen")
	stolen := running(t, first, "stolen", first.Name, 0)
	stays, moves := running(t, first, "stays", first.Name, 0), running(t, first, "moves", first.Name, 0)

	file := filepath.Join(c.Dir, "cluster.backup")
	said, err := first.Godwit(step(t), "cluster", "backup", file, "--data", first.Data)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || !strings.Contains(string(said), "with 3 VMs") || !strings.Contains(string(said), "with the private key") {
		t.Errorf("%v (%v) %s", info, err, said)
	}
	if said, err = second.Godwit(step(t), "cluster", "backup", file+"-2", "--data", second.Data); err != nil || !strings.Contains(string(said), "with the private key") {
		t.Errorf("%s (%v)", said, err)
	}

	if _, err := first.Godwit(step(t), "vm", "migrate", "moves", "--to", second.Name); err != nil {
		t.Fatal(err)
	}
	makeTiny(t, first, "later")
	moved, later := running(t, first, "moves", second.Name, 0), running(t, first, "later", first.Name, 0)
	rotated(t, first, second)
	if _, err := first.Godwit(step(t), "cluster", "restore", file, "--data", first.Data); lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a store under a running host was restored: %v", err)
	}

	for _, h := range []*lab.Host{second, first} {
		if err := h.Down(); err != nil {
			t.Fatal(err)
		}
	}
	said, err = first.Godwit(step(t), "cluster", "restore", file, "--data", first.Data)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", said)
	if !strings.Contains(string(said), "2 hosts, 3 VMs") {
		t.Errorf("%s", said)
	}
	// As if host-1 had been cut off after the backup, and host-2 had been given this one.
	record := fmt.Sprintf(`{"generation":%d,"host":%q}`, stolen.GetRun().GetGeneration()+1, second.Name)
	lock := filepath.Join(c.Datastore, "locks", fmt.Sprintf("%s.lock.%d", stolen.GetId(), stolen.GetRun().GetGeneration()+1))
	if err := os.WriteFile(lock, []byte(record), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := first.Up(step(t)); err != nil {
		t.Fatal(err)
	}
	if alive(stolen) {
		t.Error("what another host has taken still runs here")
	}
	for _, name := range []string{"stolen", "moves"} { // host-2 is down, and nobody knows what runs there
		_, err := first.Godwit(step(t), "vm", "start", name)
		if lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), "host host-2 has taken the VM since") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := second.Up(step(t)); err != nil {
		t.Fatal(err)
	}

	running(t, second, "stays", first.Name, stays.GetStatus().GetPid())
	running(t, first, "moves", second.Name, moved.GetStatus().GetPid())
	if !alive(later) {
		t.Error("the VM that the backup does not know was ended")
	}
	events := until(t, first, func(events string) bool {
		return strings.Contains(events, "vm.unknown") && strings.Contains(events, "vm.ended") && strings.Contains(events, "vm.taken-over")
	})
	for line := range strings.Lines(events) {
		if strings.Contains(line, "vm.unknown") || strings.Contains(line, "vm.ended") || strings.Contains(line, "vm.taken-over") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if !strings.Contains(events, later.GetId()) {
		t.Errorf("no event names %s", later.GetId())
	}

	for _, vm := range []*godwitv1.VM{stays, moves} {
		name := vm.GetSpec().GetName()
		for _, verb := range [][]string{{"stop", name, "--force"}, {"start", name}} {
			if _, err := first.Godwit(step(t), append([]string{"vm"}, verb...)...); err != nil {
				t.Fatal(err)
			}
		}
		again, err := first.VM(step(t), name)
		if err != nil {
			t.Fatal(err)
		}
		if was, now := vm.GetRun().GetGeneration(), again.GetRun().GetGeneration(); now <= was+900 || again.GetRun().GetRestored() != 0 {
			t.Errorf("%s was started as generation %d after %d", name, now, was)
		}
	}
	if err := syscall.Kill(int(later.GetStatus().GetPid()), syscall.SIGKILL); err != nil { // nobody else ends it
		t.Error(err)
	}
}

// rotated rotates the certificate of a host, asked at another one, and compares what is shown before and after.
func rotated(t *testing.T, at, of *lab.Host) {
	t.Helper()
	shown := func() (expires time.Time) {
		info := &godwitv1.GetClusterResponse{}
		if err := at.Read(step(t), info, "cluster", "info"); err != nil {
			t.Fatal(err)
		}
		if info.GetName() == "" || info.GetLeader() == "" || len(info.GetMembers()) == 0 || len(info.GetAlarms()) > 0 || info.GetMembers()[0].GetQuota() == 0 {
			t.Errorf("cluster info is %v", info)
		}
		i := slices.IndexFunc(info.GetCertificates(), func(c *godwitv1.Certificate) bool { return c.GetSubject() == of.Name })
		if i < 0 || info.GetCertificates()[i].GetError() != "" || len(info.GetCertificates()) != 3 {
			t.Fatalf("certificates are %v", info.GetCertificates())
		}
		return info.GetCertificates()[i].GetExpires().AsTime()
	}
	was := shown()
	agent, err := of.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := at.Godwit(step(t), "host", "rotate-certificate", of.Name); err != nil {
		t.Fatal(err)
	}
	if now := shown(); !now.After(was) {
		t.Errorf("the certificate ended at %v and ends at %v", was, now)
	}
	if now, err := of.PID(step(t), "agent"); err != nil || now != agent {
		t.Errorf("the agent was started again: PID %d and %d (%v)", agent, now, err)
	}
}

// until reads the events until they are as wanted.
func until(t *testing.T, h *lab.Host, wanted func(events string) bool) string {
	t.Helper()
	var out []byte
	if err := lab.Until(t.Context(), stepMax, func() (err error) {
		if out, err = h.Godwit(step(t), "event", "ls"); err == nil && !wanted(string(out)) {
			err = fmt.Errorf("events are %s", out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return string(out)
}
