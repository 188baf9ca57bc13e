package vnet

import (
	"context"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Alive returns when the switch has proven that it can act: Run's loop and the loop of timers take what is asked of them, and the
// locks of topology and forwarding can be had. It returns an error when Run has ended or ctx does before that.
func (s *Switch) Alive(ctx context.Context) error {
	proven := make(chan struct{})
	prove := func(ctx context.Context) {
		s.mu.Lock()
		s.fabric.mu.Lock()
		_ = len(s.fabric.ports) // the locks are what is wanted
		s.fabric.mu.Unlock()
		s.mu.Unlock()
		select {
		case s.proofs <- proven:
		case <-ctx.Done():
		}
	}
	if !s.start(prove) {
		return fault.New(fault.Unavailable, "the switch takes nothing any more")
	}
	select {
	case <-proven:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
