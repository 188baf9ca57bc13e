package gate

import (
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// cabled is a flight over a LAN: three hosts in network namespaces with a bridge each, and the client behind a switch that is nobody's.
type cabled struct {
	*flight

	lan *lab.LAN
	mac string
}

// takeOffCabled starts such a cluster with a guest under watch on the first host.
func takeOffCabled(t *testing.T) *cabled {
	t.Helper()
	c := &cabled{flight: &flight{Cluster: startCluster(t, lab.Options{Hosts: 3, Cables: true, Run: []string{"--network", "lan=bridge:br0"}})}}
	c.lan = c.LAN()
	c.lost = math.MaxUint64 // a switch that is not ours loses what comes while a guest stands: measured, not forbidden
	server, err := c.lan.ServeDHCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() }) // nothing was written to it
	first := c.Hosts[0]                      // a step each: the guest boots in one of them
	if _, err := first.Godwit(step(t), "network", "create", lab.Network, "--driver", "bridge", "--mtu", "1400"); err != nil {
		t.Fatal(err)
	}
	if c.ip, err = first.LinuxVM(step(t), vmName, vmMemory, 16*inventory.MiB); err != nil {
		t.Fatal(err)
	}
	vm, err := first.VM(step(t), vmName)
	if err != nil {
		t.Fatal(err)
	}
	c.vm, c.mac = vm.GetId(), vm.GetSpec().GetNics()[0].GetMac()
	if c.guest, err = lab.Control(step(t), c.lan, c.ip); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.guest.Close() }) // nothing is left to say
	c.write(t)
	status, err := c.guest.Status(step(t))
	if err != nil {
		t.Fatal(err)
	}
	c.boot, c.uptime = status.Boot, status.UptimeMS
	if c.probes, err = lab.Watch(step(t), c.lan, c.ip); err != nil {
		t.Fatal(err)
	}
	c.probes.Patience(time.Second)
	t.Cleanup(c.probes.Close)
	return c
}

// at demands that the foreign switch has learned the guest on the host's cable, and that the guest has its taps there and nowhere else.
func (c *cabled) at(t *testing.T, h *lab.Host, cards int) {
	t.Helper()
	if port, err := c.lan.Learned(c.mac); err != nil || port != h.Name {
		t.Errorf("the switch has the guest on %q, not on %s (%v)", port, h.Name, err)
	}
	for _, other := range c.Hosts {
		taps, err := other.Taps(c.vm)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: cards}[other == h]; len(taps) != want {
			t.Errorf("%s has taps %v, not %d", other.Name, taps, want)
		}
	}
}

// missing waits until the host's record says that it lacks the LAN for a reason like the one that is given, or that it has it for "".
func (c *cabled) missing(t *testing.T, h *lab.Host, why string) {
	t.Helper()
	if err := lab.Until(t.Context(), stepMax, func() error {
		n := &godwitv1.Network{}
		if err := c.Hosts[0].Read(t.Context(), n, "network", "info", lab.Network); err != nil {
			return err
		}
		for _, is := range n.GetHosts() {
			if is.GetHost() == h.Name && (is.GetWhy() == why || why != "" && strings.Contains(is.GetWhy(), why)) {
				return nil
			}
		}
		return fmt.Errorf("hosts of the network: %v", n.GetHosts())
	}); err != nil {
		t.Fatal(err)
	}
}

// The story: a guest on the physical LAN goes round three hosts. A switch that knows nothing of Godwit sends its frames to where it is from
// the first moment on, and no byte of its TCP stream is lost; neither in a migration that fails at the last moment, nor when whatever of
// Godwit is killed under it. A host whose cable is pulled says so, and no VM goes there.
func TestTheLANFollowsTheGuest(t *testing.T) {
	t.Parallel()
	c := takeOffCabled(t)
	a, b, third := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	for _, leg := range [][2]*lab.Host{{a, b}, {b, third}, {third, a}} {
		from, to := leg[0], leg[1]
		c.probes.Mark()
		before := c.probes.Seen()
		m := c.move(t, from, to)
		c.healthy(t, to)
		c.at(t, to, 1)
		seen := c.probes.Seen()
		t.Logf("%s to %s: stood %v, longest gap %v (UDP) and %v (TCP), %d of %d packets lost, %d came twice", from.Name, to.Name,
			m.GetStatus().GetResult().GetStopToResume().AsDuration().Round(time.Millisecond), seen.UDPGap.Round(time.Millisecond),
			seen.TCPGap.Round(time.Millisecond), seen.Lost-before.Lost, seen.Lost+seen.Echoed-before.Lost-before.Echoed, seen.Doubled-before.Doubled)
	}
	c.aborted(t, a, b)
	c.restarted(t, a)
	c.pulled(t, a, third)
	c.plugged(t, third, b)
}

