package qmp

import (
	"context"
	"slices"
)

// RxFilter is what a network card lets through to its guest (QAPI "RxFilterInfo").
type RxFilter struct {
	Promiscuous  bool
	AllMulticast bool
	Addresses    []string // unicast and multicast that the guest asked for, besides its own
}

// RxFilter returns the receive filter of the card with that device id.
func (c *Conn) RxFilter(ctx context.Context, device string) (RxFilter, error) {
	var list []struct {
		Promiscuous bool     `json:"promiscuous"`
		Multicast   string   `json:"multicast"` // normal, none, all
		Unicast     string   `json:"unicast"`
		UniTable    []string `json:"unicast-table"`
		MultiTable  []string `json:"multicast-table"`
	}
	err := c.Do(ctx, "query-rx-filter", map[string]any{"name": device}, &list)
	if err != nil || len(list) == 0 {
		return RxFilter{}, err
	}
	f := list[0]
	return RxFilter{
		Promiscuous: f.Promiscuous || f.Unicast == "all", AllMulticast: f.Promiscuous || f.Multicast == "all",
		Addresses: slices.Concat(f.UniTable, f.MultiTable),
	}, nil
}

// Queue is how far a virtio device's queue is.
type Queue struct {
	// Used is how many buffers QEMU has given back to the guest, modulo 65536: for the receive queue 0 of a virtio-net device, one for each frame
	// that reached the guest (virtio 1.2, 2.7.8; a frame takes one buffer, as no frame is longer than one).
	Used uint16
	// Room says that QEMU knows of a buffer that it has not used: it keeps no frame back for want of one. It may know of none while there are some,
	// as it only looks when it has a frame.
	Room bool
}

// Queue asks for a queue of the device whose virtio backend has that path in the object tree.
//
// QEMU names the command x-query-virtio-queue-status and promises it for debugging only, so ask Commands for it first.
func (c *Conn) Queue(ctx context.Context, path string, queue int) (Queue, error) {
	return Queued(ctx, c.SendQueue(ctx, path, queue))
}

// SendQueue asks what Queue does, and leaves the answer to Queued.
func (c *Conn) SendQueue(ctx context.Context, path string, queue int) *Sent {
	return c.Send(ctx, QueueStatusCommand, map[string]any{"path": path, "queue": queue})
}

// Queued waits for the answer to SendQueue.
func Queued(ctx context.Context, asked *Sent) (Queue, error) {
	var status struct {
		Used   uint16 `json:"used-idx"`
		Last   uint16 `json:"last-avail-idx"`
		Shadow uint16 `json:"shadow-avail-idx"`
	}
	err := asked.Wait(ctx, &status)
	return Queue{Used: status.Used, Room: status.Shadow != status.Last}, err
}

// QueueStatusCommand is the command that Queue needs (QEMU 7.2 on).
const QueueStatusCommand = "x-query-virtio-queue-status"
