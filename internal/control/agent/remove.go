package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// removalEvery is how often RemoveHost looks how far the leader is.
const removalEvery = 250 * time.Millisecond

// RemoveHost takes a host out of the cluster: the leader moves its member of the store, takes back its certificates, and forgets it. It is
// refused, with every reason, while something needs the host. force says that the host is dead, which must have been proven. It returns when
// the host is out. It does not end with its caller: the plan is taken back when its task is canceled, or the agent ends.
func (a *Agent) RemoveHost(ctx context.Context, host inventory.HostID, force bool) error {
	return a.tasks.Run(ctx, "host.remove", string(host), string(host), func(ctx context.Context, t *task.Task) error {
		if err := a.mayRemove(ctx, host, force); err != nil {
			return fault.Wrap("remove", "host "+string(host), err)
		}
		plan := inventory.Removal{Host: host, Force: force, By: caller(ctx), Since: time.Now()}
		if err := a.writer.PlanRemoval(ctx, plan); err != nil {
			return err
		}
		err := a.removed(ctx, host, t)
		if err != nil {
			back, done := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
			defer done()
			_ = a.writer.CancelRemoval(back, host) // err says what matters, and the plan can be seen
		}
		return err
	})
}

// removed returns when the leader has done it.
func (a *Agent) removed(ctx context.Context, host inventory.HostID, t *task.Task) error {
	tick := time.NewTicker(removalEvery)
	defer tick.Stop()
	for {
		_, err := a.Store.Epoch(ctx, host)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if plans, err := a.Store.Removals(ctx); err == nil {
			planned := false
			for _, p := range plans {
				if p.Host == host {
					planned = true
					t.Progress(0, 0, p.Waits)
				}
			}
			if !planned {
				if _, err := a.Store.Epoch(ctx, host); fault.Is(err, fault.NotFound) {
					return nil
				}
				return fault.New(fault.Canceled, "remove host %s: somebody took it back", host)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.New(fault.Canceled, "remove host %s: %w", host, ctx.Err())
		}
	}
}

// mayRemove returns every reason why a host cannot be taken out now.
func (a *Agent) mayRemove(ctx context.Context, host inventory.HostID, force bool) error {
	epoch, err := a.Store.Epoch(ctx, host)
	if err != nil {
		return err
	}
	hosts, err := a.Hosts(ctx)
	if err != nil {
		return err
	}
	vms, err := a.Store.VMs(ctx)
	if err != nil {
		return err
	}
	var bad []string
	var it HostView
	others := false // one that can carry the store
	for _, h := range hosts {
		if h.ID == host {
			it = h
		} else if h.Answers && h.Spec.StorePeer != "" {
			others = true
		}
	}
	if host == a.Host() {
		bad = append(bad, "it is the host that you ask: ask another one")
	}
	switch {
	case !force && epoch.Epoch > 0 && !it.Answers:
		bad = append(bad, fmt.Sprintf("it does not answer: start it, or, if it is dead, say so with godwit host confirm-dead %s and take it out with --force", host))
	case force && it.Answers:
		bad = append(bad, "it answers: take it out without --force")
	case force && !epoch.Fenced:
		bad = append(bad, fmt.Sprintf("nobody has proven that it is dead: say so with godwit host confirm-dead %s", host))
	}
	if names := inventory.VMsOf(vms, host); len(names) > 0 {
		bad = append(bad, "it has VMs: migrate or destroy "+strings.Join(names, ", "))
	}
	members, err := a.Store.Members(ctx)
	if err != nil {
		return err
	}
	if a.StorePeer != "" && onlyMember(members, host) && !others {
		bad = append(bad, "it carries the only member of the store, and no other host that answers can take that")
	}
	return fault.Refuse(fault.Conflict, bad)
}

func onlyMember(members []store.Member, host inventory.HostID) bool {
	for _, m := range members {
		if !m.Learner && m.Host != host {
			return false
		}
	}
	return true
}
