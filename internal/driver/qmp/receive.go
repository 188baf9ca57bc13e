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

// QueueUsed returns how many buffers of a virtio device's queue QEMU has given back to the guest, modulo 65536: for the receive
// queue 0 of a virtio-net device, one for each frame that reached the guest (virtio 1.2, 2.7.8; a frame takes one buffer, as
// no frame is longer than one). The path is that of the device's virtio backend in the object tree.
//
// QEMU names the command x-query-virtio-queue-status and promises it for debugging only, so ask Commands for it first.
func (c *Conn) QueueUsed(ctx context.Context, path string, queue int) (uint16, error) {
	return Used(ctx, c.SendQueueUsed(ctx, path, queue))
}

// SendQueueUsed asks what QueueUsed does, and leaves the answer to Used.
func (c *Conn) SendQueueUsed(ctx context.Context, path string, queue int) *Sent {
	return c.Send(ctx, QueueStatusCommand, map[string]any{"path": path, "queue": queue})
}

// Used waits for the answer to SendQueueUsed.
func Used(ctx context.Context, asked *Sent) (uint16, error) {
	var status struct {
		UsedIndex uint16 `json:"used-idx"`
	}
	err := asked.Wait(ctx, &status)
	return status.UsedIndex, err
}

// QueueStatusCommand is the command that QueueUsed needs (QEMU 7.2 on).
const QueueStatusCommand = "x-query-virtio-queue-status"
