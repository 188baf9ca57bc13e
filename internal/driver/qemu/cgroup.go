package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// cgroupMount returns where the unified hierarchy is mounted, "" when it is not. On a host with both versions it is below the version 1
// mounts, so it is looked up, not assumed (proc(5), /proc/pid/mountinfo).
func cgroupMount() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return unescapeMount(fields[4])
		}
	}
	return ""
}

// unescapeMount undoes the octal escapes of mountinfo that can occur in a path.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// makeCgroup makes the cgroup with the given path below the mount and returns its directory. A host where that is not possible is no
// error of the VM: why then says what it lacks, and QEMU runs in our own cgroup.
func makeCgroup(path string) (dir, why string) {
	if path == "" {
		return "", "no cgroup was asked for"
	}
	mount := cgroupMount()
	if mount == "" {
		return "", "no cgroup v2 hierarchy is mounted"
	}
	dir = filepath.Join(mount, path)
	if !strings.HasPrefix(dir, mount+"/") {
		return "", "cgroup " + path + " is outside the hierarchy"
	}
	// A cgroup that was once killed as a whole kills whatever is cloned into it from outside from then on (Linux 6.18: the new process brings the
	// count of kills of its parent's cgroup, not of its own). So each QEMU has a new one; one with a process in it stays, and its end is seen.
	_ = os.Remove(dir)
	var err error
	for range cgroupTries {
		// Another VM that ends removes the parents it leaves empty, perhaps just now.
		if err = os.MkdirAll(dir, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return "", "no own cgroup: " + err.Error()
	}
	return dir, ""
}

// cgroupTries bounds how often makeCgroup loses its parent to another VM's end.
const cgroupTries = 5

// cgroupTrouble returns why VMs here get no cgroup of their own, "" when they do.
func cgroupTrouble() string {
	dir, why := makeCgroup(fmt.Sprintf("godwit-probe-%d", os.Getpid()))
	if why == "" {
		if err := removeCgroup(dir); err != nil {
			why = err.Error()
		}
	}
	return why
}

// emptiedMax bounds the wait for the cgroup of processes that have ended to be empty.
const emptiedMax = time.Second

// removeCgroup removes an empty cgroup, and its parents up to the mount as long as they are empty too.
func removeCgroup(dir string) error {
	if dir == "" {
		return nil
	}
	err := os.Remove(dir)
	// The kernel takes a process out of its cgroup a little after it has told of its end, and later on a busy machine.
	for end := time.Now().Add(emptiedMax); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); err = os.Remove(dir) {
		time.Sleep(time.Millisecond)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fault.New(fault.Conflict, "cgroup: %w", err)
	}
	mount := cgroupMount()
	up := filepath.Dir(dir)
	// A parent that cannot be removed is not empty: another VM or host lives there.
	for mount != "" && strings.HasPrefix(up, mount+"/") && os.Remove(up) == nil {
		up = filepath.Dir(up)
	}
	return nil
}

// killCgroup kills everything in the cgroup at once (kernel 5.14 on; older kernels say so by the error).
func killCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
}

// cgroupPopulated reports whether a live process is in the cgroup.
func cgroupPopulated(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(text), "populated 1")
}
