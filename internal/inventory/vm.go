package inventory

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// VM is a virtual machine: what the user asked for, who runs it, and how it is.
type VM struct {
	ID     VMID
	Spec   VMSpec
	Run    VMRun
	Status VMStatus
	Place  VMPlace
}

// VMSpec is written by the user, and by nobody else.
type VMSpec struct {
	Name     string
	UUID     string
	CPUs     int
	Memory   Bytes
	Machine  string // versioned QEMU machine type, fixed at creation: "pc-q35-10.0"
	CPUModel string // named model, run with enforce: "Westmere"
	Disks    []Disk
	NICs     []NIC
	Boot     Boot
	Devices  []HostDevice // tied to a host; a VM with one cannot migrate
	Created  time.Time
	Layout   int    // version of the machine's fixed devices: LayoutFirst for VMs made before there was another
	Display  bool   // a screen that VNC shows
	Template bool   // cannot start; thin clones can be made of it
	Request  string // idempotency key of the call that made it
}

// The layouts. A VM keeps the one that it was made with: its guest must find the same devices on every host.
const (
	LayoutFirst = 0 // no ports for hot-plug or a guest agent
	LayoutPorts = 1 // the guest agent's port, and HotPortsMax root ports that a device can be plugged into
	LayoutNew   = LayoutPorts
)

// HotPortsMax is how many disks and NICs together can be plugged into a VM of LayoutPorts beyond those it was made with.
const HotPortsMax = 8

// Boot says what the VM starts from. With neither Kernel nor Firmware it boots from its first disk.
type Boot struct {
	Firmware File // image given as -bios
	Kernel   File
	Initrd   File
	Cmdline  string
	UEFI     bool // the host's UEFI firmware in place of BIOS; a kernel is then started by it
	Vars     File // UEFI's variables: the VM's own copy of the host's template
}

// File is a file on a datastore; Path is relative to the datastore's root and never leaves it.
type File struct {
	Datastore DatastoreID
	Path      string
}

// IsZero reports whether no file is meant.
func (f File) IsZero() bool { return f == File{} }

// DiskFormat is the image format; QEMU is told it and never probes it, since a guest could write a foreign header into a raw image
// (QEMU documentation, "Disk image file formats").
type DiskFormat string

// The formats.
const (
	Raw   DiskFormat = "raw"
	Qcow2 DiskFormat = "qcow2"
)

// Disk is a virtual disk with its image.
type Disk struct {
	Name     string // "disk0", unique in the VM; its number is the device's for life
	File     File
	Format   DiskFormat
	Size     Bytes
	ReadOnly bool // several VMs may share the image
	Port     int  // hot-plug port that it sits in, from 1; 0: the fixed slot of its number
}

// NIC is a virtual network card on one network.
type NIC struct {
	Name    string // "nic0", unique in the VM; its number is the device's for life
	MAC     string // canonical lower-case, colon separated
	Network NetworkID
	Port    int // hot-plug port that it sits in, from 1; 0: the fixed slot of its number
}

// Number returns the number in the disk's name, 0 for "disk0".
func (d Disk) Number() int { return number(d.Name, "disk") }

// Number returns the number in the card's name, 0 for "nic0".
func (n NIC) Number() int { return number(n.Name, "nic") }

// number reads "disk12" as 12, and -1 for a name that has none.
func number(name, kind string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(name, kind))
	if err != nil || n < 0 || kind+strconv.Itoa(n) != name {
		return -1
	}
	return n
}

// HostDevice is a device of one host that was given to the VM.
type HostDevice struct {
	Host    HostID
	Address string // PCI address
}

// VMRun says who may run the VM. It is written by the owner, the heir or the leader under the rules of
// docs/architecture.md ("The hand-over rules"); every write compares the revision it was read at.
type VMRun struct {
	Owner      HostID
	Generation Generation
	Heir       Heir
	Wanted     Power // what the user wants; the owner brings it about
	// Restored is the generation that the VM had in the backup which the store was restored from; 0: nothing of that is open any more. While it
	// stands the owner may be another host, which a lock record beyond that generation names.
	Restored Generation
	// GivenUp is the generation that the owner could not start, for want of memory or the like: nothing of it runs, nor ever will. While it is the
	// VM's the leader may name another owner, though this one lives; 0: none.
	GivenUp Generation
}

