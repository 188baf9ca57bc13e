package agent

import (
	"context"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Alive returns when the agent has proven that it can act: Run's loop takes what is asked of it, and the locks of the agent and
// of each VM can be had. It returns an error when Run has ended or ctx does before that. A VM's own loop is not asked: it may wait
// for a QEMU or a datastore, and that is no reason to end all others' agent. Neither is the store, which may be away.
func (a *Agent) Alive(ctx context.Context) error {
	proven := make(chan struct{})
	prove := func(context.Context) {
		a.mu.Lock()
		for _, v := range a.vms {
			v.mu.Lock()
			_ = v.stored.ID // the lock is what is wanted
			v.mu.Unlock()
		}
		a.mu.Unlock()
		close(proven)
	}
	if !a.spawn(ctx, prove) {
		return fault.New(fault.Unavailable, "the agent's loop takes nothing any more")
	}
	select {
	case <-proven:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
