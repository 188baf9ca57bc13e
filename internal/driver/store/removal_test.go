package store_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// lead makes the writer's host the leader until the test ends.
func lead(t *testing.T, s *store.Store, w *store.Writer) *store.Term {
	t.Helper()
	term, err := s.Lead(t.Context(), w.Host(), w.Epoch())
	must(t, err)
	t.Cleanup(term.End)
	return term
}

func TestAHostIsRemovedOnceAndItsNameIsFree(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t1", SecretHash: []byte("h"), Expires: time.Now().Add(time.Hour)}))
	certificate := inventory.HostCertificate{Serial: "ab12", Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	must(t, w.UseToken(t.Context(), "t1", []byte("h"), store.Joining{Host: "host-2", Key: []byte("k"), Certificate: certificate}))
	other := writer(t, s, "host-2")
	must(t, other.PutHostSpec(t.Context(), inventory.HostSpec{Address: "192.0.2.2:7443"}))
	must(t, other.Renew(t.Context(), time.Second, inventory.FencedByNobody))
	must(t, term.PutMemberPlan(t.Context(), inventory.MemberPlan{Host: "host-2", State: inventory.MemberJoining}))
	want(t, fault.NotFound, term.PutMemberPlan(t.Context(), inventory.MemberPlan{Host: "host-9"}))
	want(t, fault.NotFound, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-9", Since: time.Now()}))
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", By: "root", Since: time.Now()}))
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", By: "another", Force: true, Since: time.Now()}))
	must(t, term.RemovalWaits(t.Context(), "host-2", "for its member"))
	plans, err := s.Removals(t.Context())
	must(t, err)
	if len(plans) != 1 || plans[0].By != "root" || !plans[0].Force || plans[0].Waits != "for its member" {
		t.Errorf("the plans are %+v", plans)
	}
	all, err := s.Certificates(t.Context(), "host-2")
	must(t, err)
	if len(all) != 1 || all[0] != certificate {
		t.Errorf("its certificates are %+v", all)
	}

	// Its agent starts again in the middle, and is not removed under its own feet.
	revision, err := term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	want(t, fault.Conflict, other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 1}))
	other = writer(t, s, "host-2")
	want(t, fault.Conflict, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
	must(t, other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 1}))

	revision, err = term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	must(t, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
	want(t, fault.NotFound, third(s.Host(t.Context(), "host-2")))
	want(t, fault.NotFound, third(s.Epoch(t.Context(), "host-2")))
	want(t, fault.NotFound, third(s.MemberPlan(t.Context(), "host-2")))
	want(t, fault.Conflict, other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 2}))
	want(t, fault.NotFound, term.RemovalWaits(t.Context(), "host-2", "nothing"))
	list, listRevision, err := s.Revoked(t.Context())
	must(t, err)
	if !bytes.Equal(list, []byte("list")) || listRevision == 0 {
		t.Errorf("revoked is %q at %d", list, listRevision)
	}
	renewals, err := s.Renewals(t.Context())
	must(t, err)
	for _, r := range renewals {
		if r.Host == "host-2" {
			t.Errorf("its renewal is left: %+v", r)
		}
	}
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t2", SecretHash: []byte("h"), Expires: time.Now().Add(time.Hour)}))
	must(t, w.UseToken(t.Context(), "t2", []byte("h"), store.Joining{Host: "host-2"}))
}

// The agent begins its next epoch between the end of the last one and the leader's look at that.
func TestAnAgentThatStartsWhileItsEpochEndsIsSeen(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	writer(t, s, "host-2")
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	starts := 1
	var other *store.Writer
	term.Intercept(func(done bool) error {
		if done && starts > 0 {
			starts--
			other = writer(t, s, "host-2")
		}
		return nil
	})
	revision, err := term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	want(t, fault.Conflict, other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 1}))
	must(t, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
}

func TestAHostWhoseRemovalWasTakenBackStays(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	other := writer(t, s, "host-2")
	want(t, fault.NotFound, third(term.EndEpoch(t.Context(), "host-2")))
	must(t, other.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 1}))
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	revision, err := term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	must(t, w.CancelRemoval(t.Context(), "host-2"))
	want(t, fault.NotFound, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
	must(t, third(s.Epoch(t.Context(), "host-2")))
}

