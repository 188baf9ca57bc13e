package bridge

import (
	"context"

	"github.com/vishvananda/netlink"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Watch returns a channel that has a value whenever links have changed since it was last read: a cable, a bridge, an MTU. It is
// closed when ctx ends or the kernel's messages were lost, after which Watch is to be called again. Taps of starting and ending VMs
// count as well.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	updates := make(chan netlink.LinkUpdate)
	changed := make(chan struct{}, 1)
	if err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		ErrorCallback: func(error) {}, // the closed channel says it
	}); err != nil {
		return nil, fault.New(fault.Internal, "follow the host's links: %w", err)
	}
	go func() { // ends when updates is closed, by ctx's end or a failure
		defer close(changed)
		for range updates {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