// aborted kills the target's agent in the pause: the guest stays, and so does its place on the LAN.
func (c *cabled) aborted(t *testing.T, from, to *lab.Host) {
	t.Helper()
	before := c.info(t)
	c.probes.Mark()
	id := c.strike(t, from, to, inventory.Switchover, killRole("agent", targetHost))
	if phase := c.end(t, from, id).GetStatus().GetPhase(); phase != inventory.Failed.String() {
		t.Errorf("the migration ended as %s", phase)
	}
	c.allUp(t)
	c.healthy(t, from)
	c.sameProcess(t, before)
	c.at(t, from, 1)
	seen := c.probes.Seen()
	t.Logf("aborted: longest gap %v (UDP) and %v (TCP)", seen.UDPGap.Round(time.Millisecond), seen.TCPGap.Round(time.Millisecond))
}

// restarted kills agent, switch and store of the guest's host at once, 20 times. The guest has its tap from nobody but its own QEMU, so that
// not even a packet is lost.
func (c *cabled) restarted(t *testing.T, h *lab.Host) {
	t.Helper()
	lost, began := c.probes.Settle(step(t)).Lost, time.Now()
	r := restart{h, c.vm, c.tcp}
	for range restartsWanted {
		r.watch(t, func() { r.replace(t, syscall.SIGKILL, "agent", "switch", "store") })
	}
	t.Logf("restarts of all three took %v each", (time.Since(began) / restartsWanted).Round(time.Millisecond))
	c.allUp(t)
	c.healthy(t, h)
	c.at(t, h, 1)
	if now := c.probes.Seen().Lost; now > lost {
		t.Errorf("%d packets were lost", now-lost)
	}
}

// plugged gives the running guest a second card on the LAN, which goes along to another host, and takes it away again.
func (c *cabled) plugged(t *testing.T, from, to *lab.Host) {
	t.Helper()
	if _, err := from.Godwit(step(t), "vm", "nic", "add", vmName, lab.Network); err != nil {
		t.Fatal(err)
	}
	asks := func() (mac string) {
		if err := lab.Until(t.Context(), stepMax, func() error { // the guest takes its time to find the card
			n, err := c.guest.Net(step(t), "eth1")
			mac = n.MAC
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return mac
	}
	for _, at := range []*lab.Host{from, to} {
		if at == to {
			c.move(t, from, to)
			c.healthy(t, to)
		}
		mac := asks()
		c.at(t, at, 2)
		if port, err := c.lan.Learned(mac); err != nil || port != at.Name {
			t.Errorf("the switch has the second card on %q, not on %s (%v)", port, at.Name, err)
		}
	}
	if _, err := to.Godwit(step(t), "vm", "nic", "rm", vmName, "nic1"); err != nil {
		t.Fatal(err)
	}
	c.at(t, to, 1)
}

// pulled pulls a host's cable: the cluster says so and sends no VM there, until it is plugged in again.
func (c *cabled) pulled(t *testing.T, h, without *lab.Host) {
	t.Helper()
	c.missing(t, without, "")
	if err := without.Cable(false); err != nil {
		t.Fatal(err)
	}
	const why = "no port of bridge br0 has a carrier (eth1)"
	c.missing(t, without, why)
	_, said, err := h.Command(step(t), "vm", "migrate", vmName, "--to", without.Name)
	if lab.ExitCode(err) != 5 || !strings.Contains(string(said), without.Name+" has no network lan, which nic0 needs: "+why) {
		t.Errorf("migrating there: exit code %d: %s", lab.ExitCode(err), said)
	}
	if err := without.Cable(true); err != nil {
		t.Fatal(err)
	}
	c.missing(t, without, "")
	c.move(t, h, without)
	c.healthy(t, without)
	c.at(t, without, 1)
}
