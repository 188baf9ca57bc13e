package control

import (
	"context"
	"fmt"

	"github.com/godwit-vm/godwit/guest/stream"
)

// Packets is how the guest's numbered packets fare: those that it sends, and those that it gets.
type Packets struct {
	Sent     uint64 `json:"sent"`     // taken by its kernel
	LoopMS   int64  `json:"loop_ms"`  // longest time in which the guest did not get to send or to receive, by its clock
	Received uint64 `json:"received"` // this and the following as in stream.Tally
	Next     uint64 `json:"next"`
	Missing  uint64 `json:"missing"`
	Doubled  uint64 `json:"doubled"`
	Late     uint64 `json:"late"`

	// What the guest itself dropped, by its kernel's counters since its start.
	SocketDrops uint64 `json:"socket_drops"` // received for a socket without room
	CardDrops   uint64 `json:"card_drops"`   // of the card: received, sent, and errors

	Holes []stream.Hole `json:"holes,omitempty"`
}

// StartPackets makes the guest send numbered packets to the address and count those of the same run that come from it. Rate is packets a
// second by the guest's clock, which stands while the guest does. A former run is over.
func (c *Client) StartPackets(ctx context.Context, run uint32, rate int, to string) (Packets, error) {
	var p Packets
	return p, c.call(ctx, fmt.Sprintf("packets run=%d rate=%d to=%s", run, rate, to), &p)
}

// StopPackets makes the guest send no more; it goes on counting.
func (c *Client) StopPackets(ctx context.Context) (Packets, error) {
	var p Packets
	return p, c.call(ctx, "packets stop", &p)
}

// Packets returns the counts so far.
func (c *Client) Packets(ctx context.Context) (Packets, error) {
	var p Packets
	return p, c.call(ctx, "packets", &p)
}
