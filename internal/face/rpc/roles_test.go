package rpc

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Each call of the API has its place in the table, and the table has no others: a new call is nobody's until somebody has thought of who
// may make it.
func TestEachCallHasItsRole(t *testing.T) {
	there := map[string]bool{}
	procedures(func(path string, _ protoreflect.MethodDescriptor) {
		call, r, ok := callOf(path)
		if !ok {
			t.Errorf("nobody may call %s: say in rights who may, with reading, changing or hostsOnly", path)
		}
		if ok && !r.anybody && !r.host && r.role == inventory.NoRole {
			t.Errorf("%s has a place in rights that lets nobody in", path)
		}
		there[call] = true
	})
	for call := range rights {
		if !there[call] {
			t.Errorf("rights has %s, and the API has no such call", call)
		}
	}
	if len(there) < 50 {
		t.Errorf("only %d calls were looked at", len(there))
	}
	for call, kept := range keyed {
		if _, r, ok := callOf(apiPath + call); !ok || kept != ignored && !r.audited {
			t.Errorf("%s takes an idempotency key, so that it changes something, and rights does not say so", call)
		}
	}
}

// What changes hosts, users, networks and the way into the cluster is an admin's, what changes VMs an operator's, and a viewer changes
// nothing at all.
func TestRolesAreOrdered(t *testing.T) {
	for call, r := range rights {
		if r.host || r.anybody {
			continue
		}
		if r.audited && r.role == inventory.Viewer {
			t.Errorf("a viewer may change something by %s", call)
		}
		service, _, _ := strings.Cut(call, "/")
		if r.audited && (service == "HostService" || service == "UserService") && r.role != inventory.Admin {
			t.Errorf("%s needs no admin", call)
		}
		for role := inventory.NoRole; role <= inventory.Admin; role++ {
			err := judge(call, r, identity{name: "alice", role: role, local: true})
			if may := role >= r.role && role != inventory.NoRole; may != (err == nil) {
				t.Errorf("%v: %s: %v", role, call, err)
			}
			if err != nil && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "that takes the role "+r.role.String())) {
				t.Errorf("%v (%v)", err, fault.KindOf(err))
			}
		}
	}
}

func TestCallsBetweenHosts(t *testing.T) {
	_, release, _ := callOf("/godwit.v1.HandoverService/Release")
	_, start, _ := callOf("/godwit.v1.VMService/StartVM")
	_, list, _ := callOf("/godwit.v1.VMService/ListVMs")
	host := identity{name: "host host-2", host: "host-2", role: inventory.Viewer}
	for _, c := range []struct {
		what string
		r    right
		who  identity
		may  bool
	}{
		{"a host hands over", release, host, true},
		{"a user hands over", release, identity{name: "alice", role: inventory.Admin}, false},
		{"a host passes a hand-over on", release, identity{name: "alice@host-2", host: "host-2", via: "host-2", role: inventory.Admin}, false},
		{"a stranger hands over", release, identity{stranger: true}, false},
		{"a host looks for itself", list, host, true},
		{"a host starts a VM for itself", start, host, false},
		{"a host passes an operator's start on", start, identity{name: "alice@host-2", host: "host-2", via: "host-2", role: inventory.Operator}, true},
	} {
		if err := judge("X", c.r, c.who); (err == nil) != c.may {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, _, ok := callOf("/godwit.v1.VMService/NoSuchVM"); ok {
		t.Error("a call that does not exist has a right")
	}
	if _, _, ok := callOf("/VMService/ListVMs"); ok {
		t.Error("a path without the API's prefix is a call")
	}
}
