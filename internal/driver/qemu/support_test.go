package qemu_test

import (
	"bufio"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// waitMax bounds every wait for QEMU or a guest; it is generous, as the machine may be busy with other tests.
const waitMax = 30 * time.Second

// within returns a context that ends after waitMax.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	t.Cleanup(cancel)
	return ctx
}

// vmUser is the user that make setup creates, when we may use it; nil when we are not root.
func vmUser(t *testing.T) *qemu.User {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := qemu.LookupUser("godwit-vm")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// folder returns a short path (sockets allow 107 bytes) that the VM's user can enter, unlike t.TempDir's.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw-") //nolint:usetesting // t.TempDir is too long, and closed to other users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// abilities probes the installed QEMU once for each test.
func abilities(t *testing.T) qemu.Abilities {
	t.Helper()
	a, err := qemu.Probe(within(t), qemu.ProbeConfig{User: vmUser(t), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// house is a host's worth of folders: a datastore and run directories.
type house struct {
	t         *testing.T
	dir       string
	abilities qemu.Abilities
	user      *qemu.User
}

func newHouse(t *testing.T) house {
	return house{t: t, dir: folder(t), abilities: abilities(t), user: vmUser(t)}
}

// path is where a file of the datastore is.
func (h house) path(f inventory.File) (string, error) { return filepath.Join(h.dir, f.Path), nil }

// heart returns a VM that runs the heartbeat guest, with a disk, two NICs whose switch is not there, and all the rest.
func (h house) heart(name string) inventory.VMSpec {
	h.t.Helper()
	rom := tiny.Heartbeat(tiny.Options{Rate: 20, Fill: 512})
	if err := os.WriteFile(filepath.Join(h.dir, "heart.rom"), rom, 0o644); err != nil {
		h.t.Fatal(err)
	}
	disk := inventory.File{Datastore: "ds", Path: name + ".qcow2"}
	images := image.Folder{Root: h.dir, Owner: (*image.Owner)(h.user)}
	if err := images.Create(within(h.t), filepath.Join(h.dir, disk.Path), inventory.Qcow2, 16*inventory.MiB); err != nil {
		h.t.Fatal(err)
	}
	return inventory.VMSpec{
		Name: name, UUID: inventory.NewUUID(), CPUs: 1, Memory: 64 * inventory.MiB,
		Machine: h.abilities.Machine(), CPUModel: "Westmere",
		Boot:  inventory.Boot{Firmware: inventory.File{Datastore: "ds", Path: "heart.rom"}},
		Disks: []inventory.Disk{{Name: "disk0", File: disk, Format: inventory.Qcow2, Size: 16 * inventory.MiB}},
		NICs: []inventory.NIC{
			{Name: "nic0", MAC: "52:54:00:00:00:01", Network: "lan"},
			{Name: "nic1", MAC: "52:54:00:00:00:02", Network: "lan"},
		},
	}
}

// config says how to start spec in the run directory run.
func (h house) config(spec inventory.VMSpec, run string) qemu.Config {
	return qemu.Config{
		Spec: spec, User: h.user, Cgroup: "godwit-test/" + filepath.Base(h.dir) + "/" + run,
		Env: qemu.Env{
			RunDir: qemu.RunDir(filepath.Join(h.dir, "run", run)), Abilities: h.abilities, File: h.path,
			Ports: map[string]string{"nic0": filepath.Join(h.dir, "nic0.sock"), "nic1": filepath.Join(h.dir, "nic1.sock")},
		},
	}
}

// start starts a QEMU and sees to it that it is gone after the test.
func (h house) start(cfg qemu.Config) *qemu.Process {
	h.t.Helper()
	p, err := qemu.Start(within(h.t), cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { end(h.t, p) })
	return p
}

// end kills a QEMU and removes what it leaves.
func end(t *testing.T, p *qemu.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if err := p.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := p.Cleanup(); err != nil {
		t.Error(err)
	}
}

// pulse reads a heartbeat guest's serial port.
type pulse struct {
	t     *testing.T
	lines *bufio.Scanner
}

func listen(t *testing.T, p *qemu.Process) pulse {
	t.Helper()
	conn, err := net.Dial("unix", p.Dir().Serial())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(waitMax))
	return pulse{t: t, lines: bufio.NewScanner(conn)}
}

// next returns the ticks of the next whole heartbeat.
func (p pulse) next() uint32 {
	p.t.Helper()
	for p.lines.Scan() {
		if ticks, ok := tiny.ParseHeartbeat(strings.TrimSpace(p.lines.Text())); ok {
			return ticks
		}
	}
	p.t.Fatalf("the guest fell silent: %v", p.lines.Err())
	return 0
}

// try fails the test on an error.
func try(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
