package vnet

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

const (
	macA = "52:54:00:00:00:0a"
	macB = "52:54:00:00:00:0b"
	macC = "52:54:00:00:00:0c"
)

// A frame to an unknown address goes everywhere once; after the address has spoken it goes to its port only.
func TestLearning(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
	a, b, c := n.station("a", ""), n.station("b", ""), n.station("c", "")
	a.mac, b.mac, c.mac = mac{2, 1}, mac{2, 2}, mac{2, 3}

	a.send(b.mac, 1)
	b.expect(a.mac, 1)
	c.expect(a.mac, 1) // flooded
	b.send(a.mac, 2)   // teaches where b is
	a.expect(b.mac, 2)
	a.send(b.mac, 3)
	a.send(broadcast, 4)
	b.expect(a.mac, 3)
	b.expect(a.mac, 4)
	c.expect(a.mac, 4) // and neither 2 nor 3
}

// Networks do not hear each other.
func TestNetworksAreApart(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}, {ID: "red"}}))
	a, b := n.station("a", macA), n.station("b", macB)
	other := n.spec("c", macC)
	other.Network = "red"
	must(t, n.AddPort(t.Context(), other))
	c := n.attach("c", macC)
	c.send(broadcast, 1)
	c.send(a.mac, 2)
	b.send(a.mac, 3)
	a.expect(b.mac, 3)
}

// A guarded port carries its own address only.
func TestGuard(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
	spec := n.spec("a", macA)
	spec.Guard = true
	must(t, n.AddPort(t.Context(), spec))
	a, b := n.attach("a", macA), n.station("b", macB)
	must(t, a.write(numbered(b.mac, mac{2, 9}, 1), numbered(b.mac, a.mac, 2)))
	b.expect(a.mac, 2)
	p, err := n.Port(t.Context(), "a")
	must(t, err)
	if p.Stats.DropsIn != 1 || p.Stats.FramesIn != 2 {
		t.Fatalf("stats %+v, want one of two frames dropped", p.Stats)
	}
}

// Frames cross trunks once, whatever the number of hosts: what came over a trunk never leaves over another.
func TestSplitHorizon(t *testing.T) {
	nodes := mesh(t, 3)
	a, b, c := nodes[0].station("a", macA), nodes[1].station("b", macB), nodes[2].station("c", macC)
	for i := range 100 {
		a.send(broadcast, i)
	}
	a.send(b.mac, 100)
	a.send(c.mac, 100)
	for i := range 101 {
		b.expect(a.mac, i)
		c.expect(a.mac, i)
	}
	b.send(a.mac, 7)
	a.expect(b.mac, 7)
	c.send(a.mac, 8)
	a.expect(c.mac, 8)
}

// A switch that is killed comes back with its ports, networks and peers, and its clients and peers come back to it.
func TestRestart(t *testing.T) {
	nodes := mesh(t, 2)
	a, b := nodes[0].station("a", macA), nodes[1].station("b", macB)
	a.send(b.mac, 1)
	b.expect(a.mac, 1)

	nodes[0].stop()
	<-a.done // QEMU sees this as a lost connection, and dials again
	nodes[1].waitTrunks(0)
	nodes[0].start()
	nodes[0].waitTrunks(1)
	nodes[1].waitTrunks(1)
	a = nodes[0].attach("a", macA)
	a.send(b.mac, 2)
	b.expect(a.mac, 2)
	b.send(a.mac, 3)
	a.expect(b.mac, 3)
	must(t, nodes[0].AddPort(t.Context(), nodes[0].spec("a", macA))) // the agent repeats itself
}

// A second switch on the same directory is refused and does not disturb the first.
func TestOneSwitchPerDirectory(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	second, err := New(n.cfg)
	must(t, err)
	if err := second.Run(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Fatalf("second switch: %v, want a conflict", err)
	}
	_, err = n.Status(t.Context())
	must(t, err)
}

