package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// How full the store may be, in percent of the quota beyond which etcd refuses every write.
//
// Beyond Refuse what users add is refused, and what keeps VMs safe is not: renewals, fences, run records, the ends of what goes on. The
// rest of the quota is theirs. It is wide: the renewals of a thousand hosts write some 12 MB in a minute, and a minute later that is
// compacted.
const (
	FullWarn   = 50 // an alarm
	FullRefuse = 80 // new things are refused
	FullAgain  = 70 // they are taken again
)

// defragMax bounds the defragmentation of one member, which answers nobody meanwhile. etcd copies what is in use, some 100 MB/s.
const defragMax = 30 * time.Second

// Health is how the store is, as each member says of itself. Sizes of members differ: each has its own file.
type Health struct {
	Members  []MemberHealth // ordered by name
	Revision int64          // grows with every write
	Full     string         // why additions are refused; empty: they are not
}

// MemberHealth is how one member is. One that does not answer has Err and no figures.
type MemberHealth struct {
	ID       uint64
	Name     string
	Endpoint string
	Version  string // of etcd
	Leader   bool   // of the members, by raft; Godwit's own leader is another matter
	Learner  bool
	RaftTerm uint64
	Size     inventory.Bytes // of its file, which the quota is about
	InUse    inventory.Bytes // of it; the rest is given back by a defragmentation
	Quota    inventory.Bytes
	NoSpace  bool   // its file has reached the quota: no member takes writes until that is disarmed
	Corrupt  bool   // its data differs from that of the others
	Err      string // why it does not answer
}

// Percent says how full the fullest member is.
func (h Health) Percent() int {
	most := 0
	for _, m := range h.Members {
		most = max(most, m.Percent())
	}
	return most
}

// NoSpace reports whether a member refuses writes.
func (h Health) NoSpace() bool {
	return slices.ContainsFunc(h.Members, func(m MemberHealth) bool { return m.NoSpace })
}

// Percent says how full the member is; 0 when nobody knows its quota.
func (m MemberHealth) Percent() int {
	if m.Quota <= 0 {
		return 0
	}
	return int(m.Size * 100 / m.Quota)
}

// Pays reports whether a defragmentation of the member gives back enough to stop it for: half of a file that is not small, or a tenth of
// one that is close to its quota.
func (m MemberHealth) Pays() bool {
	free := m.Size - m.InUse
	return m.Err == "" && (m.Size > defragmentMegabytes<<20 && free*2 > m.Size || m.Percent() >= FullWarn && free*10 > m.Size)
}

// Health asks every member how it is. It is an error only when the list of the members cannot be had.
func (s *Store) Health(ctx context.Context) (Health, error) {
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	list, err := s.client.MemberList(call)
	if err != nil {
		return Health{}, fault.Wrap("list", "members of the store", s.explain(ctx, err))
	}
	alarms, err := s.client.AlarmList(call)
	if err != nil {
		return Health{}, fault.Wrap("list", "alarms of the store", s.explain(ctx, err))
	}
	full, err := s.get(ctx, keyFull)
	if err != nil {
		return Health{}, err
	}
	h := Health{Revision: full.Header.GetRevision()}
	if len(full.Kvs) > 0 {
		h.Full = string(full.Kvs[0].Value)
	}
	for _, m := range list.Members {
		one := s.member(ctx, m)
		for _, a := range alarms.Alarms {
			if a.GetMemberID() != m.GetID() {
				continue
			}
			switch a.GetAlarm() {
			case etcdserverpb.AlarmType_NOSPACE:
				one.NoSpace = true
			case etcdserverpb.AlarmType_CORRUPT:
				one.Corrupt = true
			case etcdserverpb.AlarmType_NONE:
			}
		}
		h.Members = append(h.Members, one)
	}
	slices.SortFunc(h.Members, func(a, b MemberHealth) int { return cmp.Compare(a.Name, b.Name) })
	return h, nil
}

func (s *Store) member(ctx context.Context, m *etcdserverpb.Member) MemberHealth {
	found := MemberHealth{ID: m.GetID(), Name: m.GetName(), Learner: m.GetIsLearner()}
	if len(m.GetClientURLs()) == 0 {
		found.Err = "it has not started yet"
		return found
	}
	found.Endpoint = m.GetClientURLs()[0]
	within, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	status, err := s.single.Status(within, found.Endpoint)
	if err != nil {
		found.Err = "it does not answer: " + s.explain(ctx, err).Error()
		return found
	}
	found.Version, found.RaftTerm = status.Version, status.RaftTerm
	found.Leader = status.Leader == m.GetID()
	found.Size, found.InUse, found.Quota = inventory.Bytes(status.DbSize), inventory.Bytes(status.DbSizeInUse), inventory.Bytes(status.DbSizeQuota)
	return found
}

