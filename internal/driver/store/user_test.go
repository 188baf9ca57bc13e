package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestUsersAndTheirTokens(t *testing.T) {
	s, w := start(t)
	ctx := t.Context()
	ann := inventory.User{Name: "ann", ID: "user-1", Role: inventory.Admin, Created: time.Now(), By: "root"}
	olga := inventory.User{Name: "olga", ID: "user-2", Role: inventory.Operator, Created: time.Now(), By: "root"}
	must(t, w.CreateUser(ctx, ann))
	must(t, w.CreateUser(ctx, olga))
	must(t, w.CreateUser(ctx, olga)) // a repeat
	again := olga
	again.ID = "user-3"
	want(t, fault.Exists, w.CreateUser(ctx, again))
	want(t, fault.Invalid, w.CreateUser(ctx, inventory.User{Name: "a/b", ID: "user-4", Role: inventory.Viewer}))
	want(t, fault.Invalid, w.CreateUser(ctx, inventory.User{Name: "nobody", ID: "user-4"}))
	all, err := s.Users(ctx)
	must(t, err)
	if len(all) != 2 || all[0].Name != "ann" || all[1].Role != inventory.Operator || all[1].By != "root" {
		t.Errorf("users are %+v", all)
	}

	token := func(id string, of inventory.User) store.UserToken {
		kept := store.UserToken{UserToken: inventory.UserToken{ID: id, User: of.Name, UserID: of.ID, Created: time.Now(), Expires: time.Now().Add(time.Hour)}}
		kept.Seal([]byte("salt of "+id), []byte("secret of "+id))
		return kept
	}
	must(t, w.CreateUserToken(ctx, token("0a", olga)))
	must(t, w.CreateUserToken(ctx, token("0b", ann)))
	want(t, fault.NotFound, w.CreateUserToken(ctx, token("0c", again))) // of one who is not there
	kept, user, err := s.UserToken(ctx, "0a")
	must(t, err)
	if user.Name != "olga" || !kept.Opens([]byte("secret of 0a")) || kept.Opens([]byte("secret of 0b")) || kept.Opens(nil) {
		t.Errorf("the token reads as %+v of %+v", kept, user)
	}
	if (&store.UserToken{}).Opens(nil) {
		t.Error("a token without a hash is opened by nothing")
	}

	// Revoked is revoked, and only that one.
	must(t, w.RevokeUserToken(ctx, "0a"))
	want(t, fault.NotFound, w.RevokeUserToken(ctx, "0a"))
	_, _, err = s.UserToken(ctx, "0a")
	want(t, fault.NotFound, err)
	_, _, err = s.UserToken(ctx, "0b")
	must(t, err)

	// With a user go its tokens, and whoever gets the name afterwards does not get them.
	must(t, w.CreateUserToken(ctx, token("0d", olga)))
	must(t, w.DeleteUser(ctx, "olga"))
	want(t, fault.NotFound, w.DeleteUser(ctx, "olga"))
	must(t, w.CreateUser(ctx, again))
	_, _, err = s.UserToken(ctx, "0d")
	want(t, fault.NotFound, err)
	want(t, fault.NotFound, w.CreateUserToken(ctx, token("0e", olga)))

	for i := range store.UserTokensMax {
		must(t, w.CreateUserToken(ctx, token(fmt.Sprintf("1%02d", i), again)))
	}
	t.Log(want(t, fault.NoResources, w.CreateUserToken(ctx, token("200", again))))
	must(t, w.DeleteUser(ctx, "olga"))
	left, err := s.UserTokens(ctx, "")
	must(t, err)
	if len(left) != 1 || left[0].ID != "0b" {
		t.Errorf("tokens that are left: %+v", left)
	}
}

// The last admin stays, also when the last two end each other at the same moment on two hosts.
func TestTheLastAdminStays(t *testing.T) {
	s, w := start(t)
	ctx := t.Context()
	must(t, w.CreateUser(ctx, inventory.User{Name: "ann", ID: "user-1", Role: inventory.Admin}))
	must(t, w.CreateUser(ctx, inventory.User{Name: "vera", ID: "user-2", Role: inventory.Viewer}))
	_, demoted := w.SetUserRole(ctx, "ann", inventory.Operator)
	for _, err := range []error{w.DeleteUser(ctx, "ann"), demoted} {
		if want(t, fault.Conflict, err); !strings.Contains(err.Error(), "it is the last admin: make another one first") {
			t.Error(err)
		}
	}
	_, err := w.SetUserRole(ctx, "ann", inventory.Admin) // no change
	must(t, err)
	other := writer(t, s, "host-2")
	for range 5 {
		_, err = w.SetUserRole(ctx, "vera", inventory.Admin)
		must(t, err)
		_, err = w.SetUserRole(ctx, "ann", inventory.Admin)
		must(t, err)
		var both sync.WaitGroup
		var errs [2]error
		both.Go(func() { _, errs[0] = w.SetUserRole(ctx, "ann", inventory.Viewer) })
		both.Go(func() { _, errs[1] = other.SetUserRole(ctx, "vera", inventory.Viewer) })
		both.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("both admins were asked to go: %v, %v", errs[0], errs[1])
		}
		all, err := s.Users(ctx)
		must(t, err)
		if admins := (all[0].Role == inventory.Admin) != (all[1].Role == inventory.Admin); !admins {
			t.Fatalf("users are %+v", all)
		}
	}
}

// Audit events have a bound of their own: a busy script does not drive out what happened to VMs, nor the other way round.
func TestAuditEventsAreBoundedByThemselves(t *testing.T) {
	s, w := start(t)
	ctx := t.Context()
	s.SetKept(3, 4, 2)
	s.SetAuditKept(2)
	now := time.Now()
	var events []inventory.Event
	for i := range 16 {
		at := now.Add(time.Duration(i-16) * time.Second)
		events = append(events, inventory.Event{ID: inventory.NewEventID(at), Time: at, Kind: "x.happened", Audit: i%2 == 0, From: "socket", By: "root"})
	}
	old := now.Add(-8 * 24 * time.Hour)
	events = append(events, inventory.Event{ID: inventory.NewEventID(old), Time: old, Kind: "x.happened", Audit: true})
	must(t, w.Record(ctx, nil, events))
	must(t, w.Forget(ctx, now))
	left, err := s.Events(ctx)
	must(t, err)
	audits := 0
	for _, e := range left {
		if e.Audit {
			audits++
		}
	}
	if audits != 2 || len(left) != 6 || !left[len(left)-2].Audit || left[len(left)-2].From != "socket" {
		t.Errorf("%d of %d events are audits: %+v", audits, len(left), left)
	}
}
