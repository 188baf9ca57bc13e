package vnet

import (
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// PortMode is where a port stands; the package comment draws the transitions.
type PortMode string

// The modes of a port.
const (
	// ModeNormal carries frames both ways.
	ModeNormal PortMode = "normal"
	// ModeHeld queues frames for the guest and passes frames from it.
	ModeHeld PortMode = "held"
	// ModeForwarding sends frames for the guest to the target host's reserved port.
	ModeForwarding PortMode = "forwarding"
	// ModeReserved is closed outward and queues only frames that the source host forwards.
	ModeReserved PortMode = "reserved"
)

// PortSpec describes a port as the agent wants it.
type PortSpec struct {
	// ID is unique on the host and chosen by the agent, the same on source and target or not.
	ID string
	// Network is the segment the port is on; the network must have been set.
	Network inventory.NetworkID
	// MAC is the guest's address in canonical form. Ports that are migrated need one; empty otherwise is allowed.
	MAC string
	// Socket is the unix socket that the switch listens on for this port, 107 bytes at most. A new connection replaces
	// an older one.
	Socket string
	// Owner is the uid that may connect; the socket is given to it with mode 0600. 0 leaves it to the switch's own uid.
	Owner int
	// Guard drops frames from the guest whose source address is not MAC, and counts them as DropsIn.
	Guard bool
}

// PortStats counts from a port's start in this switch process. In is from the guest, out is to it.
type PortStats struct {
	FramesIn, BytesIn   uint64
	FramesOut, BytesOut uint64 // queued for the guest; frames dropped are not counted here
	DropsIn, DropsOut   uint64
	Forwarded           uint64 // frames sent to the target host while forwarding, or received so while reserved
}

// PortStatus is a port as it is.
type PortStatus struct {
	PortSpec
	Mode      PortMode
	Migration inventory.MigrationID // of the last Reserve or Forward
	Host      inventory.HostID      // the other end of that migration
	Connected bool                  // a QEMU or other client is attached
	Queued    int                   // frames waiting for the guest, copies included
	Stats     PortStats
}

// NetworkSpec is a network as the agent wants it.
type NetworkSpec struct {
	ID inventory.NetworkID
	// Gateway makes this host run the network's DHCP, DNS, NAT and port forwards.
	Gateway *GatewaySpec `json:",omitempty"`
}

// GatewaySpec is a network's gateway. The gateway takes the first address of Subnet and a MAC address derived from the
// network's id, the same on every host, so that a take-over is seen by no guest.
type GatewaySpec struct {
	// Subnet is an IPv4 CIDR of at least four addresses.
	Subnet string
	// Forwards lead from a TCP port of this host to a guest; "udp:" before Listen makes it UDP.
	Forwards []inventory.PortForward `json:",omitempty"`
	// Leases fixes addresses: MAC to IPv4. All others get one derived from their MAC, the same wherever the gateway
	// runs unless two collide.
	Leases map[string]string `json:",omitempty"`
	// Names are answered by DNS in the zone "godwit.": name to IPv4.
	Names map[string]string `json:",omitempty"`
}

// NetworkStatus is a network as it is.
type NetworkStatus struct {
	NetworkSpec
	Ports   int
	Learned int               // addresses in the table
	Leases  map[string]string // MAC to IPv4, of the gateway on this host
	// DropsIn and DropsOut add up those of the network's ports here, also of ports that are gone.
	DropsIn, DropsOut uint64
}

// Peer is another host's switch.
type Peer struct {
	ID   inventory.HostID
	Addr string // host:port of its trunk listener
}

// PeerStatus is the trunk to a peer as it is.
type PeerStatus struct {
	Peer
	Connected           bool
	Since               time.Time // of the last change of Connected
	Connects            uint64    // how often it was established
	FramesIn, BytesIn   uint64
	FramesOut, BytesOut uint64
	DropsIn, DropsOut   uint64 // unknown network or reserved port; full queue
	Error               string // why it is not connected, when known
}

// Status is everything about a switch in one answer, each list sorted by id.
type Status struct {
	Host     inventory.HostID
	PID      int
	Started  time.Time
	Trunk    string // the address its trunk listener is bound to
	Ports    []PortStatus
	Networks []NetworkStatus
	Peers    []PeerStatus
}

// Requests of the control protocol: POST /v1/<operation> with one of these as JSON.
type (
	portRequest struct {
		ID        string
		Migration inventory.MigrationID `json:",omitempty"`
		Host      inventory.HostID      `json:",omitempty"`
		Again     int                   `json:",omitempty"`
		Drain     time.Duration         `json:",omitempty"`
	}
	trackRequest struct {
		ID     string
		Filter Filter
	}
	trackAnswer struct {
		Written uint64
	}
	reserveRequest struct {
		Spec      PortSpec
		Migration inventory.MigrationID
		Source    inventory.HostID
	}
	problem struct {
		Kind    string
		Message string
	}
	empty struct{}
)
