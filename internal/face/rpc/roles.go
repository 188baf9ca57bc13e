package rpc

import (
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// right says who may make a call, and whether that is written down.
type right struct {
	role    inventory.Role // what a user needs; NoRole: no user may
	anybody bool           // also a stranger, who shows something else: a token to join with
	host    bool           // a host for itself, nobody else
	local   bool           // only on the host's own socket
	audited bool           // it changes something: who made it, from where and how it ended becomes an event
}

func reading(r inventory.Role) right  { return right{role: r} }
func changing(r inventory.Role) right { return right{role: r, audited: true} }

var hostsOnly = right{host: true}

// rights says for each call of the API who may make it. A call that is not here is refused to everybody, and a test fails for it.
var rights = map[string]right{
	"HostService/ListHosts":     reading(inventory.Viewer),
	"HostService/GetHost":       reading(inventory.Viewer),
	"HostService/Doctor":        reading(inventory.Operator), // it may start QEMUs to try what they can do
	"HostService/CreateToken":   changing(inventory.Admin),
	"HostService/CreateNetwork": changing(inventory.Admin),
	"HostService/ListNetworks":  reading(inventory.Viewer),

	"VMService/ListVMs":      reading(inventory.Viewer),
	"VMService/GetVM":        reading(inventory.Viewer),
	"VMService/CreateVM":     changing(inventory.Operator),
	"VMService/StartVM":      changing(inventory.Operator),
	"VMService/StopVM":       changing(inventory.Operator),
	"VMService/ResetVM":      changing(inventory.Operator),
	"VMService/PauseVM":      changing(inventory.Operator),
	"VMService/ResumeVM":     changing(inventory.Operator),
	"VMService/DestroyVM":    changing(inventory.Operator),
	"VMService/MigrateVM":    changing(inventory.Operator),
	"VMService/CloneVM":      changing(inventory.Operator),
	"VMService/SetTemplate":  changing(inventory.Operator),
	"VMService/MoveVM":       changing(inventory.Operator),
	"VMService/SetVM":        changing(inventory.Operator),
	"VMService/AddDisk":      changing(inventory.Operator),
	"VMService/RemoveDisk":   changing(inventory.Operator),
	"VMService/GrowDisk":     changing(inventory.Operator),
	"VMService/AddNIC":       changing(inventory.Operator),
	"VMService/RemoveNIC":    changing(inventory.Operator),
	"VMService/ConsoleVM":    changing(inventory.Operator), // whoever types there is a user of the guest
	"VMService/DisplayVM":    changing(inventory.Operator), // as above
	"VMService/ScreenshotVM": reading(inventory.Operator),  // it shows what a guest shows to those at its display

	"ImageService/ListImages":  reading(inventory.Viewer),
	"ImageService/GetImage":    reading(inventory.Viewer),
	"ImageService/CreateImage": changing(inventory.Operator),
	"ImageService/ImportImage": changing(inventory.Operator), // of a URL; a file of the host is an admin's (images.go)
	"ImageService/CloneImage":  changing(inventory.Operator),
	"ImageService/GrowImage":   changing(inventory.Operator),
	"ImageService/DeleteImage": changing(inventory.Operator),

	"MigrationService/ListMigrations":  reading(inventory.Viewer),
	"MigrationService/GetMigration":    reading(inventory.Viewer),
	"MigrationService/WatchMigration":  reading(inventory.Viewer),
	"MigrationService/CancelMigration": changing(inventory.Operator),

	"TaskService/ListTasks":  reading(inventory.Viewer),
	"TaskService/GetTask":    reading(inventory.Viewer),
	"TaskService/WatchTask":  reading(inventory.Viewer),
	"TaskService/CancelTask": changing(inventory.Operator),

	"EventService/ListEvents": reading(inventory.Viewer),

	"ClusterService/GetCluster":        reading(inventory.Viewer),
	"ClusterService/BackUp":            {role: inventory.Admin, local: true, audited: true}, // it changes nothing, and whoever has it has all that the store has
	"ClusterService/RotateCertificate": changing(inventory.Admin),

	"UserService/CreateUser":      changing(inventory.Admin),
	"UserService/ListUsers":       reading(inventory.Admin),
	"UserService/SetUserRole":     changing(inventory.Admin),
	"UserService/DeleteUser":      changing(inventory.Admin),
	"UserService/CreateUserToken": changing(inventory.Admin),
	"UserService/ListUserTokens":  reading(inventory.Admin),
	"UserService/RevokeUserToken": changing(inventory.Admin),
	"UserService/WhoAmI":          reading(inventory.Viewer),

	"FencingService/ConfirmDead": changing(inventory.Admin),

	"MemberService/RemoveHost": changing(inventory.Admin),

	"JoinService/Join":   {anybody: true, audited: true},
	"LeaveService/Leave": {anybody: true, audited: true},

	"HandoverService/Prepare": hostsOnly,
	"HandoverService/Release": hostsOnly,
	"HandoverService/Discard": hostsOnly,
	"MoveService/AdmitMove":   hostsOnly,

	"CertificateService/SignCertificate": hostsOnly,
	"MoveService/EndMove":                hostsOnly,
}

// apiPath begins the paths of all calls of the API.
const apiPath = "/godwit.v1."

// callOf returns the call that a path names, "VMService/StartVM", and its right; false for a path that is none.
func callOf(path string) (call string, r right, ok bool) {
	call, found := strings.CutPrefix(path, apiPath)
	r, ok = rights[call]
	return call, r, found && ok
}

// judge returns why a caller may not make the call: fault.Denied, with what it would need.
func judge(call string, r right, who identity) error {
	switch {
	case r.anybody:
		return nil
	case r.host && who.host != "" && who.via == "":
		return nil
	case r.host:
		return fault.New(fault.Denied, "%s is spoken between hosts only", call)
	case r.local && !who.local && who.role.May(r.role):
		return fault.New(fault.Denied, "%s is answered on the host's own socket only: run the command there, without --server", call)
	case who.role.May(r.role):
		return nil
	case who.stranger:
		return fault.New(fault.Denied, "who calls? show a user's token (godwit user token create), or join the host")
	}
	return fault.New(fault.Denied, "%s may not %s: that takes the role %s, and %s", who.name, call, r.role, who.has())
}
