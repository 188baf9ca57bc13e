package rpc

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The headers with which a host tells who makes a call that it passes on. Only hosts are believed, and of them only so much: a user of the
// cluster is looked up again here, and has no more than its record says.
const (
	original     = "Godwit-Caller"      // its name, as the host knows it that passes the call on
	originalUser = "Godwit-Caller-User" // the user of the cluster that it is; absent for root of that host
	originalRole = "Godwit-Caller-Role" // what that host says it may
)

// originalMax is the longest name of a caller that is believed.
const originalMax = 64

// Directory knows users and their tokens. control/access has it.
type Directory interface {
	// Token returns the user that the token's text belongs to: fault.Denied, in one line, when that is nobody now.
	Token(ctx context.Context, text string) (inventory.User, error)
	// User returns the user of that name, or fault.NotFound.
	User(ctx context.Context, name string) (inventory.User, error)
}

// identity is who makes a call, and how much it may.
type identity struct {
	name     string // as tasks and events show it
	user     string // of the cluster
	host     inventory.HostID
	via      inventory.HostID // the host that passed the call on; the same as host
	role     inventory.Role
	from     string
	stranger bool
	local    bool   // a user of this machine
	byToken  bool   // it has shown one, so that its role is fresh
	tally    string // the name that its calls are counted under, share callers' worth
	share    int
}

// caller is the identity as tasks and events know it.
func (who identity) caller() task.Caller {
	return task.Caller{Name: who.name, User: who.user, Role: who.role, From: who.from, Via: who.via}
}

// has says of which role the caller is.
func (who identity) has() string {
	if who.role == inventory.NoRole {
		return "it has none"
	}
	return fmt.Sprintf("it has %v", who.role)
}

// meet says who calls, as far as the connection and the headers tell; known below asks the directory.
func (g *gate) meet(who Caller, header http.Header) identity {
	switch {
	case who.Host != "":
		id := identity{name: nameOf(who, header), host: who.Host, role: inventory.Viewer, from: "host " + string(who.Host), tally: "host " + string(who.Host), share: hostShare}
		if passedOn(header) {
			id.via, id.role = who.Host, inventory.RoleNamed(header.Get(originalRole))
			id.user = header.Get(originalUser)
		}
		return id
	case who.Name != "":
		id := identity{name: who.Name, role: who.Role, local: true, from: "socket", tally: "user " + who.Name, share: 1}
		if who.Mapped {
			id.user = who.Name
		}
		return id
	}
	return identity{stranger: true, from: who.Address, tally: "address " + who.Address, share: 1}
}

// known asks the directory about an identity that has a user: that user's role as it is now counts. A user of this machine that the
// cluster does not know keeps the role of the socket.
func (g *gate) known(ctx context.Context, id identity) (identity, error) {
	if id.user == "" || g.callers.Directory == nil {
		return id, nil
	}
	u, err := g.callers.Directory.User(ctx, id.user)
	switch {
	case err == nil && id.host == "":
		id.role = u.Role
	case err == nil:
		id.role = min(id.role, u.Role)
	case !fault.Is(err, fault.NotFound):
		return id, fault.New(fault.Unavailable, "nobody can say what user %s may: %w: root of a host is answered on its socket all the same", id.user, err)
	case id.host != "":
		return id, fault.New(fault.Denied, "there is no user %s any more", id.user)
	default:
		id.user = ""
	}
	return id, nil
}

// bearer begins the value of the header Authorization (RFC 6750).
const bearer = "Bearer "

// byToken says whose token a stranger shows. Of each address only so many may be wrong, counted before anything is looked up.
func (g *gate) byToken(ctx context.Context, who Caller, header http.Header) (identity, error) {
	id := identity{stranger: true, from: who.Address, tally: "address " + who.Address, share: 1}
	text, ok := strings.CutPrefix(header.Get("Authorization"), bearer)
	if !ok || g.callers.Directory == nil {
		return id, fault.New(fault.Denied, "the header Authorization has to be %q and a user's token", strings.TrimSpace(bearer))
	}
	end, err := g.tries.begin(ctx, who.Address)
	if err != nil {
		return id, err
	}
	u, err := g.callers.Directory.Token(ctx, text)
	end(fault.Is(err, fault.Denied) || fault.Is(err, fault.Invalid))
	if err != nil {
		return id, err
	}
	return identity{name: u.Name, user: u.Name, role: u.Role, byToken: true, from: who.Address, tally: "user " + u.Name, share: 1}, nil
}

// passedOn reports whether a host's call is that of somebody else.
func passedOn(header http.Header) bool {
	by := header.Get(original)
	return by != "" && header.Get(forwarded) != "" && len(by) <= originalMax && !strings.ContainsFunc(by, func(r rune) bool { return r < ' ' || r > '~' })
}

// nameOf returns what tasks and events show of the caller: "alice"; "host host-2"; "alice@host-2" for a call that host-2 passes
// on for its user alice; nothing for a stranger.
func nameOf(who Caller, header http.Header) string {
	switch {
	case who.Host == "":
		return who.Name
	case passedOn(header):
		return header.Get(original) + "@" + string(who.Host)
	}
	return "host " + string(who.Host)
}
