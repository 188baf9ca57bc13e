package inventory

import "time"

// VM is a virtual machine: what the user asked for, who runs it, and how it is.
type VM struct {
	ID     VMID
	Spec   VMSpec
	Run    VMRun
	Status VMStatus
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
}

// Boot says what the VM starts from. With neither Kernel nor Firmware it boots from its first disk.
type Boot struct {
	Firmware File // image given as -bios
	Kernel   File
	Initrd   File
	Cmdline  string
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
	Name   string // "disk0", unique in the VM
	File   File
	Format DiskFormat
	Size   Bytes
}

// NIC is a virtual network card on one network.
type NIC struct {
	Name    string // "nic0", unique in the VM
	MAC     string // canonical lower-case, colon separated
	Network NetworkID
}

// HostDevice is a device of one host that was given to the VM.
type HostDevice struct {
	Host    HostID
	Address string // PCI address
}

// VMRun says who may run the VM. It is written by the owner, the heir or the leader under the rules of
// docs/architecture.md ("Safety of the hand-over"); every write compares the revision it was read at.
type VMRun struct {
	Owner      HostID
	Generation Generation
	Heir       Heir
	Wanted     Power // what the user wants; the owner brings it about
}

// Heir is who takes the VM over in a running migration. While one stands nobody else may start the VM.
type Heir struct {
	Host       HostID
	Generation Generation
	Migration  MigrationID
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
