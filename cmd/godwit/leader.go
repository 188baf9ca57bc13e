package main

import (
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/store"
)

// leaderLoops returns what makes the loops of a term, one line for each.
func leaderLoops(_ *agent.Agent, _ *hostConfig, _ roleRun) func(*store.Term) []cluster.Loop {
	return func(*store.Term) []cluster.Loop {
		return nil
	}
}