// A removal has looked whether a VM needs the host: nobody may name it after that.
func TestNoVMIsGivenToAHostThatLeaves(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	writer(t, s, "host-2")
	must(t, w.CreateVM(t.Context(), inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "a"}, Run: inventory.VMRun{Owner: "host-1"}}))
	heir := func(r *inventory.VMRun) error {
		r.Heir = inventory.Heir{Host: "host-2", Migration: "m"}
		return nil
	}
	owner := func(r *inventory.VMRun, _ *inventory.VMPlace) error {
		r.Owner = "host-2"
		return nil
	}
	refused := func() {
		t.Helper()
		t.Log(want(t, fault.Conflict, third(w.NameHeir(t.Context(), "vm-a", "host-2", heir))))
		t.Log(want(t, fault.Conflict, third(term.Reassign(t.Context(), "vm-a", nil, owner))))
	}
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	refused()
	must(t, w.CancelRemoval(t.Context(), "host-2"))
	must(t, third(w.NameHeir(t.Context(), "vm-a", "host-2", heir)))
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	must(t, third(w.NameHeir(t.Context(), "vm-a", "host-2", heir))) // said again: it is named

	// The removal is planned between the look and the write.
	must(t, w.CancelRemoval(t.Context(), "host-2"))
	must(t, third(w.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error { r.Heir = inventory.Heir{}; return nil })))
	planned := false
	term.Intercept(func(done bool) error {
		if !done && !planned {
			planned = true
			must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
		}
		return nil
	})
	t.Log(want(t, fault.Conflict, third(term.Reassign(t.Context(), "vm-a", nil, owner))))
	revision, err := term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	must(t, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
	refused()
}

func third[T any](_ T, err error) error { return err }

func TestAJoinThatCannotBeFinishedIsUndone(t *testing.T) {
	s, w := start(t)
	hour := time.Now().Add(time.Hour)
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t1", SecretHash: []byte("h"), Expires: hour}))
	j := store.Joining{Host: "host-2", Key: []byte("its key"), Certificate: inventory.HostCertificate{Serial: "1", Expires: hour}}
	must(t, w.ReturnToken(t.Context(), "t1", []byte("h"), j)) // nothing to undo
	must(t, w.UseToken(t.Context(), "t1", []byte("h"), j))
	want(t, fault.Denied, w.ReturnToken(t.Context(), "t1", []byte("guess"), j))
	want(t, fault.Denied, w.ReturnToken(t.Context(), "t1", []byte("h"), store.Joining{Host: "host-2", Key: []byte("another")}))
	want(t, fault.Denied, w.ReturnToken(t.Context(), "t9", []byte("h"), j))
	must(t, w.ReturnToken(t.Context(), "t1", []byte("h"), j))
	want(t, fault.NotFound, third(s.Epoch(t.Context(), "host-2")))
	must(t, w.UseToken(t.Context(), "t1", []byte("h"), j)) // it is good again
	writer(t, s, "host-2")                                 // its agent starts
	t.Log(want(t, fault.Conflict, w.ReturnToken(t.Context(), "t1", []byte("h"), j)))
}

// The token of a host that was removed stays spent, also when its name has come back.
func TestAJoinOfARemovedHostIsNotUndone(t *testing.T) {
	s, w := start(t)
	term := lead(t, s, w)
	j := store.Joining{Host: "host-2", Key: []byte("its key")}
	for _, id := range []string{"t1", "t2"} {
		must(t, w.CreateToken(t.Context(), store.Token{ID: id, SecretHash: []byte("h"), Expires: time.Now().Add(time.Hour)}))
	}
	must(t, w.UseToken(t.Context(), "t1", []byte("h"), j))
	must(t, w.PlanRemoval(t.Context(), inventory.Removal{Host: "host-2", Since: time.Now()}))
	revision, err := term.EndEpoch(t.Context(), "host-2")
	must(t, err)
	must(t, term.RemoveHost(t.Context(), "host-2", revision, []byte("list"), 0))
	t.Log(want(t, fault.Conflict, w.ReturnToken(t.Context(), "t1", []byte("h"), j)))
	must(t, w.UseToken(t.Context(), "t2", []byte("h"), j))
	t.Log(want(t, fault.Conflict, w.ReturnToken(t.Context(), "t1", []byte("h"), j)))
	must(t, third(s.Epoch(t.Context(), "host-2")))
	must(t, w.ReturnToken(t.Context(), "t2", []byte("h"), j))
}

func TestTheSealedKeyIsKeptOnce(t *testing.T) {
	s, w := start(t)
	want(t, fault.NotFound, third(s.SealedCA(t.Context())))
	must(t, w.PutSealedCA(t.Context(), []byte("one")))
	must(t, w.PutSealedCA(t.Context(), []byte("two")))
	box, err := s.SealedCA(t.Context())
	must(t, err)
	if string(box) != "one" {
		t.Errorf("it is %q", box)
	}
}
