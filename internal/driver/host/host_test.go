package host

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func TestBoottimeGoesOn(t *testing.T) {
	first := Boottime()
	if second := Boottime(); first <= 0 || second < first {
		t.Errorf("%v and then %v", first, second)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q (%v)", id, err)
	}
}

func TestAlarmRingsAtItsMoment(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, after := range []time.Duration{30 * time.Millisecond, -time.Hour} {
		at := Boottime() + after
		if err := a.Set(at); err != nil {
			t.Fatal(err)
		}
		<-a.C
		if now := Boottime(); now < at {
			t.Errorf("it rings %v early", at-now)
		}
	}
	// The last word counts.
	if err := errors.Join(a.Set(Boottime()+time.Hour), a.Set(Boottime())); err != nil {
		t.Fatal(err)
	}
	<-a.C
}

// group makes a cgroup for VMs, and gives its folder.
func group(t *testing.T) (*Cgroups, string) {
	t.Helper()
	if CgroupMount() == "" || os.Geteuid() != 0 {
		t.Skip("needs root and cgroup v2")
	}
	c, err := OpenCgroups("host-test-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(c.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return c, c.dir
}

// run starts a process in a cgroup below, which is made for it, and returns what waits for its end.
func run(t *testing.T, dir, name string) (wait func() error) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		os.WriteFile(filepath.Join(path, "cgroup.freeze"), []byte("0"), 0)
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if err := os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
				return
			}
		}
		t.Errorf("%s stays", path)
	})
	return func() error { return <-ended }
}

// until looks until the cgroup is as wanted: the kernel says so a little later than it was told.
func until(t *testing.T, c *Cgroups, want Cgroup) {
	t.Helper()
	var all []Cgroup
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var err error
		if all, err = c.List(all[:0]); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(all, want) {
			return
		}
	}
	t.Fatalf("%+v, without %+v", all, want)
}

func TestCgroupsAreSeenFrozenAndKilled(t *testing.T) {
	c, dir := group(t)
	if all, err := c.List(nil); err != nil || len(all) > 0 {
		t.Errorf("before any: %v, %v", all, err)
	}
	ended := run(t, dir, "vm-a")
	until(t, c, Cgroup{Name: "vm-a", Populated: true})
	for _, step := range []struct {
		do   func(string) error
		want Cgroup
	}{
		{c.Freeze, Cgroup{Name: "vm-a", Populated: true, Frozen: true}},
		{c.Thaw, Cgroup{Name: "vm-a", Populated: true}},
		{c.Freeze, Cgroup{Name: "vm-a", Populated: true, Frozen: true}},
		{c.Kill, Cgroup{Name: "vm-a", Frozen: true}}, // frozen is no shelter
	} {
		if err := step.do("vm-a"); err != nil {
			t.Fatal(err)
		}
		until(t, c, step.want)
	}
	if err := ended(); err == nil {
		t.Error("it ended by itself")
	}
	if err := errors.Join(c.Freeze("vm-none"), c.Thaw("vm-none"), c.Kill("vm-none")); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../host", "a/b"} {
		if err := errors.Join(c.Freeze(name), c.killEach(name)); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

// The story: the kernel is older than cgroup.kill. Everything in the cgroup and below it dies, and nothing beside it.
func TestOldKernelsKillOneByOne(t *testing.T) {
	c, dir := group(t)
	other := run(t, dir, "vm-b")
	first := run(t, dir, "vm-a")
	second := run(t, dir, "vm-a/below")
	if err := c.killEach("vm-a"); err != nil {
		t.Fatal(err)
	}
	if first() == nil || second() == nil {
		t.Error("one ended by itself")
	}
	until(t, c, Cgroup{Name: "vm-a"})
	until(t, c, Cgroup{Name: "vm-b", Populated: true})
	if err := c.Kill("vm-b"); err != nil {
		t.Fatal(err)
	}
	if other() == nil {
		t.Error("it ended by itself")
	}
}
