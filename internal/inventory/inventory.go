// Package inventory holds Godwit's nouns: hosts, virtual machines, disks, NICs, datastores, networks and migrations,
// with their ids, units and validation.
//
// The types are plain values without behaviour beyond validation and formatting. Each stored part of an object names
// its only writer, because etcd holds one key per object and writer (docs/architecture.md, "State"): a VM's spec is the
// user's, its run record belongs to whoever the hand-over rules name, its status to the owning agent. The package
// imports nothing but the standard library and internal/fault, so that policy can think in it.
package inventory

import (
	"crypto/rand"
	"encoding/base32"
	"slices"
	"strings"
	"time"
)

// Ids are types of their own so that they cannot be swapped in an argument list.
type (
	// HostID names a host in its cluster; it is the name given at init or join and part of its certificate.
	HostID string
	// VMID names a VM for life, also when it is renamed.
	VMID string
	// DatastoreID is the identity in the marker file of a datastore, not its name or path.
	DatastoreID string
	// NetworkID names a layer-2 segment.
	NetworkID string
	// MigrationID names one attempt to migrate one VM; it carries at most one switchover.
	MigrationID string
	// TaskID names one long or mutating operation.
	TaskID string
	// EventID names one event; ids sort by time.
	EventID string
)

// Generation counts the owners of a VM. It only grows; a writer with an older one is refused.
type Generation uint64

// NewVMID returns a fresh random VM id.
func NewVMID() VMID { return VMID("vm-" + randomName()) }

// NewMigrationID returns a fresh random migration id.
func NewMigrationID() MigrationID { return MigrationID("mig-" + randomName()) }

// NewTaskID returns a fresh random task id.
func NewTaskID() TaskID { return TaskID("task-" + randomName()) }

// NewDatastoreID returns a fresh random datastore identity.
func NewDatastoreID() DatastoreID { return DatastoreID("ds-" + randomName()) }

// randomName returns 10 lower-case letters and digits, 50 bits: short enough for unix socket paths (108 bytes), long
// enough that a cluster of 100,000 objects has a collision with a probability below 1 in 200,000.
func randomName() string {
	var b [7]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24 release notes)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:10]
}

// Host is a machine that runs VMs. Spec and Status are written by the host's own agent.
type Host struct {
	ID       HostID
	Spec     HostSpec
	Status   HostStatus
	Standing HostStanding
}

// HostStanding is what the leader says of a host. The leader writes it, and nobody else; one that was never written is up.
type HostStanding struct {
	State string // up, silent, blocked or fenced, as policy/authority has them
	Why   string // one line, with what to do
	Since time.Time
}

// Fencing is how others can know that a silent host's VMs are dead.
type Fencing string

// The ways of fencing. A host says in each renewal which one it has.
const (
	FencedByNobody   Fencing = ""         // nothing: nobody can know
	FencedByWatchdog Fencing = "watchdog" // a watchdog that is fed only with proof that no VM runs without authority
)

// Renewal is a host's last renewal of its authority, as the store has it.
type Renewal struct {
	Host     HostID
	Revision int64 // of the key: it changes with every renewal, and is what a fence compares
	Sequence uint64
	Lease    time.Duration // how long the authority lasts, by the host's clock, from the send of the renewal
	Fencing  Fencing
	Epoch    uint64 // of the host, now: a new one is a sign of life too
	BootID   string // of the kernel under the agent's last start
	Fenced   bool   // the host's epoch was ended by a fence, and no agent has begun another since
}

// HostSpec is what a host says of itself when its agent starts.
type HostSpec struct {
	Address    string // host:port of the agent, mTLS
	Trunk      string // host:port of the switch's trunk listener, mTLS
	Version    string // Godwit's version there
	CPUs       int
	Memory     Bytes
	Epoch      uint64 // grows with every start of the agent; older epochs are refused
	QEMU       QEMU
	Datastores []DatastoreMount
	Networks   []NetworkID // bridge networks that this host has a bridge or uplink for
	NetworkAll bool        // user-space switch: every network of that driver can be had
	Missing    []NetworkMissing
	UEFI       UEFI // zero: the host has no UEFI firmware
	Witness    bool // it may carry a member of the store, and nothing else
	// URLs of the member of the store that the host would carry, as clients and as other members reach it; empty: it cannot carry one.
	StoreClient, StorePeer string
}

