package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestVMStartsRunsAndLeavesNothingBehind(t *testing.T) {
	h := newHouse(t)
	began := time.Now()
	p := h.start(h.config(h.heart("web-1"), "a"))
	ctx := within(t)

	status, err := p.QMP().Status(ctx)
	try(t, err)
	if status.Running {
		t.Error("the vCPUs run before anybody said so")
	}
	guest := listen(t, p)
	try(t, p.QMP().Cont(ctx))
	first := guest.next()
	t.Logf("first heartbeat %v after the start, with all devices", time.Since(began).Round(time.Millisecond))
	if next := guest.next(); next <= first {
		t.Errorf("the guest counted %d, then %d", first, next)
	}

	if h.user != nil {
		if uid := procStatus(t, p.PID(), "Uid:"); !strings.HasPrefix(uid, strconv.Itoa(int(h.user.UID))) {
			t.Errorf("qemu runs as uid %s", uid)
		}
		if groups := strings.Fields(procStatus(t, p.PID(), "Groups:")); len(groups) > 0 && groups[0] == "0" {
			t.Errorf("qemu is in root's group")
		}
	}
	if seccomp := procStatus(t, p.PID(), "Seccomp:"); seccomp != "2" {
		t.Errorf("seccomp mode %s, want 2: a filter", seccomp)
	}
	if sid, err := getsid(p.PID()); err != nil || sid != p.PID() {
		t.Errorf("session %d, %v: a signal to our group would reach it", sid, err)
	}
	cgroup, why := p.Cgroup()
	if os.Geteuid() == 0 {
		members, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
		if err != nil || strings.TrimSpace(string(members)) != strconv.Itoa(p.PID()) {
			t.Errorf("cgroup %q (%s) has %q, %v", cgroup, why, members, err)
		}
	} else if cgroup == "" && why == "" {
		t.Error("no cgroup and no reason why")
	}
	usage, err := p.Usage()
	try(t, err)
	if usage.CPU <= 0 || usage.Resident < inventory.MiB {
		t.Errorf("usage %+v", usage)
	}

	try(t, p.Quit(ctx))
	if exit := p.Exit(); !exit.Known || exit.Code != 0 || exit.Signal != 0 {
		t.Errorf("%v", exit)
	}
	if _, err := p.Usage(); !fault.Is(err, fault.NotFound) {
		t.Errorf("usage of a QEMU that has ended: %v", err)
	}
	try(t, p.Cleanup())
	for _, path := range []string{string(p.Dir()), cgroup} {
		if _, err := os.Stat(path); path != "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left", path)
		}
	}
}

