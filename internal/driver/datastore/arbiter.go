package datastore

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// lostLocksFile says whether the kernel's NFS client takes a lost lock again behind its owner's back ("Y"): an old writer then writes on, after
// another host had the lock (Documentation/admin-guide/kernel-parameters.txt, nfs.recover_lost_locks).
const lostLocksFile = "/sys/module/nfs/parameters/recover_lost_locks"

// Arbiter says who keeps two hosts from writing to one image here, and why that is thought, in one line. It is the storage only where that is
// known: with NFS 4 a lock is a state of the server that every write carries (RFC 8881, 9.1.2), and one that was lost makes the old
// owner's writes fail. shared is what the administrator says of the datastore.
func (d *Datastore) Arbiter(shared bool) (arbiter inventory.Arbiter, why string) {
	if !shared {
		return inventory.StorageArbitrates, "declared local: no other host opens its images"
	}
	m, err := mountOf(d.Path)
	if err != nil {
		return inventory.LeaseArbitrates, "its file system is not known: " + err.Error()
	}
	lost, err := os.ReadFile(lostLocksFile)
	if err != nil {
		return arbiterOf(m, "")
	}
	return arbiterOf(m, strings.TrimSpace(string(lost)))
}

// mount is a file system as this host has mounted it.
type mount struct {
	kind    string   // "ext4", "nfs4"
	options []string // of the file system, as its driver shows them
}

// arbiterOf judges a mount; lost is the content of lostLocksFile, empty when nobody knows.
func arbiterOf(m mount, lost string) (inventory.Arbiter, string) {
	lease := func(format string, args ...any) (inventory.Arbiter, string) {
		return inventory.LeaseArbitrates, fmt.Sprintf(format, args...)
	}
	option := func(name string) string {
		for _, o := range m.options {
			if value, ok := strings.CutPrefix(o, name+"="); ok {
				return value
			}
		}
		return ""
	}
	version := option("vers")
	switch {
	case m.kind != "nfs4" && m.kind != "nfs":
		return lease("%s: nothing is known of what its locks do between hosts", m.kind)
	case !strings.HasPrefix(version, "4"):
		return lease("NFS %s: a lock does not stop an old writer; mount it with vers=4.2", version)
	case slices.Contains(m.options, "nolock"):
		return lease("NFS %s mounted with nolock: hosts do not see each other's locks; mount it without", version)
	case option("local_lock") != "" && option("local_lock") != "none":
		return lease("NFS %s mounted with local_lock=%s: hosts do not see each other's locks; mount it without", version, option("local_lock"))
	case lost != "N":
		return lease("NFS %s, but the kernel takes lost locks again: set nfs.recover_lost_locks=0", version)
	}
	return inventory.StorageArbitrates, "NFS " + version + " with locks: a write without its lock fails"
}

// mountOf finds the file system of a path in this process' mounts (proc(5), mountinfo).
func mountOf(path string) (mount, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return mount{}, err
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mount{}, err
	}
	return findMount(string(text), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

func findMount(mountinfo, device string) (mount, error) {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if ok && len(head) > 2 && len(tail) > 2 && head[2] == device {
			return mount{kind: tail[0], options: strings.Split(tail[2], ",")}, nil
		}
	}
	return mount{}, fmt.Errorf("no mount of device %s", device)
}
