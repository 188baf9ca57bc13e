package inventory

import (
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Role is how much a caller may do. Each role may do all that the ones before it may.
type Role int

// The roles. NoRole may do nothing: it is what a name means that this version does not know.
const (
	NoRole   Role = iota
	Viewer        // reads
	Operator      // works with VMs and images: create, power, console, migrate, destroy
	Admin         // everything: hosts, users, tokens, networks, datastores
)

var roleNames = [...]string{"none", "viewer", "operator", "admin"}

// String returns the role's name as CLI, records and JSON show it.
func (r Role) String() string {
	if r < 0 || int(r) >= len(roleNames) {
		return "none"
	}
	return roleNames[r]
}

// May reports whether a caller of this role may do what needs the other. Nobody may do what needs no role that there is: a call that
// was never given one is refused to all.
func (r Role) May(needed Role) bool { return needed > NoRole && needed <= Admin && r >= needed }

// ParseRole reads the name of a role; anything else is fault.Invalid.
func ParseRole(name string) (Role, error) {
	for r := Viewer; r <= Admin; r++ {
		if r.String() == name {
			return r, nil
		}
	}
	return NoRole, fault.New(fault.Invalid, "role %q is unknown: take admin, operator or viewer", name)
}

// RoleNamed returns the role that a record or a message names, NoRole for one that this version does not know.
func RoleNamed(name string) Role {
	r, err := ParseRole(name)
	if err != nil {
		return NoRole
	}
	return r
}

// User is a person or a program that calls with a token of its own, from anywhere. It is written by an admin.
type User struct {
	Name    string
	ID      string // of this user; one that gets the name of a deleted one has another
	Role    Role
	Created time.Time
	By      string // who made it
}

// UserToken is a user's token, without its secret, which is shown once and kept by nobody.
type UserToken struct {
	ID      string
	User    string // name
	UserID  string // of the user it was made for
	Created time.Time
	Expires time.Time
	By      string // who made it
}

// rootUser is the user whose name nobody else may have: it is an admin on the socket of each host.
const rootUser = "root"

// CheckUserName returns fault.Invalid unless the name can be a user's: a name like a host's (CheckName), so that it cannot be mistaken for
// "alice@host-2" or "host host-2" in tasks and events, and not root.
func CheckUserName(name string) error {
	if name == rootUser {
		return fault.New(fault.Invalid, "user name root is taken: root of a host is always an admin there: take another name")
	}
	return CheckName("user", name)
}
