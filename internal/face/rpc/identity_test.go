package rpc

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// fakeDirectory knows users by name, and takes "token of NAME" for a token.
type fakeDirectory struct {
	mu    sync.Mutex
	users map[string]inventory.Role
	away  bool
	asked int
}

func (d *fakeDirectory) User(_ context.Context, name string) (inventory.User, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	role, ok := d.users[name]
	switch {
	case d.away:
		return inventory.User{}, fault.New(fault.Unavailable, "the store does not answer")
	case !ok:
		return inventory.User{}, fault.New(fault.NotFound, "no user %q", name)
	}
	return inventory.User{Name: name, Role: role}, nil
}

func (d *fakeDirectory) Token(ctx context.Context, text string) (inventory.User, error) {
	u, err := d.User(ctx, strings.TrimPrefix(text, "token of "))
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.Denied, "the cluster does not know this token")
	}
	return u, err
}

func (d *fakeDirectory) set(name string, role inventory.Role) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users[name] = role; role == inventory.NoRole {
		delete(d.users, name)
	}
}

const (
	startVM   = "/godwit.v1.VMService/StartVM"
	consoleVM = "/godwit.v1.VMService/ConsoleVM"
	backUp    = "/godwit.v1.ClusterService/BackUp"
)

// ask makes one call and returns the code and the text of the answer.
func ask(g *gate, path string, headers ...string) (int, string) {
	r := httptest.NewRequest(http.MethodPost, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func ok(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// noting collects what a gate writes down.
type noting struct {
	mu     sync.Mutex
	events []inventory.Event
}

func (n *noting) note(_ context.Context, e inventory.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, e)
}

func TestWhoMayWhat(t *testing.T) {
	d := &fakeDirectory{users: map[string]inventory.Role{"vera": inventory.Viewer, "olga": inventory.Operator, "ann": inventory.Admin}}
	wide := limits
	wide.JoinsPerMinute, wide.Burst, wide.PerSecond = 1000, 1000, 1000
	stranger := Caller{Address: "192.0.2.9"}
	local := func(name string) Caller { return Caller{Name: name, Role: inventory.Admin, Mapped: true} }
	host := Caller{Host: "host-2"}
	on := func(name, user, role string) []string {
		return []string{forwarded, "host-2", original, name, originalUser, user, originalRole, role}
	}
	token := func(name string) []string { return []string{"Authorization", "Bearer token of " + name} }
	for _, c := range []struct {
		what    string
		who     Caller
		headers []string
		path    string
		code    int
		says    string
	}{
		{"a viewer looks", stranger, token("vera"), listVMs, 204, ""},
		{"a viewer starts", stranger, token("vera"), startVM, 403, "vera may not VMService/StartVM: that takes the role operator, and it has viewer"},
		{"an operator starts", stranger, token("olga"), startVM, 204, ""},
		{"an operator makes a network", stranger, token("olga"), "/godwit.v1.HostService/CreateNetwork", 403, "that takes the role admin"},
		{"an operator makes a user", stranger, token("olga"), "/godwit.v1.UserService/CreateUser", 403, "that takes the role admin"},
		{"an admin makes a token for hosts", stranger, token("ann"), "/godwit.v1.HostService/CreateToken", 204, ""},
		{"an admin hands over", stranger, token("ann"), "/godwit.v1.HandoverService/Release", 403, "between hosts only"},
		{"an admin takes a backup from afar", stranger, token("ann"), backUp, 403, "on the host's own socket only"},
		{"a user of the machine takes a backup", local("carl"), nil, backUp, 204, ""},
		{"another host takes a backup for its root", host, on("root", "", "admin"), backUp, 403, "on the host's own socket only"},
		{"a viewer takes a backup from afar", stranger, token("vera"), backUp, 403, "that takes the role admin"},
		{"a wrong token", stranger, token("eve"), listVMs, 403, "the cluster does not know this token"},
		{"another scheme", stranger, []string{"Authorization", "Basic cm9vdDo="}, listVMs, 403, `has to be "Bearer" and a user's token`},
		{"no token", stranger, nil, listVMs, 403, "who calls? show a user's token"},
		{"a stranger who says that a host passes it on", stranger, on("root", "", "admin"), listVMs, 403, "who calls?"},
		{"a call that is in no table", stranger, token("ann"), "/godwit.v1.VMService/NoSuchVM", 403, "there is no call"},
		{"a path that is no call", local("carl"), nil, "/", 403, "there is no call"},

		{"a user of the machine", local("carl"), nil, startVM, 204, ""},
		{"one whom the cluster knows as a viewer", local("vera"), nil, startVM, 403, "vera may not"},
		{"one whom the cluster knows as an operator", local("olga"), nil, startVM, 204, ""},
		{"one who shows another's token over the socket", local("vera"), token("ann"), startVM, 403, "vera may not"},

		{"root of another host", host, on("root", "", "admin"), startVM, 204, ""},
		{"an operator by way of another host", host, on("olga", "olga", "operator"), startVM, 204, ""},
		{"a viewer for whom that host says more", host, on("vera", "vera", "admin"), startVM, 403, "vera@host-2 may not"},
		{"an admin for whom that host says less", host, on("ann", "ann", "viewer"), startVM, 403, "it has viewer"},
		{"a user who was deleted meanwhile", host, on("gone", "gone", "admin"), listVMs, 403, "there is no user gone any more"},
		{"a role that does not exist", host, on("root", "", "god"), listVMs, 403, "it has none"},
		{"a host that says a role and no name", host, []string{forwarded, "host-2", originalRole, "admin"}, startVM, 403, "host host-2 may not"},
		{"a host that says a name and does not pass on", host, []string{original, "root", originalRole, "admin"}, startVM, 403, "host host-2 may not"},
	} {
		g := newGate(http.HandlerFunc(ok), Callers{Who: func(*http.Request) Caller { return c.who }, Directory: d, Limits: wide}, nil)
		if code, says := ask(g, c.path, c.headers...); code != c.code || !strings.Contains(says, c.says) {
			t.Errorf("%s: %d %q, not %d %q", c.what, code, says, c.code, c.says)
		}
	}
}

// While the store is away nobody can say who a user is: root of the host is answered, and asks nobody.
func TestStoreAway(t *testing.T) {
	d := &fakeDirectory{away: true}
	for what, c := range map[string]struct {
		who     Caller
		headers []string
		code    int
	}{
		"root":      {Caller{Name: "root", Role: inventory.Admin}, nil, 204},
		"a user":    {Caller{Name: "carl", Role: inventory.Admin, Mapped: true}, nil, 503},
		"a token":   {Caller{Address: "192.0.2.9"}, []string{"Authorization", "Bearer token of ann"}, 503},
		"a host":    {Caller{Host: "host-2"}, nil, 204},
		"by way of": {Caller{Host: "host-2"}, []string{forwarded, "host-2", original, "ann", originalUser, "ann", originalRole, "admin"}, 503},
	} {
		g := newGate(http.HandlerFunc(ok), Callers{Who: func(*http.Request) Caller { return c.who }, Directory: d, Limits: limits}, nil)
		if code, says := ask(g, listVMs, c.headers...); code != c.code {
			t.Errorf("%s: %d %s", what, code, says)
		}
	}
}

// Wrong tokens are counted by address before they are looked up; right ones are not counted.
func TestWrongTokensAreCounted(t *testing.T) {
	d := &fakeDirectory{users: map[string]inventory.Role{"vera": inventory.Viewer}}
	address := "192.0.2.1"
	wide := limits
	wide.Burst, wide.PerSecond = 1000, 1000
	n := &noting{}
	g := newGate(http.HandlerFunc(ok), Callers{Who: func(*http.Request) Caller { return Caller{Address: address} }, Directory: d, Limits: wide}, n.note)
	for range 20 {
		if code, says := ask(g, listVMs, "Authorization", "Bearer token of vera"); code != 204 {
			t.Fatalf("a right token: %d %s", code, says)
		}
	}
	for i := range 5 {
		before := d.asked
		code, says := ask(g, listVMs, "Authorization", fmt.Sprint("Bearer token of eve", i))
		if i < wide.JoinsPerMinute && code != 403 || i >= wide.JoinsPerMinute && (code != 503 || d.asked != before || !strings.Contains(says, "more than 2 wrong tokens per minute from 192.0.2.1")) {
			t.Errorf("wrong token %d: %d %s", i+1, code, says)
		}
	}
	if len(n.events) != 5 || n.events[0].Kind != callRefused || n.events[0].From != address || !n.events[0].Audit || n.events[0].By != "a stranger" {
		t.Errorf("written down: %+v", n.events)
	}
	address = "192.0.2.2"
	if code, _ := ask(g, listVMs, "Authorization", "Bearer token of vera"); code != 204 {
		t.Error("another address is affected")
	}
}

// A refusal of what would change something is written down, of a read it is not; limits too.
func TestRefusalsAreWrittenDown(t *testing.T) {
	d := &fakeDirectory{users: map[string]inventory.Role{"vera": inventory.Viewer}}
	n := &noting{}
	g := newGate(http.HandlerFunc(ok), Callers{Who: func(*http.Request) Caller { return Caller{Address: "192.0.2.1"} }, Directory: d, Limits: limits}, n.note)
	vera := []string{"Authorization", "Bearer token of vera"}
	for _, path := range []string{listVMs, "/godwit.v1.UserService/ListUsers", startVM} {
		ask(g, path, vera...)
	}
	if len(n.events) != 1 {
		t.Fatalf("written down: %+v", n.events)
	}
	want := inventory.Event{
		Kind: "call.refused", Severity: inventory.Warning, Audit: true, By: "vera", From: "192.0.2.1",
		Message: "VMService/StartVM: vera may not VMService/StartVM: that takes the role operator, and it has viewer",
	}
	if n.events[0] != want {
		t.Errorf("written down: %+v", n.events[0])
	}
}

// A console ends when its user's token is revoked, and the handler learns why.
func TestStreamsAreJudgedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDirectory{users: map[string]inventory.Role{"olga": inventory.Operator}}
		ended := make(chan error, 1)
		n := &noting{}
		g := newGate(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if who := task.CallerOf(r.Context()); who.User != "olga" || who.Role != inventory.Operator {
				t.Errorf("the handler sees %+v", who)
			}
			<-r.Context().Done()
			ended <- context.Cause(r.Context())
		}), Callers{Who: func(*http.Request) Caller { return Caller{Address: "192.0.2.1"} }, Directory: d, Limits: limits}, n.note)
		go ask(g, consoleVM, "Authorization", "Bearer token of olga")
		time.Sleep(time.Minute)
		synctest.Wait()
		d.mu.Lock()
		d.away = true // nobody can say: the console goes on
		d.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(ended) != 0 {
			t.Fatal("it ended without a reason")
		}
		d.mu.Lock()
		d.away = false
		d.mu.Unlock()
		d.set("olga", inventory.NoRole)
		began := time.Now()
		if err := <-ended; !fault.Is(err, fault.Denied) {
			t.Errorf("it ended with %v", err)
		}
		if took := time.Since(began); took > judgeEvery {
			t.Errorf("it ended after %v", took)
		}
		synctest.Wait()
		if len(n.events) != 1 || n.events[0].By != "olga" {
			t.Errorf("written down: %+v", n.events)
		}
	})
}