// procStatus returns a line of /proc/PID/status.
func procStatus(t *testing.T, pid int, key string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	try(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func getsid(pid int) (int, error) {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

func TestKillEndsAQEMUThatDoesNotListen(t *testing.T) {
	h := newHouse(t)
	p := h.start(h.config(h.heart("web-1"), "a"))
	try(t, syscall.Kill(p.PID(), syscall.SIGSTOP))
	if err := p.Cleanup(); !fault.Is(err, fault.Conflict) {
		t.Errorf("clean-up under a running QEMU: %v", err)
	}
	try(t, p.Kill(within(t)))
	if exit := p.Exit(); exit.Signal != syscall.SIGKILL {
		t.Errorf("%v", exit)
	}
	try(t, p.Kill(within(t))) // again: it is dead already
}

func TestStartSaysWhatIsWrongAndLeavesNothing(t *testing.T) {
	h := newHouse(t)
	running := h.heart("first")
	h.start(h.config(running, "first"))

	for name, c := range map[string]struct {
		spoil func(*qemu.Config)
		kind  fault.Kind
		says  []string
	}{
		"the image of another VM": {
			func(cfg *qemu.Config) { cfg.Spec.Disks = running.Disks },
			fault.Conflict,
			[]string{`"write" lock`, "another process uses the image"},
		},
		"an image that is none": {
			func(cfg *qemu.Config) {
				cfg.Spec.Disks[0].File.Path = "text.qcow2"
				try(t, os.WriteFile(filepath.Join(h.dir, "text.qcow2"), []byte(strings.Repeat("no image\n", 1000)), 0o644))
			},
			fault.Conflict,
			[]string{"not in qcow2 format", "qemu-img info"},
		},
		"no image": {
			func(cfg *qemu.Config) { cfg.Spec.Disks[0].File.Path = "nowhere.qcow2" },
			fault.NotFound,
			[]string{"disk disk0", "nowhere.qcow2"},
		},
		"a CPU that this host lacks": {
			func(cfg *qemu.Config) { cfg.Spec.CPUModel = "SapphireRapids" },
			fault.Conflict,
			[]string{"godwit host info"},
		},
		"a CPU that nobody knows": {
			func(cfg *qemu.Config) { cfg.Spec.CPUModel = "Z80" },
			fault.Conflict,
			[]string{"godwit host info"},
		},
		"a machine of the future": {
			func(cfg *qemu.Config) { cfg.Spec.Machine = "pc-q35-99.0" },
			fault.Conflict,
			[]string{"too old"},
		},
		"no QEMU": {
			func(cfg *qemu.Config) { cfg.Env.Abilities.Path = "/nowhere/qemu" },
			fault.NotFound,
			[]string{"/nowhere/qemu", "make setup"},
		},
		"a second start": {
			func(cfg *qemu.Config) { cfg.Env.RunDir = qemu.RunDir(filepath.Join(h.dir, "run", "first")) },
			fault.Exists,
			[]string{"runs already, as process"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := h.config(h.heart(strings.ReplaceAll(strings.ToLower(name), " ", "-")), "second")
			c.spoil(&cfg)
			p, err := qemu.Start(within(t), cfg)
			if err == nil {
				end(t, p)
				t.Fatal("it started")
			}
			t.Log(err)
			if !fault.Is(err, c.kind) {
				t.Errorf("kind %v, want %v", fault.KindOf(err), c.kind)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("it does not say %q", part)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Error("it takes more than one line")
			}
			second := h.config(inventory.VMSpec{}, "second")
			if _, err := os.Stat(string(second.Env.RunDir)); !errors.Is(err, fs.ErrNotExist) {
				t.Error("the run directory is left")
			}
			if _, err := os.Stat("/sys/fs/cgroup/unified/" + second.Cgroup); !errors.Is(err, fs.ErrNotExist) {
				t.Error("the cgroup is left")
			}
		})
	}
}

func TestAStartThatIsCalledOffLeavesNothing(t *testing.T) {
	h := newHouse(t)
	cfg := h.config(h.heart("web-1"), "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := qemu.Start(ctx, cfg); err == nil {
		end(t, p)
		t.Error("it started")
	}
	if _, err := os.Stat(string(cfg.Env.RunDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the run directory is left")
	}
	h.start(cfg) // and a second attempt finds nothing in its way
}

// A VM of an older host's machine type runs on an older QEMU, by the same code.
func TestOldQEMURunsTheSameVM(t *testing.T) {
	h := newHouse(t)
	h.user = nil // the cache of the tests is in a home directory, which is closed to others
	var err error
	h.abilities, err = qemu.Probe(within(t), qemu.ProbeConfig{Binary: oldQEMU(t)})
	try(t, err)
	p := h.start(h.config(h.heart("web-1"), "a"))
	guest := listen(t, p)
	try(t, p.QMP().Cont(within(t)))
	guest.next()
}

func TestAFloodInTheLogIsCut(t *testing.T) {
	h := newHouse(t)
	p := h.start(h.config(h.heart("web-1"), "a"))
	try(t, os.WriteFile(p.Dir().Log(), make([]byte, qemu.LogBytesMax+1), 0o600))
	_, err := p.Usage()
	try(t, err)
	if info, err := os.Stat(p.Dir().Log()); err != nil || info.Size() != 0 {
		t.Errorf("the log has %d bytes, %v", info.Size(), err)
	}
}
