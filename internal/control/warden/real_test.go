package warden

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// swift are times of authority for a test: eight times faster than those in force.
var swift = authority.Settings{
	RenewEvery: 125 * time.Millisecond, RenewTimeout: 120 * time.Millisecond, Stop: 500 * time.Millisecond, Freeze: 625 * time.Millisecond,
	Lease: time.Second, Silence: 1100 * time.Millisecond, Planned: 5 * time.Second,
}

// ownerMain is an agent that has stopped vm-stopped, runs vm-runs and knows nothing of the others. It renews, as far as its warden is concerned,
// until it is stopped or killed, under the fence count that the file in the environment says, and writes down what it was told.
func ownerMain(path string) {
	log, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	line, err := Inherited(func() { os.Exit(1) }, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	fences, until := line.Left()
	_, _ = fmt.Fprintf(log, "start %d\nleft %d %v\n", os.Getpid(), fences, until > 0)
	text, err := os.ReadFile(path + ".fences")
	if err == nil {
		fences, err = strconv.ParseUint(string(text), 10, 64)
	}
	if err != nil {
		panic(err)
	}
	for _, err := range []error{
		line.VM(ctx, "vm-stopped", authority.LeaseArbitrates, true), line.VM(ctx, "vm-runs", authority.LeaseArbitrates, false),
		line.VM(ctx, "vm-storage", authority.StorageArbitrates, false), line.Authority(ctx, fences, host.Boottime()+swift.Lease), line.Cleared(ctx),
	} {
		if err != nil {
			_, _ = fmt.Fprintln(log, "error", err)
			return
		}
	}
	served := make(chan struct{})
	proofs := 0
	go line.Beat(ctx, func(context.Context) error {
		// As in roleMain: the first sign of life has been said.
		if proofs++; proofs == 2 {
			close(served)
		}
		return nil
	})
	for {
		if err := line.Authority(ctx, fences, host.Boottime()+swift.Lease); err != nil {
			_, _ = fmt.Fprintln(log, "error", err)
		}
		select {
		case <-served:
			_, _ = fmt.Fprintln(log, "cleared", os.Getpid())
			served = nil
		default:
		}
		time.Sleep(swift.RenewEvery)
	}
}

// farm is real cgroups with a process in each, as a host's VMs have them.
type farm struct {
	t    *testing.T
	path string // below the mount
	dir  string
	*host.Cgroups
}

func newFarm(t *testing.T, vms ...string) *farm {
	t.Helper()
	mount := host.CgroupMount()
	if mount == "" || os.Geteuid() != 0 {
		t.Skip("needs root and cgroup v2")
	}
	f := &farm{t: t, path: "warden-test-vms-" + strconv.Itoa(os.Getpid())}
	f.dir = filepath.Join(mount, f.path)
	var err error
	if f.Cgroups, err = host.OpenCgroups(f.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made: %v", err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if err := os.Remove(f.dir); err == nil || errors.Is(err, fs.ErrNotExist) {
				return
			}
		}
		t.Errorf("%s stays", f.dir)
	})
	for _, vm := range vms {
		f.start(vm)
	}
	return f
}

func (f *farm) start(vm string) {
	f.t.Helper()
	dir := filepath.Join(f.dir, vm)
	if err := os.Mkdir(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	defer folder.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd())}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = f.Kill(vm)
		_ = cmd.Wait() // it was killed
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if err := os.Remove(dir); err == nil {
				return
			}
		}
		f.t.Errorf("%s stays", dir)
	})
}

// until waits until the kernel shows the VMs like that: "runs", "frozen" or "dead" for each, by name. It returns when that was.
func (f *farm) until(want ...string) authority.Moment {
	f.t.Helper()
	var got []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		all, err := f.List(nil)
		if err != nil {
			f.t.Fatal(err)
		}
		got = got[:0]
		for _, c := range all {
			switch {
			case !c.Populated:
				got = append(got, c.Name+" dead")
			case c.Frozen:
				got = append(got, c.Name+" frozen")
			default:
				got = append(got, c.Name+" runs")
			}
		}
		if slices.Equal(got, want) {
			return host.Boottime()
		}
	}
	f.t.Fatalf("the VMs are %q, not %q", got, want)
	return 0
}

// The story, with real processes in real cgroups: an agent stands still. Its warden ends what it runs when the authority is over, although it
// has not even found the agent silent yet; the next agent has the same authority again, and what was frozen runs on. Then the host was fenced, and
// that dies, before the agent is told that nothing is left.
func TestRealVMsEndWithTheirAuthority(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := newFarm(t, "vm-hidden", "vm-runs", "vm-stopped", "vm-storage")
	path, log := newLog(t)
	fences := func(n int) {
		if err := os.WriteFile(path+".fences", []byte(strconv.Itoa(n)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fences(3)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	dir := t.TempDir()
	go func() {
		ended <- Run(ctx, Config{
			Binary: self, Roles: []Role{{Name: "agent", Args: []string{"owner", path}}}, Front: "agent", RunDir: dir, Cgroup: f.path, Authority: swift,
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	expect := func(want string) {
		t.Helper()
		if got := log.next(); got != want {
			t.Fatalf("the agent says %q, not %q", got, want)
		}
	}
	first := log.pid("start")
	expect("left 0 false")
	log.pid("cleared")
	f.until("vm-hidden runs", "vm-runs runs", "vm-stopped runs", "vm-storage runs")
	stopped := host.Boottime()
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	over := f.until("vm-hidden dead", "vm-runs dead", "vm-stopped frozen", "vm-storage runs")
	t.Logf("the VMs stood %v after their agent", over-stopped)
	if late := over - stopped - swift.Freeze; late > swift.Lease-swift.Freeze {
		t.Errorf("that was %v after their time", late)
	}
	log.pid("start") // the silent one was replaced
	expect("left 3 true")
	second := log.pid("cleared")
	f.until("vm-hidden dead", "vm-runs dead", "vm-stopped runs", "vm-storage runs")
	fences(4)
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	log.pid("start")
	expect("left 3 true")
	log.pid("cleared")
	f.until("vm-hidden dead", "vm-runs dead", "vm-stopped dead", "vm-storage runs")
}
