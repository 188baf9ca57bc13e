package store

import (
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The roots of the keys; package store's comment lists them all.
const (
	rootKey       = "/godwit/"
	keyCluster    = rootKey + "cluster"
	rootVM        = rootKey + "vm/"
	rootVMName    = rootKey + "vm-name/"
	rootHost      = rootKey + "host/"
	rootNetwork   = rootKey + "network/"
	rootMigration = rootKey + "migration/"
	rootToken     = rootKey + "token/"
	rootMAC       = rootKey + "mac/"
	rootTask      = rootKey + "task/"
	rootEvent     = rootKey + "event/"
	rootRequest   = rootKey + "request/"
	rootPlan      = rootKey + "plan/"
	rootUser      = rootKey + "user/"
	rootUserToken = rootKey + "user-token/"
	rootMember    = rootKey + "member/"
	rootRemoval   = rootKey + "removal/"
	keySealed     = rootKey + "ca"
	keyRevoked    = rootKey + "revoked"

	// Renewals are written every second by every host: outside rootKey, so that nobody who watches the inventory is woken by them.
	rootAlive = "/godwit-alive/"
	// keyLeader is the root of the election (leader.go).
	keyLeader = "/godwit-leader"
	// keyFull is there while nothing new is taken, and says why in plain text: every write that adds compares that it is not.
	keyFull = "/godwit-full"
)

// The parts of objects.
const (
	partSpec      = "spec"
	partRun       = "run"
	partStatus    = "status"
	partEpoch     = "epoch"
	partMigration = "migration"
	partPlace     = "place"
	partStanding  = "standing"
	partCert      = "cert/" // and the certificate's serial number
)

func keyVM(id inventory.VMID, part string) string     { return rootVM + string(id) + "/" + part }
func keyVMName(name string) string                    { return rootVMName + name }
func keyHost(id inventory.HostID, part string) string { return rootHost + string(id) + "/" + part }
func keyNetwork(id inventory.NetworkID) string        { return rootNetwork + string(id) + "/" + partSpec }
func keyMAC(mac string) string                        { return rootMAC + mac }
func keyToken(id string) string                       { return rootToken + id }
func keyTask(id inventory.TaskID, part string) string { return rootTask + string(id) + "/" + part }
func keyEvent(id inventory.EventID) string            { return rootEvent + string(id) }
func keyAlive(id inventory.HostID) string             { return rootAlive + string(id) }
func keyUser(name string) string                      { return rootUser + name }
func keyUserToken(id string) string                   { return rootUserToken + id }
func keyRequest(key string) string                    { return rootRequest + key }
func keyPlan(id inventory.PlanID) string              { return rootPlan + string(id) }
func keyMember(id inventory.HostID) string            { return rootMember + string(id) }
func keyRemoval(id inventory.HostID) string           { return rootRemoval + string(id) }

func keyMigration(id inventory.MigrationID, part string) string {
	return rootMigration + string(id) + "/" + part
}

// split takes "ID/part" out of a key below root; part is empty for a key without one.
func split(root, key string) (id, part string) {
	id, part, _ = strings.Cut(strings.TrimPrefix(key, root), "/")
	return id, part
}

// checkID refuses what would make another key than the one that is meant.
func checkID[T ~string](what string, id T) error {
	if id == "" || strings.ContainsAny(string(id), "/\x00") {
		return fault.New(fault.Invalid, "%s id %q is not usable: it is empty or has a slash", what, string(id))
	}
	return nil
}
