package inventory

import (
	"crypto/rand"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Bounds of what a VM may be. They are what this version has been tried with, not what QEMU could do.
const (
	CPUsMax   = 64
	MemoryMin = 16 * MiB
	MemoryMax = 1 * TiB
	DisksMax  = 8
	NICsMax   = 8
	NameMax   = 63
	DiskMax   = 64 * TiB
)

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckName returns fault.Invalid unless the name can be a host name label (RFC 1123): it ends up in DNS, file names and socket paths.
func CheckName(what, name string) error {
	if len(name) > NameMax || !nameRE.MatchString(name) {
		return fault.New(fault.Invalid, "%s name %q is not usable: take 1 to %d lower-case letters, digits and dashes, like web-1", what, name, NameMax)
	}
	return nil
}

// Problems returns everything that is wrong with the spec by itself, each as one line; whether files and networks
// exist is not its business.
func (s VMSpec) Problems() []string {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if err := CheckName("vm", s.Name); err != nil {
		add("%v", err)
	}
	if s.CPUs < 1 || s.CPUs > CPUsMax {
		add("%d CPUs are not possible: take 1 to %d", s.CPUs, CPUsMax)
	}
	switch {
	case s.Memory < MemoryMin || s.Memory > MemoryMax:
		add("memory of %v is not possible: take %v to %v", s.Memory, MemoryMin, MemoryMax)
	case s.Memory%MiB != 0:
		add("memory of %d bytes is not a whole number of MiB", s.Memory)
	}
	disks := len(s.Disks)
	if slices.ContainsFunc(s.Disks, func(d Disk) bool { return d.Name == SeedDisk }) {
		disks--
	}
	if disks > DisksMax {
		add("%d disks are too many: at most %d", disks, DisksMax)
	}
	if len(s.NICs) > NICsMax {
		add("%d NICs are too many: at most %d", len(s.NICs), NICsMax)
	}
	seen := map[string]bool{}
	for _, d := range s.Disks {
		if err := d.File.check(); err != nil {
			add("disk %s: %v", d.Name, err)
		}
		if d.Format != Raw && d.Format != Qcow2 {
			add("disk %s: format %q is unknown: take raw or qcow2", d.Name, d.Format)
		}
		if seen[d.Name] || seen[d.File.Path] {
			add("disk %s is named twice", d.Name)
		}
		seen[d.Name], seen[d.File.Path] = true, true
	}
	for _, n := range s.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() != n.MAC {
			add("nic %s: %q is no unicast MAC address: write it like 52:54:00:12:34:56, or leave it out", n.Name, n.MAC)
		}
		if seen[n.Name] || seen[n.MAC] {
			add("nic %s is named twice", n.Name)
		}
		seen[n.Name], seen[n.MAC] = true, true
	}
	bad = append(bad, s.portProblems()...)
	if !s.Boot.Kernel.IsZero() && !s.Boot.Firmware.IsZero() {
		add("both a kernel and a firmware are given: choose one")
	}
	if s.Boot.UEFI && !s.Boot.Firmware.IsZero() {
		add("both UEFI and a firmware image are asked for: choose one")
	}
	if s.Boot.Kernel.IsZero() && (s.Boot.Cmdline != "" || !s.Boot.Initrd.IsZero()) {
		add("an initrd or a kernel command line needs a kernel")
	}
	for _, b := range []struct {
		what string
		file File
	}{{"firmware", s.Boot.Firmware}, {"kernel", s.Boot.Kernel}, {"initrd", s.Boot.Initrd}, {"UEFI variables", s.Boot.Vars}} {
		if b.file.IsZero() {
			continue
		}
		if err := b.file.check(); err != nil {
			add("%s: %v", b.what, err)
		}
	}
	return bad
}

// portProblems wants each hot-plug port to be there and to hold one device.
func (s VMSpec) portProblems() []string {
	var bad []string
	taken := map[int]string{}
	port := func(device string, n int) {
		switch other := taken[n]; {
		case n == 0:
		case n < 0 || n > HotPortsMax || s.Layout < LayoutPorts:
			bad = append(bad, fmt.Sprintf("%s: the VM has no hot-plug port %d", device, n))
		case other != "":
			bad = append(bad, fmt.Sprintf("%s and %s are in the same hot-plug port %d", other, device, n))
		default:
			taken[n] = device
		}
	}
	for _, d := range s.Disks {
		port(d.Name, d.Port)
	}
	for _, n := range s.NICs {
		port(n.Name, n.Port)
	}
	return bad
}

// check refuses a path that could leave its datastore or that QEMU's option parser would read as something else.
func (f File) check() error {
	clean := path.Clean(f.Path)
	if f.Path == "" || clean != f.Path || path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
		return fault.New(fault.Invalid, "path %q is not a path inside its datastore: write it relative to its directory, without ..", f.Path)
	}
	if strings.ContainsAny(f.Path, ",\n\r\x00") {
		return fault.New(fault.Invalid, "path %q has a comma or a line break, which image paths cannot have", f.Path)
	}
	return nil
}

// NewMAC returns a random locally administered unicast address in the prefix 52:54:00 that QEMU and KVM guests use.
func NewMAC() string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24 release notes)
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}

// NewUUID returns a random version 4 UUID (RFC 9562).
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24 release notes)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
