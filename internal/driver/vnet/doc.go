// Package vnet is the user-space switch: layer-2 networks for guests without root, spread over hosts, whose ports move
// with a migrating guest and lose nothing on the way.
//
// A Switch is the body of the switch process, one per host; it outlives agent restarts and, from its state file, its
// own. A Client is what the agent drives it with, over a unix socket. The package does not know what a VM is: it knows
// ports, networks, peers and gateways, and it decides nothing by itself but time limits.
//
//	QEMU ── unix socket ── port ┐                        ┌ port ── unix socket ── QEMU
//	client ─ unix socket ─ port ┼ fabric ═ trunk (mTLS) ═ fabric ┼ port
//	gateway (DHCP, DNS, NAT) ───┘  host-1                host-2  └ …
//
// Each frame on a port's socket is a 4-byte big-endian length and the Ethernet frame, as QEMU's -netdev stream speaks
// it. Hosts form a full mesh of trunks; a frame that came over one trunk never leaves over another (split horizon), so
// there are no loops and no spanning tree.
//
// # Switchover of a port
//
// A guest with address m leaves host A (source) for host B (target); C is any other host.
//
//	A  normal ─Hold─▶ held ─Forward─▶ forwarding ─Commit─▶ (flushes passed) ─▶ gone
//	            │▲Unhold                   └─Abort─▶ normal, every copy re-injected in order
//	B  ─Reserve─▶ reserved ─Open─▶ normal (direct frames wait behind forwarded ones)
//	                    └─Discard─▶ gone
//
// Hold stops writing to the source's QEMU, because QEMU loses what it reads after the vCPUs stopped. Forward sends
// everything queued since, and everything that follows, to B's reserved port, and keeps a copy of each until Commit.
// Whatever the guest sent from A before it stopped is read to the end and followed by an END on every trunk.
//
// Track, earlier in the migration, has the port remember the last frames that it wrote; Forward sends the newest of them
// again when the guest's receive ring tells that they did not reach it before it stopped.
//
// Open writes the forwarded frames to the target's QEMU and sends MOVED(m) on every trunk. Every host O, A and B
// included, is an origin of frames for m, and has one moment at which it processes MOVED:
//
//	frames of O before that moment   A's copy counts: A forwards it.  B ignores what it gets directly (floods).
//	at that moment O sends           FLUSH on its trunk to A, behind these frames; A passes it on to B behind them
//	                                 ACK   on its trunk to B, behind the floods that B must ignore
//	frames of O after that moment    B's copy counts: it waits at B until O's FLUSH has arrived by way of A.
//	                                 A ignores what it gets (floods) behind O's FLUSH.
//
// So each frame, unicast or flooded, is counted exactly once and in O's order; trunks are FIFO, and that is all the
// argument needs. A FLUSH that does not come (a broken trunk) is waited for flushWait at most. Frames from m itself are
// ordered likewise: a host that has processed MOVED keeps m's frames from B back until A's END has arrived, or flushWait.
//
// Faults during a switchover: a trunk A–B that breaks is dialled again and A sends its copies again, B drops those it
// has. A switch that dies takes its queues with it: that is the loss of a power cut on any switch, no more.
package vnet
