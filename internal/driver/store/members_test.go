package store_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// membersSubnet keeps the members' ports apart from those of other tests.
const membersSubnet = "127.83.19."

// cohort is a store of several members, each with the identity of a host of its own.
type cohort struct {
	dir     string
	ca      *peer.CA
	members map[inventory.HostID]*member
	store   *store.Store
	term    *store.Term
}

// found makes a store with one member and a term for its first host.
func found(t *testing.T) *cohort {
	t.Helper()
	c := &cohort{dir: t.TempDir(), members: map[inventory.HostID]*member{}}
	certs := filepath.Join(c.dir, "host-1")
	id, err := peer.Init(certs, "test", "host-1", []string{membersSubnet + "1"})
	must(t, err)
	c.ca, err = peer.LoadCA(certs)
	must(t, err)
	c.launch(t, id, "")
	c.store = c.members["host-1"].open(t)
	must(t, c.store.Admit(t.Context(), "host-1"))
	epoch, _, err := c.store.NextEpoch(t.Context(), "host-1", "boot")
	must(t, err)
	c.term, err = c.store.Lead(t.Context(), "host-1", epoch.Epoch)
	must(t, err)
	t.Cleanup(c.term.End)
	return c
}

func address(host inventory.HostID) string {
	var n int
	_, _ = fmt.Sscanf(string(host), "host-%d", &n) // the names are this file's
	return fmt.Sprint(membersSubnet, n)
}

func peerURL(host inventory.HostID) string {
	return "https://" + net.JoinHostPort(address(host), "2380")
}

// launch starts the member of a host and returns when it answers.
func (c *cohort) launch(t *testing.T, id *peer.Identity, join string) {
	t.Helper()
	certs := filepath.Join(c.dir, string(id.Host()))
	m := &member{identity: id, config: store.ServerConfig{
		Name: string(id.Host()), Dir: filepath.Join(c.dir, string(id.Host())+"-store"), Join: join,
		ClientURL: "https://" + net.JoinHostPort(address(id.Host()), "2379"), PeerURL: peerURL(id.Host()),
		CAFile: filepath.Join(certs, peer.CACertificateFile), CertFile: filepath.Join(certs, peer.CertificateFile),
		KeyFile: filepath.Join(certs, peer.KeyFile), LogFile: filepath.Join(c.dir, string(id.Host())+".log"),
	}}
	c.members[id.Host()] = m
	t.Cleanup(func() { m.halt(t) })
	m.start(t)
}

// add makes the host's member listen, and vote when it has caught up.
func (c *cohort) add(t *testing.T, host inventory.HostID) store.Member {
	t.Helper()
	request, err := peer.NewRequest(host)
	must(t, err)
	certificate, err := c.ca.Sign(request.CSR(), host, []string{address(host)})
	must(t, err)
	id, err := request.Save(filepath.Join(c.dir, string(host)), c.ca.Certificate(), certificate)
	must(t, err)
	var added, again store.Member
	var join, joinAgain string
	c.eventually(t, "add "+string(host), func(ctx context.Context) error {
		added, join, err = c.term.AddMember(ctx, peerURL(host), host)
		return err
	})
	c.eventually(t, "add again "+string(host), func(ctx context.Context) error {
		again, joinAgain, err = c.term.AddMember(ctx, peerURL(host), host)
		return err
	})
	if again != added || joinAgain != join {
		t.Errorf("added again it is %+v (%s), not %+v (%s)", again, joinAgain, added, join)
	}
	c.launch(t, id, join)
	c.eventually(t, "promote "+string(host), func(ctx context.Context) error { return c.term.Promote(ctx, added.ID) })
	c.eventually(t, "promote again "+string(host), func(ctx context.Context) error { return c.term.Promote(ctx, added.ID) })
	return c.member(t, host)
}

func (c *cohort) member(t *testing.T, host inventory.HostID) store.Member {
	t.Helper()
	all, err := c.store.Members(t.Context())
	must(t, err)
	i := slices.IndexFunc(all, func(m store.Member) bool { return m.Host == host })
	if i < 0 {
		t.Fatalf("%s has no member: %+v", host, all)
	}
	return all[i]
}