// OwnerGaveUp reports whether the owner has given the VM up: it takes a new generation to start it, here or elsewhere.
func (r VMRun) OwnerGaveUp() bool { return r.GivenUp != 0 && r.GivenUp == r.Generation }

// Heir is who takes the VM over in a running migration. While one stands nobody else may start the VM.
type Heir struct {
	Host       HostID
	Generation Generation
	Migration  MigrationID
	BootID     string // of the heir's kernel when it was named: with another one nothing of this migration runs there
}

// Booted reports whether the heir's host was booted since the heir was named: boot is of its kernel now. Nothing of the migration runs
// there then. Not known is no.
func (h Heir) Booted(boot string) bool {
	was, is := strings.TrimSpace(h.BootID), strings.TrimSpace(boot) // older agents kept the line's end
	return was != "" && is != "" && was != is
}

// IsZero reports whether there is no heir.
func (h Heir) IsZero() bool { return h == Heir{} }

// Power is whether a VM is wanted on.
type Power int

// The wanted power states.
const (
	PowerOff Power = iota
	PowerOn
)

// VMPlace is what the leader says of a VM. The leader writes it, and nobody else.
type VMPlace struct {
	Blocked string // why the VM is not started again, with what to do; empty: nothing stands against it
	Since   time.Time
	Restart Restart // the last time the leader gave the VM a new owner that starts it; zero: never

	Restarts uint64 // how often that was
}

// Restart says why a VM has the owner that it has: its last one was lost. An owner that finds a VM with the generation of a restart, wanted
// on, starts it.
type Restart struct {
	Generation Generation
	From       HostID // the owner that was lost
	Why        string
	At         time.Time
}

// Gave reports whether the owner in the run record has the VM by this restart: it has taken no generation of its own since, and no migration has moved the VM.
func (r Restart) Gave(run VMRun) bool { return r.Generation != 0 && r.Generation == run.Generation }

// VMState is what a VM does now, in the field's words.
type VMState int

// The states.
const (
	Stopped   VMState = iota
	Starting          // QEMU is being started
	Running           // vCPUs run
	Paused            // vCPUs stopped on request; memory stays
	Migrating         // running here, leaving or arriving
	Crashed           // QEMU is gone though the VM is wanted on, or the guest panicked
	Unknown           // its owner does not answer
)

var vmStateNames = [...]string{"stopped", "starting", "running", "paused", "migrating", "crashed", "unknown"}

// String returns the state's name as CLI and JSON show it.
func (s VMState) String() string {
	if s < 0 || int(s) >= len(vmStateNames) {
		return "unknown"
	}
	return vmStateNames[s]
}

// VMStatus is written by the owning agent.
type VMStatus struct {
	State     VMState
	Host      HostID // where it was seen
	PID       int    // of QEMU
	Since     time.Time
	Detail    string // why it crashed, what it waits for
	Heartbeat Heartbeat
	Usage     Usage // telemetry: filled on reading from the owner's memory, never stored
	Guest     Guest // as Usage
}

// StatusNow is what the stored status says of the VM now: nothing, once the VM was given to another owner that has not written one yet. The words
// of a migration's source stand until its target has written.
func (vm VM) StatusNow() VMStatus {
	s := vm.Status
	if s.Host == "" || s.Host == vm.Run.Owner || s.State != Starting && s.State != Running && s.State != Paused {
		return s
	}
	return VMStatus{State: Unknown, Since: s.Since, Detail: fmt.Sprintf("it was %s on host %s; its host is %s now, which has not said how it is", s.State, s.Host, vm.Run.Owner)}
}

// Guest is what a guest says of itself through qemu-guest-agent.
type Guest struct {
	Agent    bool   // the agent answers
	Version  string // of the agent
	Hostname string
	System   string // the guest's name for its operating system
	NICs     []GuestNIC
	Seen     time.Time
}

// GuestNIC is a network card as the guest sees it.
type GuestNIC struct {
	Name      string // as the guest calls it
	MAC       string
	Addresses []string // IP addresses with prefix length
}

// Heartbeat is the last sign of life that the guest gave of itself over its virtio-serial port.
type Heartbeat struct {
	Count  uint64
	Uptime time.Duration
	BootID string // made by the guest at boot: the same after a migration
	IP     string
	Seen   time.Time
}

// Usage is what a VM's QEMU takes from its host.
type Usage struct {
	CPU      time.Duration // user and system time of the process since its start
	Resident Bytes
}
