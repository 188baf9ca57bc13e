package main

import (
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/host"
	"github.com/godwit-vm/godwit/internal/driver/store"
)

// leaderLoops returns what makes the loops of a term, one line for each.
func leaderLoops(a *agent.Agent, c *hostConfig, r roleRun) func(*store.Term) []cluster.Loop {
	return func(*store.Term) []cluster.Loop {
		loops := []cluster.Loop{
			&cluster.Fencer{Settings: authoritySettings(r.set), Now: host.Boottime, Log: r.log},
			&cluster.Recoverer{Heirs: a.LeaderCalls(), Log: r.log},
			&cluster.Plans{Kinds: cluster.Steps(), Tell: cluster.TellPlan, Log: r.log},
			&cluster.Removals{Store: a.Store, CA: a.SigningCA, Revoked: a.Identity.Revoked, Event: a.Keeper().Event, Log: r.log},
		}
		if c.Foreign {
			return loops // its members and its upkeep are its owner's
		}
		return append(loops,
			&cluster.Upkeep{Store: a.Store, Event: a.Keeper().Event, Log: r.log},
			&cluster.Members{Store: a.Store, Answers: a.Reachable, ReplaceAfter: r.set.ReplaceAfter, Event: a.Keeper().Event, Log: r.log},
		)
	}
}