// eventually repeats what may have to wait for etcd: it wants members to have been connected for five seconds before it changes their number.
func (c *cohort) eventually(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(40 * time.Second)
	for {
		err := do(t.Context())
		if err == nil {
			return
		}
		if !fault.Is(err, fault.Unavailable) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: still %v", what, err)
		}
	}
}

// The agent follows the members and dials others in the same moment as the leader asks each whether it answers: a call to one member has nothing to do
// with where the others are looked for. The race detector is the judge.
func TestAMemberIsAskedWhileTheMembersChange(t *testing.T) {
	s := found(t).store
	all, err := s.Members(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	url := all[0].Client
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			if !s.Answers(t.Context(), all[0]) {
				t.Error("it does not answer")
			}
		}
	}()
	for i := 0; ; i++ {
		s.SetEndpoints([]string{url, url}[:1+i%2])
		select {
		case <-done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// A store grows from one member to three and to five, loses two for good, among them the first, and goes on without them; whoever follows
// the members is never without the store.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	c := found(t)
	w := writer(t, c.store, "host-2")
	for n, host := range []inventory.HostID{"host-2", "host-3", "host-4", "host-5"} {
		if m := c.add(t, host); m.Learner || !c.store.Answers(t.Context(), m) {
			t.Errorf("%s is %+v and answers %v", host, m, c.store.Answers(t.Context(), m))
		}
		all, err := c.store.Members(t.Context())
		must(t, err)
		if urls := store.Voters(all); len(urls) != n+2 {
			t.Fatalf("the voters are %v", urls)
		}
		c.store.SetEndpoints(store.Voters(all))
	}
	gone := []store.Member{c.member(t, "host-1"), c.member(t, "host-2")}
	for _, m := range gone {
		c.members[m.Host].halt(t) // and never comes back
	}
	c.eventually(t, "write without two of five", func(ctx context.Context) error {
		return w.PutHostStatus(ctx, inventory.HostStatus{VMs: 2})
	})
	for _, m := range gone {
		if c.store.Answers(t.Context(), m) {
			t.Errorf("%s does not run and answers", m.Host)
		}
		c.eventually(t, "remove "+string(m.Host), func(ctx context.Context) error { return c.term.RemoveMember(ctx, m.ID) })
		c.eventually(t, "remove again "+string(m.Host), func(ctx context.Context) error { return c.term.RemoveMember(ctx, m.ID) })
	}
	all, err := c.store.Members(t.Context())
	must(t, err)
	c.store.SetEndpoints(store.Voters(all))
	c.members["host-3"].halt(t) // which leaves two of three
	c.eventually(t, "write without one of three", func(ctx context.Context) error {
		return w.PutHostStatus(ctx, inventory.HostStatus{VMs: 3})
	})
	if s := c.store.Endpoints(); len(s) != 3 {
		t.Errorf("it dials %v", s)
	}

	// One that was removed comes back with its old files, and is told.
	c.members["host-3"].start(t)
	old := c.members["host-2"]
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { ended <- store.Serve(ctx, old.config) }()
	select {
	case err := <-ended:
		t.Log(want(t, fault.Denied, err))
	case <-time.After(30 * time.Second):
		t.Error("a removed member runs on")
		stop()
		<-ended
	}
}

// A member whose files are gone does not begin again under its name.
func TestAMemberDoesNotForget(t *testing.T) {
	m := startMember(t)
	m.halt(t)
	must(t, store.RemoveData(filepath.Join(m.config.Dir, "member")))
	want(t, fault.Conflict, store.Serve(t.Context(), m.config))
	must(t, store.RemoveData(m.config.Dir)) // on purpose
	m.config.MemberID = 7                   // the host remembers that it founded the store
	t.Log(want(t, fault.Conflict, store.Serve(t.Context(), m.config)))
	m.config.MemberID = 0
	m.start(t)
}