// UEFI is the UEFI firmware that a host has for its VMs. Its two images are flash chips of the VM, so a running VM can move only to
// a host whose images are as large; its content moves along.
type UEFI struct {
	Code     string // path on the host
	CodeSize Bytes
	VarsSize Bytes // of the template of a VM's own variables
}

// NetworkMissing is a bridge network that a host does not have.
type NetworkMissing struct {
	Network NetworkID
	Why     string // one line with what to do
}

// LacksNetwork returns why the host does not have the network, "" when it does as far as it knows.
func (s HostSpec) LacksNetwork(n NetworkID) string {
	for _, m := range s.Missing {
		if m.Network == n {
			return m.Why
		}
	}
	if s.NetworkAll || slices.Contains(s.Networks, n) {
		return ""
	}
	return "add it there"
}

// QEMU is what a host's emulator can do, as probed there by name, never guessed from a version.
type QEMU struct {
	Path        string
	Version     string   // as query-version says, with the package's build
	Build       string   // identity of the binary for caches of probe results
	Accelerator string   // "kvm" only with proof that it runs 64-bit code, else "tcg"
	Why         string   // why it is tcg, when it is
	Machines    []string // versioned machine types
	CPUModels   []string // models this accelerator can run in full (no unavailable features)
	Migration   Verdict  // the correctness probe's
}

// Verdict is the outcome of a probe that may not have run yet.
type Verdict struct {
	State  VerdictState
	Detail string // one line: what was measured or what went wrong
}

// VerdictState says whether a probed thing can be relied on.
type VerdictState int

// The verdicts.
const (
	VerdictUnknown VerdictState = iota // not probed yet
	VerdictGood
	VerdictBad
)

// HostStatus changes while the host runs.
type HostStatus struct {
	Started    time.Time
	MemoryFree Bytes
	VMs        int // VMs that have a QEMU here
}

// DatastoreMount is a datastore as one host sees it.
type DatastoreMount struct {
	ID     DatastoreID // read from the marker file there
	Name   string
	Path   string
	Shared bool // false: the administrator declared it local to this host

	Arbiter Arbiter
	Why     string // one line: what the arbiter was decided from
}

// Arbiter says who keeps two hosts from writing to one disk.
type Arbiter string

// The arbiters. What nothing is known of is the lease's.
const (
	LeaseArbitrates   Arbiter = "lease"   // only the host's authority: the VM stops when that ends
	StorageArbitrates Arbiter = "storage" // the storage makes a second opener or an old writer fail: the VM may run on
)

// Network is a layer-2 segment with a name.
type Network struct {
	ID    NetworkID
	Spec  NetworkSpec
	Hosts []NetworkHost // filled in on reading, never stored
}

// NetworkHost says whether a host has a network.
type NetworkHost struct {
	Host HostID
	Why  string // it does not; empty: it has it
}

// NetworkSpec is written by the user.
type NetworkSpec struct {
	Subnet   string // CIDR, of which the gateway takes the first address
	Gateway  HostID // runs DHCP, DNS, NAT and the port forwards; empty: none
	Forwards []PortForward
	Driver   NetworkDriver
	VLAN     int // 802.1Q tag on the uplink, bridge driver only; 0: untagged
	MTU      int // 0: the link's own
}

// NetworkDriver says what carries a network's frames.
type NetworkDriver string

// The drivers. A network without one has the user-space switch.
const (
	UserNetwork   NetworkDriver = "user"   // Godwit's switch and its trunks: every host has it
	BridgeNetwork NetworkDriver = "bridge" // a Linux bridge on the physical network: the hosts that say so have it
)

// IsBridge reports whether the network is a Linux bridge's.
func (s NetworkSpec) IsBridge() bool { return s.Driver == BridgeNetwork }

// PortForward makes a port of the gateway's host lead to a guest.
type PortForward struct {
	Listen string // address:port on the gateway's host
	Guest  string // address:port on the segment
}
