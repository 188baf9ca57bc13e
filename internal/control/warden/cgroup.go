package warden

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/host"
)

// The cgroups of a host, as paths below the cgroup v2 mount. Under systemd with Delegate=yes everything below the unit's cgroup
// is Godwit's, and nothing above it (systemd's CGROUP_DELEGATION.md): the warden and the roles are in one leaf, since a cgroup
// that has processes can have no controllers for its children, and each VM is in a leaf of its own. Elsewhere the roles stay where
// they were started.
//
//	system.slice/godwit.service/roles          godwit/RUN/HOST/VM
//	system.slice/godwit.service/vms/HOST/VM
//
// RUN is the run directory, since a warden ends what it finds in the cgroup of its VMs: two hosts on one machine, as in the demo, must not
// meet there even if they have the same name.
const (
	plainVMs = "godwit"
	rolesIn  = "roles"
	vmsIn    = "vms"
)

// cgroupFacts are what the choice of cgroups rests on.
type cgroupFacts struct {
	Own       string // this process' cgroup, like "/system.slice/godwit.service"
	Delegated string // the nearest one from Own upwards that systemd has marked as delegated; "": none
}

// placement is where what belongs.
type placement struct {
	Roles string // cgroup to move the warden and the roles to; "": they stay
	VMs   string // the cgroup of VMs, each of which has HOST/VM below it
}

// place chooses. A delegated cgroup counts only if this process is right in it, or in its leaf for the roles: one further up
// belongs to somebody else, the user's session, say.
func place(f cgroupFacts, run string) placement {
	switch f.Delegated {
	case "", "/":
		return placement{VMs: PlainCgroup(run)}
	case f.Own:
		return placement{Roles: path.Join(f.Own, rolesIn)[1:], VMs: path.Join(f.Own, vmsIn)[1:]}
	case path.Dir(f.Own):
		if path.Base(f.Own) == rolesIn {
			return placement{VMs: path.Join(f.Delegated, vmsIn)[1:]}
		}
	}
	return placement{VMs: PlainCgroup(run)}
}

// PlainCgroup is the cgroup of the VMs of a host that nobody has delegated one to: the run directory as one name, written as systemd writes
// paths as names (systemd.unit(5), "string escaping"), so that no two are the same.
func PlainCgroup(run string) string {
	var name strings.Builder
	for _, c := range []byte(strings.Trim(path.Clean(run), "/")) {
		switch {
		case c == '/':
			name.WriteByte('-')
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == ':', c == '.' && name.Len() > 0:
			name.WriteByte(c)
		default:
			fmt.Fprintf(&name, `\x%02x`, c)
		}
	}
	return path.Join(plainVMs, name.String())
}

// Settle moves this process, and with it what it will start, into the cgroup where it belongs, and returns the one that the VMs of the host with
// that run directory belong below. What is not possible is said in the log, and everything stays where it is.
func Settle(ctx context.Context, run string, log *slog.Logger) (vms string) {
	mount := host.CgroupMount()
	if mount == "" {
		return PlainCgroup(run)
	}
	p := place(readCgroups(mount), run)
	if p.Roles == "" {
		return p.VMs
	}
	dir := filepath.Join(mount, p.Roles)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) // the writer itself
	}
	if err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "staying in the unit's own cgroup", slog.Any("err", err))
		return PlainCgroup(run)
	}
	return p.VMs
}

// readCgroups reads the facts of this process.
func readCgroups(mount string) cgroupFacts {
	var f cgroupFacts
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return f
	}
	for line := range strings.Lines(string(text)) {
		if own, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			f.Own = path.Clean(own)
		}
	}
	for at := f.Own; strings.HasPrefix(at, "/") && at != "/"; at = path.Dir(at) {
		if delegated(filepath.Join(mount, at)) {
			f.Delegated = at
			break
		}
	}
	return f
}

// delegated reports whether systemd has marked the cgroup as delegated: by the first attribute since version 251, by the second since 236.
func delegated(dir string) bool {
	value := make([]byte, 8)
	for _, mark := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, mark, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}
