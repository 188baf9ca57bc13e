package gate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// The disk that is moved: data that takes a while to send, and a hole that must not be filled.
const (
	movedData = 24 << 20
	movedHole = 8 << 20
)

// mover is a cluster with a VM that is off:
//
//	host-1  the datastore "shared", and the store
//	host-2  the datastore "own", a folder of its own
type mover struct {
	*lab.Cluster

	own string // folder
	sum string // of the disk
}

func makeMover(t *testing.T) *mover {
	t.Helper()
	m := &mover{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	m.own = filepath.Join(m.Dir, "own")
	if err := os.Mkdir(m.own, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := m.AddHost(step(t), "own="+m.own+",local"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(m.Datastore, "data.raw")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	noise := rand.NewChaCha8([32]byte{7})
	block := make([]byte, 1<<20)
	for at := int64(0); at < movedData; at += int64(len(block)) {
		_, _ = noise.Read(block) // never fails
		if _, err := file.WriteAt(block, movedHole+at); err != nil {
			t.Fatal(err)
		}
	}
	m.sum = sumOf(t, path)
	linux, err := guest.Images(step(t))
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{linux.Kernel: "vmlinuz", linux.Initrd: "initrd"} {
		if err := m.Put(from, to); err != nil {
			t.Fatal(err)
		}
	}
	m.godwit(t, "network", "create", lab.Network, "--subnet", lab.Subnet, "--gateway", "host-1")
	m.godwit(t, "vm", "create", vmName, "--memory", "256M", "--kernel", "vmlinuz", "--initrd", "initrd", "--cmdline", linux.Cmdline,
		"--disk", "data.raw,format=raw", "--nic", lab.Network)
	return m
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func (m *mover) godwit(t *testing.T, args ...string) {
	t.Helper()
	if _, err := m.Hosts[0].Godwit(step(t), args...); err != nil {
		t.Fatal(err)
	}
}

func (m *mover) vm(t *testing.T) *godwitv1.VM {
	t.Helper()
	vm, err := m.Hosts[0].VM(step(t), vmName)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// place is where the VM is, and where it is not.
type place struct {
	host   *lab.Host
	store  string
	folder string
}

func (m *mover) places(t *testing.T) (here, there place) {
	t.Helper()
	first, second := place{m.Hosts[0], "shared", m.Datastore}, place{m.Hosts[1], "own", m.own}
	if m.vm(t).GetRun().GetOwner() == first.host.Name {
		return first, second
	}
	return second, first
}

// whole demands that the VM is off at exactly one place, its disk is whole there and nothing of it is elsewhere, and returns it. What an agent
// has still to sweep is given its time.
func (m *mover) whole(t *testing.T) (here, there place) {
	t.Helper()
	for _, h := range m.Hosts {
		if err := h.WaitUp(step(t)); err != nil {
			t.Fatal(err)
		}
	}
	here, there = m.places(t)
	vm := m.vm(t)
	if state := vm.GetStatus().GetState(); state != inventory.Stopped.String() {
		t.Errorf("it is %s", state)
	}
	disk := filepath.Join(here.folder, vm.GetSpec().GetDisks()[0].GetFile().GetPath())
	if sum := sumOf(t, disk); sum != m.sum {
		t.Errorf("the disk at %s has the checksum %s, not %s", disk, sum, m.sum)
	}
	var info syscall.Stat_t
	if err := syscall.Stat(disk, &info); err != nil {
		t.Fatal(err)
	}
	if info.Blocks*512 > movedData+movedHole/2 {
		t.Errorf("the hole was filled: %d bytes on the disk", info.Blocks*512)
	}
	if err := lab.Until(t.Context(), stepMax, func() error {
		if left := leftovers(t, there.folder, "data.raw"); len(left) > 0 {
			return fmt.Errorf("%s still has %v", there.folder, left)
		}
		if left := leftovers(t, here.folder, "-part-", "-claim-"); len(left) > 0 {
			return fmt.Errorf("%s still has %v", here.folder, left)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	return here, there
}

// leftovers lists the files that have one of the texts in their names, notes and unfinished files among them.
func leftovers(t *testing.T, dir string, texts ...string) []string {
	t.Helper()
	var left []string
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, text := range append(slices.Clone(texts), "-part-", "-claim-") {
			if strings.Contains(d.Name(), text) {
				left = append(left, path)
				break
			}
		}
		return nil
	}); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return left
}

// begin runs the move in the background and returns when the condition is true, which the move brings about.
func (m *mover) begin(t *testing.T, here, there place, until func() bool) (ended chan error) {
	t.Helper()
	ended = make(chan error, 1)
	ctx := step(t)
	go func() {
		_, err := here.host.Godwit(ctx, "vm", "move", vmName, "--to", there.host.Name, "--datastore", there.store)
		ended <- err
	}()
	for !until() {
		select {
		case err := <-ended:
			t.Fatalf("the move ended before the blow: %v", err)
		case <-time.After(200 * time.Microsecond):
		}
	}
	return ended
}

// growing reports whether a file is being written in the folder.
func growing(folder string) bool {
	parts, _ := filepath.Glob(filepath.Join(folder, "*-part-*")) // the pattern is right
	hidden, _ := filepath.Glob(filepath.Join(folder, ".*-part-*"))
	for _, path := range append(parts, hidden...) {
		if info, err := os.Stat(path); err == nil && info.Size() > movedHole {
			return true
		}
	}
	return false
}

// The story: a VM that is off goes from a shared datastore to a host's own and back, over the network. Agents are killed in the
// middle: the VM is whole at exactly one place each time, and the same command completes what was begun. In the end its guest finds on its disk
// what was there in the beginning.
func TestColdMigration(t *testing.T) {
	t.Parallel()
	m := makeMover(t)
	generation := m.vm(t).GetRun().GetGeneration()
	move := func(t *testing.T) {
		t.Helper()
		here, there := m.places(t)
		// From the other host too: calls are passed on.
		if _, err := there.host.Godwit(step(t), "vm", "move", vmName, "--to", there.host.Name, "--datastore", there.store); err != nil {
			t.Fatal(err)
		}
		now, _ := m.whole(t)
		if now.host != there.host {
			t.Errorf("it is at %s, not at %s", now.host.Name, there.host.Name)
		}
		if next := m.vm(t).GetRun().GetGeneration(); next <= generation {
			t.Errorf("generation %d became %d", generation, next)
		} else {
			generation = next
		}
		if locks, _ := filepath.Glob(filepath.Join(here.folder, "locks", "*")); len(locks) > 0 { // the pattern is right
			t.Errorf("lock records are left: %v", locks)
		}
	}
	for _, c := range []struct {
		name   string
		struck func(here, there place) *lab.Host
		until  func(here, there place) bool
		frozen bool // the store stands still, so that nobody knows whether the switch was done
	}{
		{"target agent killed", func(_, there place) *lab.Host { return there.host }, func(_, there place) bool { return growing(there.folder) }, false},
		{"source agent killed", func(here, _ place) *lab.Host { return here.host }, func(_, there place) bool { return growing(there.folder) }, false},
		{"target agent killed when the file is there", func(_, there place) *lab.Host { return there.host }, arrived, false},
		{"source agent killed when the file is there", func(here, _ place) *lab.Host { return here.host }, arrived, false},
		{"source agent killed while the store stands still", func(here, _ place) *lab.Host { return here.host }, arrived, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := m.places(t)
			host := c.struck(here, there)
			pid, err := host.PID(step(t), "agent")
			if err != nil {
				t.Fatal(err)
			}
			store, err := m.Hosts[0].PID(step(t), "store")
			if err != nil {
				t.Fatal(err)
			}
			ended := m.begin(t, here, there, func() bool { return c.until(here, there) })
			if c.frozen {
				if err := syscall.Kill(store, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if c.frozen {
				if err := syscall.Kill(store, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("the command said: %v", <-ended)
			if _, err := host.WaitOther(step(t), "agent", pid); err != nil {
				t.Fatal(err)
			}
			now, _ := m.places(t)
			t.Logf("it is at %s, and was at %s", now.host.Name, here.host.Name)
			if now.host == here.host {
				move(t)
				return
			}
			m.whole(t)
		})
	}
	t.Run("canceled", func(t *testing.T) { m.canceled(t) })
	t.Run("its guest", func(t *testing.T) {
		if here, _ := m.whole(t); here.host == m.Hosts[0] {
			move(t)
		}
		m.godwit(t, "vm", "start", vmName)
		ip, err := m.Hosts[0].WaitAddress(step(t), vmName)
		if err != nil {
			t.Fatal(err)
		}
		segment, err := m.Hosts[0].JoinSegment(step(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = segment.Close() }() // it has said what matters
		conn, err := segment.Control(step(t), ip)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }() // as above
		disk, err := conn.Disk(step(t), "vda")
		if err != nil {
			t.Fatal(err)
		}
		if disk.SHA256 != m.sum {
			t.Errorf("the guest finds %+v, not %s", disk, m.sum)
		}
	})
}

// arrived reports whether the disk has its name at the other place.
func arrived(_, there place) bool {
	_, err := os.Stat(filepath.Join(there.folder, "data.raw"))
	return err == nil
}

// canceled gives a move up in the middle. The target's agent stands still meanwhile, so that the copy cannot end before.
func (m *mover) canceled(t *testing.T) {
	here, there := m.places(t)
	agent, err := there.host.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	ended := m.begin(t, here, there, func() bool { return growing(there.folder) })
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	all := &godwitv1.ListTasksResponse{}
	err = here.host.Read(step(t), all, "task", "ls", "--active")
	for _, task := range all.GetTasks() {
		if task.GetSpec().GetKind() == "vm.move" {
			_, err = here.host.Godwit(step(t), "task", "cancel", task.GetId())
		}
	}
	_ = syscall.Kill(agent, syscall.SIGCONT) // its warden may have ended it for its silence
	if err != nil {
		t.Fatal(err)
	}
	said := <-ended
	t.Logf("the command said: %v", said)
	if now, _ := m.whole(t); said != nil && now.host != here.host {
		t.Errorf("it is at %s", now.host.Name)
	}
}

// killAgent kills the host's agent and waits until another answers in its place.
func killAgent(t *testing.T, h *lab.Host) {
	t.Helper()
	pid, err := h.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := h.WaitOther(step(t), "agent", pid); err != nil {
		t.Fatal(err)
	}
}
