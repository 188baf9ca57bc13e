package membership_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/membership"
)

// picture reads a cluster as a line: "h1:V h2:v h3:L h4 w5 !h6 -h7:V". A machine is h or w (witness), "!" does not answer, "~" has not for too
// long, "-" is to be removed; V votes, L learns, and a small letter does not answer. A member alone, as in "?h8:v", is of no host of the cluster.
func picture(t *testing.T, line string) (machines []membership.Machine, members []membership.Member) {
	t.Helper()
	for n, word := range strings.Fields(line) {
		name, member, carries := strings.Cut(word, ":")
		mark := name[0]
		name = strings.TrimLeft(name, "!~-?")
		m := membership.Machine{
			Host: inventory.HostID(name), Witness: name[0] == 'w', Up: mark != '!' && mark != '~', Lost: mark == '~', Leaving: mark == '-',
		}
		if strings.HasPrefix(word, "-!") {
			m.Up = false
		}
		if mark != '?' {
			machines = append(machines, m)
		}
		if carries {
			members = append(members, membership.Member{
				ID: uint64(n + 1), Host: m.Host, Learner: strings.EqualFold(member, "l"), Answers: member == strings.ToUpper(member), Lost: mark == '~',
			})
		}
	}
	return machines, members
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ now, want string }{
		// how many
		{"h1:V", ""},
		{"h1:V h2", ""},
		{"h1:V w2", ""},
		{"h1:V h2 h3", "add h2"},
		{"h1:V h2 w3", "add w3"},
		{"h1:V h2 !h3", "waits: 1 more machines"},
		{"h1:V h2:V h3", "add h3"},
		{"h1:V h2:V !h3", "waits: 1 more machines"},
		{"h1:V h2:V h3:V", ""},
		{"h1:V h2:V h3:V h4", ""},
		{"h1:V h2:V h3:V h4 h5", "add h4"},
		{"h1:V h2:V h3:V h4:V h5", "add h5"},
		{"h1:V h2:V h3:V h4:V h5:V h6", ""},
		// a learner first settles
		{"h1:V h2:L h3", "promote h2"},
		{"h1:V h2:l h3", "waits: the new member of host h2"},
		{"h1:V -h2:L h3 h4", "remove h2"},
		{"h1:V ~h2:l h3 h4", "remove h2"},
		{"h1:V ?h9:l h3 h4", "remove h9"},
		{"h1:v h2:V ~h3:l", "waits: the new member of host h3 has to wait: 1 of 2 members answer"},
		// somebody is silent: not for long, too long, and nobody to take the place
		{"h1:V h2:V !h3:v h4", ""},
		{"h1:V h2:V ~h3:v h4", "remove h3"},
		{"h1:V h2:V ~h3:v", "waits: the store wants 3 members and has 2"},
		{"h1:V h2:V h4 ~h3", "add h4"},
		{"h1:V h2:v h3 h4", "waits: another one is added when all answer"},
		{"h1:V ~h2:v ~h3:v h4 h5", "waits: another one is added when all answer"}, // no majority: nothing is possible
		{"h1:V h2:V h3:V ~h4:v ~h5:v h6", "remove h4"},
		// somebody leaves
		{"-h1:V h2", "add h2"},
		{"-h1:V h2:V", "remove h1"},
		{"-h1:V !h2", "waits: 1 more machines"},
		{"-h1:V h2:V h3:V h4", "add h4"},
		{"-h1:V h2:V h3:V h4:V", "remove h1"},
		{"-!h1:v h2:V h3:V h4", "remove h1"},
		{"-!h1:v h2:V h3:V", "remove h1"},
		{"?h1:v h2:V h3:V", "remove h1"},
		{"-h1:V h2:V h3:V", "remove h1"}, // two machines stay: one member is enough
		{"h2:V h3:V", "remove h3"},
		{"h2:V w3:V", "remove w3"},
		{"h2:V h3:v", "waits: 1 members are enough"},
		{"h1:V h2:V h3:V h4:V", "remove h4"},
		{"h1:V h2:V h3:V w4:V", "remove h3"},
		{"-h1:V w2", "add w2"},
	} {
		machines, members := picture(t, c.now)
		step := membership.Next(machines, members)
		got := strings.TrimSpace(fmt.Sprintf("%s %s", step.Kind, step.Host))
		if got == "" && step.Why != "" {
			got = "waits: " + step.Why
		}
		ok := got == c.want
		if after, waits := strings.CutPrefix(c.want, "waits: "); waits {
			ok = step.Kind == membership.Nothing && strings.Contains(step.Why, after)
		}
		if !ok {
			t.Errorf("%q: %q (%s), want %q", c.now, got, step.Why, c.want)
		}
		slices.Reverse(machines)
		slices.Reverse(members)
		if again := membership.Next(machines, members); again != step {
			t.Errorf("%q in another order: %+v, not %+v", c.now, again, step)
		}
	}
}

// Whatever happens to the machines, no step takes the quorum away, and once they hold still the steps come to an end with as many members as
// are wanted.
func TestStepsEndAndKeepTheQuorum(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var machines []membership.Machine
		n := rapid.IntRange(1, 8).Draw(r, "machines")
		for i := range n {
			machines = append(machines, membership.Machine{Host: inventory.HostID(fmt.Sprint("h", i)), Up: true})
		}
		members := []membership.Member{{ID: 1, Host: "h0", Answers: true}}
		next := uint64(1)
		stay := func(limit int) {
			for range limit {
				step := membership.Next(machines, members)
				switch step.Kind {
				case membership.Nothing:
					return
				case membership.Add:
					next++
					members = append(members, membership.Member{ID: next, Host: step.Host, Learner: true, Answers: true})
				case membership.Promote, membership.Remove:
					i := slices.IndexFunc(members, func(m membership.Member) bool { return m.ID == step.Member })
					if step.Kind == membership.Promote {
						members[i].Learner = false
						continue
					}
					members = slices.Delete(members, i, i+1)
				}
				voters, answering := 0, 0
				for _, m := range members {
					if !m.Learner {
						voters++
					}
					if !m.Learner && m.Answers {
						answering++
					}
				}
				if step.Kind == membership.Remove && answering < voters/2+1 {
					r.Fatalf("%+v leaves %d of %d", step, answering, voters)
				}
			}
			if limit > 20 {
				r.Fatalf("the steps do not end: %+v %+v", machines, members)
			}
		}
		for range rapid.IntRange(0, 12).Draw(r, "events") {
			i := rapid.IntRange(0, len(machines)-1).Draw(r, "who")
			m := &machines[i]
			switch rapid.SampledFrom([]string{"down", "lost", "up", "leave", "work"}).Draw(r, "what") {
			case "down":
				m.Up, m.Lost = false, false
			case "lost":
				m.Up, m.Lost = false, true
			case "up":
				m.Up, m.Lost = true, false
			case "leave":
				m.Leaving = true
			case "work":
				stay(rapid.IntRange(0, 4).Draw(r, "steps"))
			}
			for j := range members {
				if members[j].Host == m.Host {
					members[j].Answers, members[j].Lost = m.Up, m.Lost
				}
			}
		}
		up := 0
		for i := range machines {
			machines[i].Up, machines[i].Lost = true, false
			if !machines[i].Leaving {
				up++
			}
		}
		for j := range members {
			members[j].Answers, members[j].Lost = true, false
		}
		stay(40)
		if voters := len(members); up > 0 && voters != membership.Wanted(up) {
			r.Fatalf("%d machines stay and there are %d members: %+v", up, voters, members)
		}
	})
}
