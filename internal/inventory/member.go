package inventory

import (
	"slices"
	"time"
)

// MemberState says where the plan for a member of the store stands.
type MemberState string

// The states.
const (
	MemberJoining MemberState = "joining" // it is to be there, and vote when it has caught up
	MemberVoting  MemberState = "voting"
	MemberLeaving MemberState = "leaving" // it is to go for good
)

// MemberPlan is what the leader plans for the member of the store on a host. It is in the store before anything is done, so that the next
// leader goes on; the host starts and ends its member by it.
type MemberPlan struct {
	Host  HostID
	ID    uint64 // of the member; 0: the store has no place for it yet
	State MemberState
	Peer  string // URL at which the other members reach it
	Join  string // what it starts with; empty for the one that founded the store
	Why   string
	Since time.Time
}

// Removal is the plan to take a host out of the cluster.
type Removal struct {
	Host  HostID
	Force bool   // the host is dead, and fenced
	By    string // who asked
	Since time.Time
	Waits string // for what, in one line; empty when nobody has looked yet
}

// HostCertificate is a certificate that the cluster's CA has given to a host.
type HostCertificate struct {
	Serial  string // hexadecimal
	Expires time.Time
}

// VMsOf returns the names of the VMs that a host owns, or is about to own, in order.
func VMsOf(vms []VM, host HostID) []string {
	var names []string
	for _, vm := range vms {
		if vm.Run.Owner == host || vm.Run.Heir.Host == host {
			names = append(names, vm.Spec.Name)
		}
	}
	slices.Sort(names)
	return names
}
