package agent

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/handover"
	"github.com/godwit-vm/godwit/internal/wire"
)

// terms remembers the highest term of a leader that has called this host.
type terms struct {
	mu      sync.Mutex
	highest uint64
}

// hear takes the term of a call, 0 for a call that is not a leader's.
func (t *terms) hear(term uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term != 0 && term < t.highest {
		return fault.New(fault.Conflict, "term %d is over: a leader of term %d has called since", term, t.highest)
	}
	t.highest = max(t.highest, term)
	return nil
}

// HeardTerm takes the term that a leader's call carries; 0 is a call of nobody's term. A call of an earlier leader than the last one that
// called is refused with fault.Conflict.
func (a *Agent) HeardTerm(term uint64) error { return a.terms.hear(term) }

// LeaderCalls is what the leader asks other hosts, over the API of this one's agent.
type LeaderCalls struct{ agent *Agent }

// LeaderCalls returns what the leader's loops on this host ask others with.
func (a *Agent) LeaderCalls() LeaderCalls { return LeaderCalls{a} }

// Discard implements cluster.Discards.
func (c LeaderCalls) Discard(ctx context.Context, heir inventory.HostID, id inventory.MigrationID, source inventory.HostID, term uint64) (bool, error) {
	if heir == c.agent.Host() {
		if err := c.agent.HeardTerm(term); err != nil {
			return false, err
		}
		answer, err := c.agent.Discard(ctx, id, source, 0)
		return answer == handover.AnswerDiscarded, err
	}
	web, base, err := c.agent.Reach(ctx, heir)
	if err != nil {
		return false, err
	}
	resp, err := godwitv1connect.NewHandoverServiceClient(web, base).Discard(ctx, connect.NewRequest(&godwitv1.DiscardRequest{
		Migration: string(id), Source: string(source), Term: term,
	}))
	if err != nil {
		return false, wire.FromFault(err)
	}
	// One that is lost was booted since: its boot id says so, and no word of it is needed.
	return resp.Msg.GetAnswer() == godwitv1.DiscardResponse_ANSWER_DISCARDED, nil
}
