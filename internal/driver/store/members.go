package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Member is a member of the store as etcd knows it.
type Member struct {
	ID      uint64           // never used twice
	Host    inventory.HostID // empty until it has started for the first time
	Peer    string           // URL at which the other members reach it
	Client  string           // URL at which clients do; empty until it has started
	Learner bool             // it only listens, and does not count for the quorum
}

// memberCallTimeout bounds one change of the membership, and memberAskTimeout a question to one member.
const (
	memberCallTimeout = 4 * time.Second
	memberAskTimeout  = time.Second
)

// Endpoints returns the URLs at which this Store looks for members now.
func (s *Store) Endpoints() []string { return s.client.Endpoints() }

// SetEndpoints makes this Store look for members elsewhere, from the next call on. Calls that are under way are not disturbed unless their
// member is no longer among them; watches begin again. None at all is ignored.
func (s *Store) SetEndpoints(urls []string) {
	if len(urls) > 0 && !slices.Equal(urls, s.client.Endpoints()) {
		s.client.SetEndpoints(urls...)
	}
}

// Members returns the store's members by one linearisable read, ordered by host.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	call, cancel := context.WithTimeout(ctx, memberCallTimeout)
	defer cancel()
	resp, err := s.client.MemberList(call)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	return membersOf(resp.Members), nil
}

// Voters returns the URLs at which clients reach the members that vote, in a fixed order: what a host dials.
func Voters(members []Member) []string {
	var urls []string
	for _, m := range members {
		if m.Client != "" && !m.Learner {
			urls = append(urls, m.Client)
		}
	}
	slices.Sort(urls)
	return urls
}

// Answers reports whether that very member answers now.
func (s *Store) Answers(ctx context.Context, m Member) bool {
	if m.Client == "" {
		return false
	}
	call, cancel := context.WithTimeout(ctx, memberAskTimeout)
	defer cancel()
	resp, err := s.single.Status(call, m.Client)
	return err == nil && resp.Header.GetMemberId() == m.ID
}

// AddMember makes room for one more member at that peer URL, which listens and does not vote until Promote. It returns the member and what
// ServerConfig.Join of its process has to be. One that is there already at that URL, and has never started, is returned as it is; one that
// has started is fault.Exists. It is fault.Unavailable when etcd holds the store not well enough for a change, or has a learner already: try again later.
//
// etcd compares neither epoch nor term here: a leader that was replaced may still do this once. Its plan was in the store before, so the
// next leader finds what it did.
func (t *Term) AddMember(ctx context.Context, peer string, host inventory.HostID) (m Member, join string, err error) {
	if err := t.check(); err != nil {
		return m, "", err
	}
	call, cancel := context.WithTimeout(ctx, memberCallTimeout)
	defer cancel()
	resp, err := t.w.s.client.MemberAddAsLearner(call, []string{peer})
	var all []Member
	switch {
	case err == nil:
		all = membersOf(resp.Members)
	case errors.Is(rpctypes.Error(err), rpctypes.ErrPeerURLExist), errors.Is(rpctypes.Error(err), rpctypes.ErrMemberExist):
		if all, err = t.w.s.Members(ctx); err != nil {
			return m, "", err
		}
	default:
		return m, "", t.refused(ctx, "add member of host "+string(host), err)
	}
	i := slices.IndexFunc(all, func(m Member) bool { return m.Peer == peer })
	if i < 0 {
		return m, "", fault.New(fault.Conflict, "add member of host %s: it was removed meanwhile", host)
	}
	if m = all[i]; m.Host != "" || !m.Learner {
		return m, "", fault.New(fault.Exists, "add member of host %s: %s is the member of %s already", host, peer, m.Host)
	}
	names := []string{string(host) + "=" + peer}
	for _, other := range all {
		if other.ID != m.ID && other.Host != "" {
			names = append(names, string(other.Host)+"="+other.Peer)
		}
	}
	return m, strings.Join(names, ","), nil
}

// Promote makes a learner vote. It is fault.Unavailable while the learner has not caught up.
func (t *Term) Promote(ctx context.Context, id uint64) error {
	if err := t.check(); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, memberCallTimeout)
	defer cancel()
	_, err := t.w.s.client.MemberPromote(call, id)
	if errors.Is(rpctypes.Error(err), rpctypes.ErrMemberNotLearner) {
		return nil
	}
	return t.refused(ctx, "promote member", err)
}

// RemoveMember takes a member out of the store for good. One that is not there is what was wanted. etcd refuses what would cost the quorum.
func (t *Term) RemoveMember(ctx context.Context, id uint64) error {
	if err := t.check(); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, memberCallTimeout)
	defer cancel()
	_, err := t.w.s.client.MemberRemove(call, id)
	if errors.Is(rpctypes.Error(err), rpctypes.ErrMemberNotFound) {
		return nil
	}
	return t.refused(ctx, "remove member", err)
}

// check refuses what a term that is known to be over would do outside a transaction.
func (t *Term) check() error {
	select {
	case <-t.Over():
		return t.refusal()
	default:
		return nil
	}
}

// refused explains why etcd did not change the membership.
func (t *Term) refused(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	for _, wait := range []error{
		rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrMemberLearnerNotReady, rpctypes.ErrTooManyLearners,
	} {
		if errors.Is(rpctypes.Error(err), wait) {
			return fault.New(fault.Unavailable, "%s: not yet: %s", what, status.Convert(err).Message())
		}
	}
	return fault.Wrap("", what, t.w.s.explain(ctx, err))
}

func membersOf(list []*etcdserverpb.Member) []Member {
	all := make([]Member, 0, len(list))
	for _, m := range list {
		one := Member{ID: m.GetID(), Host: inventory.HostID(m.GetName()), Learner: m.GetIsLearner()}
		if urls := m.GetPeerURLs(); len(urls) > 0 {
			one.Peer = urls[0]
		}
		if urls := m.GetClientURLs(); len(urls) > 0 {
			one.Client = urls[0]
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(string(a.Host), string(b.Host)) })
	return all
}