// Ending a switch leaves no socket behind; its state stays.
func TestEndLeavesNoSocket(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
	n.station("a", macA)
	n.stop()
	left, err := filepath.Glob(filepath.Join(n.dir, "*.sock"))
	must(t, err)
	if len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
	if _, err := os.Stat(filepath.Join(n.cfg.Dir, stateFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Status(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("call to an ended switch: %v, want unavailable", err)
	}
}

// What cannot be is refused with its kind, through the socket.
func TestRefusals(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	ctx := t.Context()
	must(t, n.SetNetworks(ctx, []NetworkSpec{{ID: blue}}))
	must(t, n.AddPort(ctx, n.spec("a", macA)))
	must(t, n.AddPort(ctx, n.spec("a", macA))) // the same again is no error
	twin := n.spec("twin", macA)
	moved := n.spec("a", macB)
	lost := n.spec("lost", macC)
	lost.Network = "green"
	long := n.spec("long", macC)
	long.Socket = "/tmp/" + string(make([]byte, 200))
	file := filepath.Join(n.dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	onFile := n.spec("f", macC)
	onFile.Socket = file
	badMAC := n.spec("m", "ff:ff:ff:ff:ff:ff")
	for _, c := range []struct {
		what string
		err  error
		kind fault.Kind
	}{
		{"another spec", n.AddPort(ctx, moved), fault.Exists},
		{"a taken address", n.AddPort(ctx, twin), fault.Exists},
		{"an unknown network", n.AddPort(ctx, lost), fault.NotFound},
		{"a long path", n.AddPort(ctx, long), fault.Invalid},
		{"a path that is a file", n.AddPort(ctx, onFile), fault.Exists},
		{"a broadcast address", n.AddPort(ctx, badMAC), fault.Invalid},
		{"holding nothing", n.Hold(ctx, "none", drainWait), fault.NotFound},
		{"forwarding unheld", n.Forward(ctx, "a", "host-2", "m", 0), fault.Conflict},
		{"opening unreserved", n.Open(ctx, "a", "m"), fault.Conflict},
		{"discarding a live port", n.Discard(ctx, "a", "m"), fault.Conflict},
		{"committing a live port", n.Commit(ctx, "a", "m"), fault.Conflict},
		{"reserving a live port", n.Reserve(ctx, n.spec("a", macA), "m", "host-2"), fault.Conflict},
		{"dropping a network in use", n.SetNetworks(ctx, nil), fault.Conflict},
		{"peers without certificates", n.SetPeers(ctx, []Peer{{ID: "host-2", Addr: "127.0.0.2:1"}}), fault.Invalid},
		{"a subnet that is none", n.SetNetworks(ctx, []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.0.0.0/33"}}}), fault.Invalid},
	} {
		if !fault.Is(c.err, c.kind) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.kind)
		}
	}
	must(t, n.Hold(ctx, "a", drainWait))
	if err := n.Forward(ctx, "a", "host-2", "m", 0); !fault.Is(err, fault.Unavailable) {
		t.Errorf("forwarding without a trunk: %v", err)
	}
	must(t, n.Abort(ctx, "a", "m"))
	must(t, n.Abort(ctx, "a", "m"))
	must(t, n.Unhold(ctx, "a"))
	must(t, n.RemovePort(ctx, "a"))
	must(t, n.RemovePort(ctx, "a"))
	must(t, n.Commit(ctx, "a", "m"))
	must(t, n.Discard(ctx, "a", "m"))
	must(t, n.SetNetworks(ctx, nil))
}

// Hold answers only when the client has read everything; until then it says so, and the port stays held.
func TestHoldWaitsForTheReader(t *testing.T) {
	n := startNode(t, nil, "host-1", "")
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
	must(t, n.AddPort(t.Context(), n.spec("a", macA)))
	deaf := n.deaf("a")
	b := n.station("b", macB)
	a, err := parseMAC(macA)
	must(t, err)
	b.send(a, 0)
	eventually(t, "the frame is written", func() bool { return n.sw.port("a").io.unread() > 0 })
	began := time.Now()
	if err := n.Hold(t.Context(), "a", drainWait); !fault.Is(err, fault.Unavailable) || time.Since(began) < drainWait {
		t.Fatalf("hold with an unread frame: %v after %v", err, time.Since(began))
	}
	b.send(a, 1) // queued, not written
	eventually(t, "the frame is queued", func() bool {
		p, err := n.Port(t.Context(), "a")
		must(t, err)
		return p.Queued == 1
	})
	buf := make([]byte, 1000)
	if got, err := deaf.Read(buf); err != nil || got != 64 {
		t.Fatalf("read %d bytes, %v; want the one frame of before Hold", got, err)
	}
	must(t, n.Hold(t.Context(), "a", drainWait))
	must(t, n.Unhold(t.Context(), "a"))
	if got, err := deaf.Read(buf); err != nil || got != 64 || buf[4+17] != 1 {
		t.Fatalf("read %d bytes, %v; want the frame queued during Hold", got, err)
	}
}