// What an event tells of a call has its object and what matters, and no secret.
func TestWhatIsToldOfACall(t *testing.T) {
	for want, m := range map[string]interface {
		ProtoReflect() protoreflect.Message
	}{
		"web-1|target=host-2": &godwitv1.MigrateVMRequest{Vm: "web-1", Target: "host-2"},
		"alice|role=admin":    &godwitv1.SetUserRoleRequest{User: "alice", Role: "admin"},
		"web-1|":              &godwitv1.CreateVMRequest{Name: "web-1", Seed: &godwitv1.Seed{UserData: "password: secret"}},
		"|lifetime=1h0m0s":    &godwitv1.CreateTokenRequest{Lifetime: durationpb.New(time.Hour)},
		"0a1b|":               &godwitv1.RevokeUserTokenRequest{Token: "0a1b"},
		"host-4|":             &godwitv1.JoinRequest{Token: "gw1.secret", Host: "host-4"},
		"d.qcow2@shared|":     &godwitv1.DeleteImageRequest{File: &godwitv1.File{Path: "d.qcow2", Datastore: "shared"}},
		"web-1|force=yes":     &godwitv1.StopVMRequest{Vm: "web-1", Force: true},
		"web-2|name=web-3":    &godwitv1.CloneVMRequest{Vm: "web-2", Name: "web-3"},
	} {
		object, details := told(m.ProtoReflect())
		if got := object + "|" + details; got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