// Revision returns the newest revision of the store.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	resp, err := s.get(ctx, keyCluster, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return resp.Header.GetRevision(), nil
}

// Compact forgets the history up to the revision, which makes room in the members' files but does not make them smaller. A watch that is
// further behind begins anew. One that was compacted further already is no error.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if _, err := s.client.Compact(call, revision, clientv3.WithCompactPhysical()); err != nil && !strings.Contains(err.Error(), "has been compacted") {
		return fault.Wrap("compact", "store", s.explain(ctx, err))
	}
	return nil
}

// Defragment makes the file of one member as small as what is in it. The member answers nobody meanwhile, up to seconds: a leader is asked to
// hand over first when another member can take it, and is then left for the next time, which done says.
func (s *Store) Defragment(ctx context.Context, h Health, m MemberHealth) (done bool, err error) {
	if m.Leader {
		for _, other := range h.Members {
			if other.ID != m.ID && !other.Learner && other.Err == "" {
				return false, s.moveLeader(ctx, m, other)
			}
		}
	}
	within, cancel := context.WithTimeout(ctx, defragMax)
	defer cancel()
	if _, err := s.single.Defragment(within, m.Endpoint); err != nil {
		return false, fault.Wrap("defragment", "member "+m.Name+" of the store", s.explain(ctx, err))
	}
	return true, nil
}

// moveLeader must be asked of the leader itself, which the client of all members need not speak to.
func (s *Store) moveLeader(ctx context.Context, from, to MemberHealth) error {
	conf := s.config
	conf.Endpoints = []string{from.Endpoint}
	one, err := Open(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { _ = one.Close() }() // it has done its one call
	call, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if _, err := one.client.MoveLeader(call, to.ID); err != nil {
		return fault.Wrap("move", "leadership of the store to member "+to.Name, one.explain(ctx, err))
	}
	return nil
}

// Rescue frees a store that etcd has closed for writes: it forgets all history, defragments every member, the leader last, and opens the
// store again if all are below their quota. What it could not free is fault.NoResources. Any host may call it, and several at once do no
// harm; hosts renew again as soon as it is done. It needs no write of its own.
func (s *Store) Rescue(ctx context.Context) error {
	revision, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	if err := s.Compact(ctx, revision); err != nil {
		return err
	}
	h, err := s.Health(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(h.Members, func(a, b MemberHealth) int { return cmp.Compare(order(a), order(b)) })
	for _, m := range h.Members {
		if m.Err != "" || m.Size == m.InUse {
			continue
		}
		// Nothing can be written, so nobody misses the leader: it is not asked to hand over.
		if _, err := s.Defragment(ctx, Health{}, m); err != nil {
			return err
		}
	}
	if h, err = s.Health(ctx); err != nil {
		return err
	}
	for _, m := range h.Members {
		if m.Err == "" && m.Percent() >= noSpaceAgain {
			return fault.New(fault.NoResources, "member %s of the store holds %v of %v after all that could be forgotten: give it more room with store-quota in the configuration of every host that carries the store, and start those again one by one", m.Name, m.Size, m.Quota)
		}
	}
	for _, m := range h.Members {
		if !m.NoSpace {
			continue
		}
		call, cancel := context.WithTimeout(ctx, CallTimeout)
		_, err := s.client.AlarmDisarm(call, &clientv3.AlarmMember{MemberID: m.ID, Alarm: etcdserverpb.AlarmType_NOSPACE})
		cancel()
		if err != nil {
			return fault.Wrap("open", "store for writes", s.explain(ctx, err))
		}
	}
	return nil
}

// noSpaceAgain is how full a member may be for writes to begin again. With less between the two, renewals would be refused again at once.
const noSpaceAgain = 95

// order puts the leader last.
func order(m MemberHealth) int {
	if m.Leader {
		return 1
	}
	return 0
}

// SetFull says to all writers that additions are refused, and why; an empty reason takes it back. It compares the leader's term, as every
// write of a leader.
func (t *Term) SetFull(ctx context.Context, why string) error {
	op := clientv3.OpDelete(keyFull)
	if why != "" {
		op = clientv3.OpPut(keyFull, why)
	}
	_, err := t.w.commit(ctx, nil, op)
	return err
}

// refusal reads why additions are refused.
func refusal(value []byte) error {
	return fault.New(fault.NoResources, "the store is almost full (%s), so nothing new is taken: remove VMs that are not needed, and see godwit cluster info", value)
}

// FullText words how full the store is, for SetFull and events.
func (h Health) FullText() string {
	var worst MemberHealth
	for _, m := range h.Members {
		if m.Percent() >= worst.Percent() {
			worst = m
		}
	}
	return fmt.Sprintf("%v of %v, %d %%, at member %s", worst.Size, worst.Quota, worst.Percent(), worst.Name)
}
