package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/membership"
)

// Members is the loop that places the members of the store: policy/membership says the next step, which is in the store as a plan before it is
// taken. Each step may be taken twice. The hosts follow the plans (control/carry).
type Members struct {
	Store        *store.Store
	Answers      func(ctx context.Context, address string) bool // whether a host's agent answers
	ReplaceAfter time.Duration                                  // after how long a silence a member is replaced
	Event        func(context.Context, inventory.Event)
	Log          *slog.Logger

	silent  map[string]time.Time // since when whom has not answered this leader
	voters  string               // as this leader has seen them last
	settled time.Time            // since when
	said    string
}

const (
	membersEvery = time.Second
	// followMax is how long a host takes to learn of new members. Before that a member that answers is not removed, since it may be the
	// only one that somebody knows.
	followMax = 3 * time.Second
	stepMax   = 15 * time.Second
)

// Name implements Loop.
func (m *Members) Name() string { return "members" }

// Run implements Loop.
func (m *Members) Run(ctx context.Context, term *store.Term) error {
	if m.silent == nil { // a run that begins again goes on counting
		m.silent = map[string]time.Time{}
	}
	tick := time.NewTicker(membersEvery)
	defer tick.Stop()
	for {
		within, done := context.WithTimeout(ctx, stepMax)
		err := m.look(within, term)
		done()
		if err != nil && !fault.Is(err, fault.Unavailable) {
			return err
		}
		if err != nil {
			m.say(ctx, err.Error())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// say logs what is waited for, once.
func (m *Members) say(ctx context.Context, what string) {
	if what != m.said && what != "" && ctx.Err() == nil {
		m.Log.LogAttrs(ctx, slog.LevelInfo, "members of the store", slog.String("waits", what))
	}
	m.said = what
}

// scene is what the loop knows at one look.
type scene struct {
	hosts    map[inventory.HostID]inventory.Host
	plans    map[inventory.HostID]inventory.MemberPlan
	members  []store.Member
	machines []membership.Machine
}

// look takes the next step.
func (m *Members) look(ctx context.Context, term *store.Term) error {
	s, err := m.survey(ctx)
	if err != nil {
		return err
	}
	if err := m.agree(ctx, term, s); err != nil {
		return err
	}
	step := membership.Next(s.machines, m.standing(ctx, s))
	switch step.Kind {
	case membership.Nothing:
		m.say(ctx, step.Why)
		return nil
	case membership.Add:
		err = m.add(ctx, term, s.hosts[step.Host], step.Why)
	case membership.Promote:
		err = m.promote(ctx, term, s, step)
	case membership.Remove:
		err = m.remove(ctx, term, s, step)
	}
	return err
}

// survey reads hosts, plans and members, and asks each host whether it answers.
func (m *Members) survey(ctx context.Context) (scene, error) {
	s := scene{hosts: map[inventory.HostID]inventory.Host{}, plans: map[inventory.HostID]inventory.MemberPlan{}}
	hosts, err := m.Store.Hosts(ctx)
	if err != nil {
		return s, err
	}
	plans, err := m.Store.MemberPlans(ctx)
	if err != nil {
		return s, err
	}
	removals, err := m.Store.Removals(ctx)
	if err != nil {
		return s, err
	}
	if s.members, err = m.Store.Members(ctx); err != nil {
		return s, err
	}
	for _, p := range plans {
		s.plans[p.Host] = p
	}
	for i, member := range s.members {
		s.members[i].Host = hostOf(member, hosts, plans)
	}
	var asked sync.WaitGroup
	answers := make([]bool, len(hosts))
	for i, h := range hosts {
		s.hosts[h.ID] = h
		asked.Go(func() { answers[i] = m.Answers(ctx, h.Spec.Address) })
	}
	asked.Wait()
	for i, h := range hosts {
		if h.Spec.StorePeer == "" {
			continue
		}
		machine := membership.Machine{Host: h.ID, Witness: h.Spec.Witness, Up: answers[i], Lost: m.lost("host "+string(h.ID), answers[i])}
		if j := slices.IndexFunc(removals, func(r inventory.Removal) bool { return r.Host == h.ID }); j >= 0 {
			machine.Leaving = true
			machine.Up = machine.Up && !removals[j].Force
		}
		s.machines = append(s.machines, machine)
	}
	return s, nil
}

// hostOf returns whose a member is: by its name, or, before it has started, by its plan or its URL.
func hostOf(m store.Member, hosts []inventory.Host, plans []inventory.MemberPlan) inventory.HostID {
	if m.Host != "" {
		return m.Host
	}
	for _, p := range plans {
		if p.ID == m.ID {
			return p.Host
		}
	}
	for _, h := range hosts {
		if h.Spec.StorePeer == m.Peer {
			return h.ID
		}
	}
	return ""
}

// lost notes whether somebody answers, and reports whether nobody has answered this leader for too long.
func (m *Members) lost(who string, answers bool) bool {
	if answers {
		delete(m.silent, who)
		return false
	}
	if m.silent[who].IsZero() {
		m.silent[who] = time.Now()
	}
	return time.Since(m.silent[who]) >= m.ReplaceAfter
}

// standing asks each member whether it answers.
func (m *Members) standing(ctx context.Context, s scene) []membership.Member {
	answers := make([]bool, len(s.members))
	var asked sync.WaitGroup
	var voters []string
	for i, member := range s.members {
		asked.Go(func() { answers[i] = m.Store.Answers(ctx, member) })
		if !member.Learner {
			voters = append(voters, fmt.Sprint(member.ID))
		}
	}
	asked.Wait()
	if now := strings.Join(voters, " "); now != m.voters {
		m.voters, m.settled = now, time.Now()
	}
	all := make([]membership.Member, len(s.members))
	for i, member := range s.members {
		all[i] = membership.Member{
			ID: member.ID, Host: member.Host, Learner: member.Learner, Answers: answers[i], Lost: m.lost(fmt.Sprint("member ", member.ID), answers[i]),
		}
	}
	return all
}

// agree brings the plans to what etcd has: another leader may have been stopped between a step and its record, and the member that founded the
// store has no plan at first.
func (m *Members) agree(ctx context.Context, term *store.Term, s scene) error {
	there := map[uint64]bool{}
	for _, member := range s.members {
		there[member.ID] = true
		host, known := s.hosts[member.Host]
		plan := s.plans[member.Host]
		switch {
		case !known:
		case member.Learner && plan.ID != member.ID:
			if err := m.add(ctx, term, host, plan.Why); err != nil && !fault.Is(err, fault.Exists) { // one that has started needs no plan to vote
				return err
			}
		case !member.Learner && (plan.ID != member.ID || plan.State == inventory.MemberJoining):
			plan.Host, plan.ID, plan.Peer, plan.State, plan.Since = member.Host, member.ID, member.Peer, inventory.MemberVoting, time.Now()
			if err := term.PutMemberPlan(ctx, plan); err != nil {
				return err
			}
		}
	}
	for host, plan := range s.plans {
		if plan.ID != 0 && !there[plan.ID] && !slices.ContainsFunc(s.members, func(o store.Member) bool { return o.Host == host }) {
			if err := term.DropMemberPlan(ctx, host); err != nil {
				return err
			}
		}
	}
	return nil
}

// add plans a member, makes room for it in the store, and tells its host what to start it with.
func (m *Members) add(ctx context.Context, term *store.Term, host inventory.Host, why string) error {
	plan := inventory.MemberPlan{Host: host.ID, State: inventory.MemberJoining, Peer: host.Spec.StorePeer, Why: why, Since: time.Now()}
	if err := term.PutMemberPlan(ctx, plan); err != nil {
		return err
	}
	member, join, err := term.AddMember(ctx, plan.Peer, host.ID)
	if err != nil {
		return err
	}
	plan.ID, plan.Join = member.ID, join
	if err := term.PutMemberPlan(ctx, plan); err != nil {
		return err
	}
	m.Log.LogAttrs(ctx, slog.LevelInfo, "member of the store added", slog.String("at", string(host.ID)), slog.String("why", why))
	return nil
}

func (m *Members) promote(ctx context.Context, term *store.Term, s scene, step membership.Step) error {
	if err := term.Promote(ctx, step.Member); err != nil {
		return err
	}
	plan := s.plans[step.Host]
	plan.State, plan.Since = inventory.MemberVoting, time.Now()
	if err := term.PutMemberPlan(ctx, plan); err != nil {
		return err
	}
	m.event(ctx, step.Host, "store.member-added", "host "+string(step.Host)+" carries a member of the store: "+plan.Why)
	return nil
}

// remove takes a member out. One that answers is given its time until all hosts know the others.
func (m *Members) remove(ctx context.Context, term *store.Term, s scene, step membership.Step) error {
	if time.Since(m.settled) < followMax {
		return nil
	}
	_, known := s.hosts[step.Host]
	if known {
		plan := s.plans[step.Host]
		plan.Host, plan.State, plan.Why, plan.Since = step.Host, inventory.MemberLeaving, step.Why, time.Now()
		if plan.ID == 0 {
			plan.ID = step.Member
		}
		if err := term.PutMemberPlan(ctx, plan); err != nil {
			return err
		}
	}
	if err := term.RemoveMember(ctx, step.Member); err != nil {
		return err
	}
	if known {
		if err := term.DropMemberPlan(ctx, step.Host); err != nil {
			return err
		}
	}
	m.event(ctx, step.Host, "store.member-removed", "host "+string(step.Host)+" carries no member of the store any more: "+step.Why)
	return nil
}

func (m *Members) event(ctx context.Context, host inventory.HostID, kind, message string) {
	m.Log.LogAttrs(ctx, slog.LevelInfo, "members of the store", slog.String("changed", message))
	m.Event(ctx, inventory.Event{Kind: kind, Object: string(host), ObjectName: string(host), Message: message})
}
