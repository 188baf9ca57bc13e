package bridge_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const (
	guestMAC = "52:54:00:0a:0b:0c"
	lan      = inventory.NetworkID("lan")
	owner    = "/run/godwit"
)

// ownNamespace puts the test into a network namespace of its own, which ends with it.
func ownNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: run make test as root")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
}

// add makes a link that is up, under a master when one is named.
func add(t *testing.T, link netlink.Link, master string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatalf("make %s: %v", link.Attrs().Name, err)
	}
	made := get(t, link.Attrs().Name)
	if master != "" {
		must(t, netlink.LinkSetMaster(made, get(t, master)))
	}
	must(t, netlink.LinkSetUp(made))
	return made
}

func get(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return link
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func addBridge(t *testing.T, name string) {
	t.Helper()
	add(t, &netlink.Bridge{LinkAttrs: named(name)}, "")
}

// cable joins two bridges as a cable would.
func cable(t *testing.T, a, inA, b, inB string) {
	t.Helper()
	add(t, &netlink.Veth{LinkAttrs: named(a), PeerName: b}, inA)
	must(t, netlink.LinkSetMaster(get(t, b), get(t, inB)))
	must(t, netlink.LinkSetUp(get(t, b)))
	carries(t, a, b)
}

// carries waits until the links carry frames: the kernel takes a while to notice a cable, and drops what comes before.
func carries(t *testing.T, links ...string) {
	t.Helper()
	for _, l := range links {
		soon(t, l+" carries frames", func() bool { return get(t, l).Attrs().OperState == netlink.OperUp })
	}
}

// soon waits until what the kernel does in its own time is done.
func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); !done(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// where returns the port on which the bridge has learned the guest's address, "" for none.
func where(t *testing.T, bridgeName string) string {
	t.Helper()
	all, err := netlink.NeighList(0, unix.AF_BRIDGE)
	must(t, err)
	for _, n := range all {
		if n.HardwareAddr.String() == guestMAC && n.MasterIndex == get(t, bridgeName).Attrs().Index {
			port, err := netlink.LinkByIndex(n.LinkIndex)
			must(t, err)
			return port.Attrs().Name
		}
	}
	return ""
}

// learned waits until the bridge has the guest's address on that port: frames pass in the kernel's own time.
func learned(t *testing.T, bridgeName, port string) {
	t.Helper()
	soon(t, bridgeName+" has the guest on "+port, func() bool { return where(t, bridgeName) == port })
}

// twoHosts are the bridges of two hosts, a and b, with a cable each to a bridge that is nobody's.
func twoHosts(t *testing.T) {
	t.Helper()
	ownNamespace(t)
	for _, name := range []string{"a", "b", "foreign"} {
		addBridge(t, name)
	}
	cable(t, "a-up", "a", "port-a", "foreign")
	cable(t, "b-up", "b", "port-b", "foreign")
}

func open(t *testing.T, vm inventory.VMID, on string) *bridge.Tap {
	t.Helper()
	segment, err := bridge.Ready(bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: on}})
	must(t, err)
	tap, err := bridge.Open(bridge.TapSpec{VM: vm, NIC: 0, Network: lan, MAC: guestMAC, Segment: segment})
	must(t, err)
	t.Cleanup(tap.Close)
	return tap
}

// listen returns a socket that hears what passes the link.
func listen(t *testing.T, link string, protocol uint16) int {
	t.Helper()
	big := protocol<<8 | protocol>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(big))
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: big, Ifindex: get(t, link).Attrs().Index}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return fd
}

func heard(t *testing.T, fd int) string {
	t.Helper()
	b := make([]byte, 2048)
	n, err := unix.Read(fd, b)
	must(t, err)
	return hex.EncodeToString(b[:n])
}

// The story: a guest leaves host a and arrives on host b. The switch between them, which knows nothing of Godwit, sends its frames to b from
// the first announcement on, host b's own bridge too, and the guest gets them. What the source's QEMU still says is heard by nobody.
func TestAGuestMoves(t *testing.T) {
	twoHosts(t)
	const here, there = inventory.VMID("vm-aaaaaaaaaa"), inventory.VMID("vm-bbbbbbbbbb") // one VM; its taps are on one machine here
	source, target := open(t, here, "a"), open(t, there, "b")
	card := func(vm inventory.VMID) bridge.Card {
		return bridge.Card{VM: vm, MAC: guestMAC, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}}
	}
	must(t, bridge.Arrive(card(here)))
	learned(t, "foreign", "port-a")
	learned(t, "b", "b-up")

	// QEMU announces the guest when its memory is loaded, long before the source has let go of it.
	if _, err := target.File.Write(append(make([]byte, 10), frame("ffffffffffff")...)); !errors.Is(err, unix.EIO) {
		t.Errorf("writing to the tap of a guest that does not run yet: %v, not EIO", err)
	}
	learned(t, "foreign", "port-a")

	must(t, bridge.Leave(here, 0))
	rarps, arps := listen(t, "foreign", unix.ETH_P_RARP), listen(t, "foreign", unix.ETH_P_ARP)
	must(t, bridge.Arrive(card(there)))
	learned(t, "foreign", "port-b")
	learned(t, "a", "a-up")
	learned(t, "b", bridge.TapName(there, 0))
	const head = "ffffffffffff" + "5254000a0b0c"
	pad := strings.Repeat("00", 18)
	if got, want := heard(t, rarps), head+"8035"+"00010800060400035254000a0b0c000000005254000a0b0c00000000"+pad; got != want {
		t.Errorf("reverse ARP\n%s, not\n%s", got, want)
	}
	if got, want := heard(t, arps), head+"0806"+"00010800060400015254000a0b0cc0000207000000000000c0000207"+pad; got != want {
		t.Errorf("ARP announcement\n%s, not\n%s", got, want)
	}
	if _, err := source.File.Write(append(make([]byte, 10), frame("ffffffffffff")...)); !errors.Is(err, unix.EIO) {
		t.Errorf("writing to the tap of a guest that has left: %v, not EIO", err)
	}
	learned(t, "foreign", "port-b")
	gets(t, target)

	// And back, as after a switchover that failed.
	must(t, bridge.Leave(there, 0))
	must(t, bridge.Arrive(card(here)))
	learned(t, "foreign", "port-a")
	gets(t, source)
}

// frame is one from the guest to the address.
func frame(to string) []byte {
	b, _ := hex.DecodeString(to + "5254000a0b0c" + "88b5" + strings.Repeat("77", 46))
	return b
}

// gets demands that a frame which comes from the foreign switch for the guest comes out of its tap.
func gets(t *testing.T, tap *bridge.Tap) {
	t.Helper()
	want, _ := hex.DecodeString("5254000a0b0c" + "020000000001" + "88b5" + strings.Repeat("42", 46))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	must(t, unix.Sendto(fd, want, 0, &unix.SockaddrLinklayer{Ifindex: get(t, "foreign").Attrs().Index}))
	got := make(chan []byte, 1)
	go func() {
		b := make([]byte, 2048)
		for {
			n, err := tap.File.Read(b)
			if err != nil || n > 10 && bytes.Equal(b[10:n], want) {
				got <- b[:n]
				return
			}
		}
	}()
	select {
	case <-got:
	case <-time.After(5 * time.Second):
		t.Error("a frame for the guest did not reach its tap")
	}
}

// The story: a tap belongs to who has it open. It cannot be made twice, and goes with its last file, so that nothing is left of a QEMU that
// died, whoever was not there to see it.
func TestATapLivesAsLongAsItsQEMU(t *testing.T) {
	ownNamespace(t)
	addBridge(t, "br0")
	must(t, netlink.LinkSetMTU(get(t, "br0"), 9000))
	const vm = inventory.VMID("vm-abcdefghij")
	tap := open(t, vm, "br0")
	link := get(t, "gwabcdefghij.0")
	if a := link.Attrs(); a.MTU != 9000 || a.HardwareAddr.String() != "fe:54:00:0a:0b:0c" || a.Alias != "godwit vm-abcdefghij on lan" || a.RawFlags&unix.IFF_UP != 0 {
		t.Errorf("the new tap: MTU %d, %s, alias %q, flags %x", a.MTU, a.HardwareAddr, a.Alias, a.RawFlags)
	}
	if mtu := get(t, "br0").Attrs().MTU; mtu != 9000 {
		t.Errorf("the bridge's MTU became %d", mtu)
	}
	again := bridge.TapSpec{VM: vm, NIC: 0, Network: lan, MAC: guestMAC, Segment: bridge.Segment{Bridge: "br0", MTU: 9000}}
	if _, err := bridge.Open(again); !fault.Is(err, fault.Exists) {
		t.Errorf("opened twice: %v", err)
	}
	must(t, bridge.Up(vm, 0))
	tap.Close()
	if _, err := netlink.LinkByName("gwabcdefghij.0"); err == nil {
		t.Error("the tap is there without anybody who has it open")
	}
	if err := bridge.Up(vm, 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("up: %v", err)
	}
	must(t, bridge.Leave(vm, 0))
	must(t, bridge.Remove(vm, 0))
	again.Segment.Bridge = "br7"
	if _, err := bridge.Open(again); !fault.Is(err, fault.NotFound) {
		t.Errorf("on a bridge that is gone: %v", err)
	}
	if _, err := netlink.LinkByName("gwabcdefghij.0"); err == nil {
		t.Error("a tap stayed after an error")
	}
}

// The story: a host says why it does not have a network, in one line with the fix, and a bridge or uplink that would do harm is left alone.
func TestWhyAHostLacksANetwork(t *testing.T) {
	ownNamespace(t)
	addBridge(t, "br0")
	addBridge(t, "looped")
	must(t, netlink.LinkSetDown(get(t, "looped")))
	addBridge(t, "unplugged")
	add(t, &netlink.Veth{LinkAttrs: named("eth5"), PeerName: "far5"}, "unplugged") // the other end is down
	add(t, &netlink.Veth{LinkAttrs: named("eth0"), PeerName: "far-eth0"}, "")
	address, err := netlink.ParseAddr("198.51.100.4/24")
	must(t, err)
	must(t, netlink.AddrAdd(get(t, "eth0"), address))
	add(t, &netlink.Veth{LinkAttrs: named("eth1"), PeerName: "far-eth1"}, "br0")
	must(t, netlink.LinkSetUp(get(t, "far-eth1")))
	add(t, &netlink.Veth{LinkAttrs: named("eth2"), PeerName: "far-eth2"}, "")
	add(t, &netlink.Veth{LinkAttrs: named("gw-taken"), PeerName: "far-taken"}, "")
	addBridge(t, "loops")
	if out, err := exec.CommandContext(t.Context(), "ip", "link", "set", "loops", "type", "bridge", "stp_state", "1").CombinedOutput(); err != nil {
		t.Fatalf("ip link: %v\n%s", err, out)
	}
	for _, c := range []struct {
		what    string
		network bridge.Network
		want    string
	}{
		{"no such bridge", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "br9"}}, "there is no bridge br9: make it, or name another"},
		{"no bridge at all", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "eth2"}}, "eth2 is no bridge but of type veth: name a bridge, or write uplink:eth2 to have one made over it"},
		{"bridge down", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "looped"}}, "bridge looped is down: ip link set looped up"},
		{"MTU", bridge.Network{Owner: owner, ID: lan, MTU: 9000, Carrier: bridge.Carrier{Bridge: "br0"}}, "bridge br0 has an MTU of 1500 and the network one of 9000: raise it on the bridge's ports and on br0"},
		{"cable", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "unplugged"}}, "no port of bridge unplugged has a carrier (eth5): plug the cable in, or take the port up"},
		{"no such uplink", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Uplink: "eth9"}}, "there is no interface eth9: name another uplink (ip link lists them)"},
		{"uplink is a bridge", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Uplink: "br0"}}, "br0 is a bridge: write bridge:br0"},
		{"the host's own address", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Uplink: "eth0"}}, "eth0 holds the host's own address 198.51.100.4/24, which would be cut off under a bridge: make a bridge over eth0, move the address to it, and write bridge:NAME"},
		{"somebody's port", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Uplink: "eth1"}}, "eth1 is a port of br0 already: write bridge:br0"},
		{"uplink's MTU", bridge.Network{Owner: owner, ID: lan, MTU: 9000, Carrier: bridge.Carrier{Uplink: "eth2"}}, "eth2 has an MTU of 1500 and the network one of 9000: ip link set eth2 mtu 9000"},
		{"name taken", bridge.Network{Owner: owner, ID: "taken", Carrier: bridge.Carrier{Uplink: "eth2"}}, "gw-taken is not Godwit's, and the network's bridge would have that name: rename it"},
		{"loops", bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "loops"}}, "bridge loops runs the spanning tree protocol, and a VM that arrives would be cut off for half a minute: ip link set loops type bridge stp_state 0 (join redundant cables in a bond)"},
	} {
		if _, err := bridge.Ready(c.network); err == nil || err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", c.what, err, c.want)
		}
	}
	if _, err := bridge.Ready(bridge.Network{Owner: owner, ID: lan, MTU: 1400, Carrier: bridge.Carrier{Bridge: "br0"}}); err != nil {
		t.Errorf("a bridge that is good: %v", err)
	}
	left, err := netlink.LinkList()
	must(t, err)
	for _, l := range left {
		if strings.HasPrefix(l.Attrs().Alias, "godwit ") || l.Attrs().Name == "gw-lan" {
			t.Errorf("%s was left by a refusal", l.Attrs().Name)
		}
	}
}

// The story: over an uplink Godwit makes a bridge of its own, once, and takes it away again when nobody wants the network any more, but not
// under a VM.
func TestAnUplinkGetsABridge(t *testing.T) {
	ownNamespace(t)
	addBridge(t, "foreign")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("eth1"), PeerName: "far1"}))
	must(t, netlink.LinkSetMaster(get(t, "far1"), get(t, "foreign")))
	must(t, netlink.LinkSetUp(get(t, "far1")))
	n := bridge.Network{Owner: owner, ID: lan, MTU: 1400, Carrier: bridge.Carrier{Uplink: "eth1"}}
	var index int
	for range 2 {
		segment, err := bridge.Ready(n)
		must(t, err)
		if segment != (bridge.Segment{Bridge: "gw-lan", MTU: 1500}) {
			t.Errorf("the segment is %+v", segment)
		}
		own := get(t, "gw-lan")
		if index != 0 && own.Attrs().Index != index {
			t.Error("the bridge was made twice")
		}
		index = own.Attrs().Index
		if get(t, "eth1").Attrs().MasterIndex != index {
			t.Error("the uplink is no port of the bridge")
		}
	}
	tap, err := bridge.Open(bridge.TapSpec{VM: "vm-abcdefghij", Network: lan, MAC: guestMAC, Segment: bridge.Segment{Bridge: "gw-lan", MTU: 1500}})
	must(t, err)
	carries(t, "eth1", "far1")
	must(t, bridge.Arrive(bridge.Card{VM: "vm-abcdefghij", MAC: guestMAC}))
	learned(t, "foreign", "far1")
	must(t, bridge.Sweep(owner, []bridge.Network{n}))
	must(t, bridge.Sweep(owner, nil))
	get(t, "gw-lan") // under a VM
	tap.Close()
	must(t, bridge.Sweep(owner, []bridge.Network{n}))
	must(t, bridge.Sweep("/run/another", nil))
	get(t, "gw-lan")
	must(t, bridge.Sweep(owner, nil))
	if _, err := netlink.LinkByName("gw-lan"); err == nil {
		t.Error("the bridge stayed after its network")
	}
	get(t, "foreign") // nobody's business
	if a := get(t, "eth1").Attrs(); a.MasterIndex != 0 || a.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("the uplink was left with master %d, flags %x", a.MasterIndex, a.RawFlags)
	}
}

// The story: where the kernel knows VLANs, a tagged network gets a sub-interface; where it does not, the host says so and nothing else happens.
func TestVLANs(t *testing.T) {
	ownNamespace(t)
	add(t, &netlink.Veth{LinkAttrs: named("eth1"), PeerName: "far1"}, "")
	must(t, netlink.LinkSetUp(get(t, "far1")))
	n := bridge.Network{Owner: owner, ID: lan, VLAN: 20, Carrier: bridge.Carrier{Uplink: "eth1"}}
	segment, err := bridge.Ready(n)
	if able := bridge.VLANs(); able != nil {
		const want = "this kernel has no 802.1Q VLANs: modprobe 8021q, or name a bridge that is on the VLAN already"
		if err == nil || err.Error() != want || able.Error() != want {
			t.Errorf("a kernel without VLANs: %v; the probe says %v", err, able)
		}
		if _, err := netlink.LinkByName("gw-lan"); err == nil {
			t.Error("a bridge was made all the same")
		}
		return
	}
	must(t, err)
	if segment.Bridge != "gw-lan" || get(t, "eth1.20").Attrs().MasterIndex != get(t, "gw-lan").Attrs().Index {
		t.Errorf("segment %+v", segment)
	}
	must(t, bridge.Sweep(owner, nil))
	for _, name := range []string{"eth1.20", "gw-lan"} {
		if _, err := netlink.LinkByName(name); err == nil {
			t.Errorf("%s stayed", name)
		}
	}
}

// The story: whoever watches the links hears of a cable that is pulled.
func TestAPulledCableIsNoticed(t *testing.T) {
	ownNamespace(t)
	addBridge(t, "br0")
	add(t, &netlink.Veth{LinkAttrs: named("eth1"), PeerName: "far1"}, "br0")
	must(t, netlink.LinkSetUp(get(t, "far1")))
	n := bridge.Network{Owner: owner, ID: lan, Carrier: bridge.Carrier{Bridge: "br0"}}
	changed, err := bridge.Watch(t.Context())
	must(t, err)
	if _, err := bridge.Ready(n); err != nil {
		t.Fatal(err)
	}
	must(t, netlink.LinkSetDown(get(t, "far1")))
	end := time.After(5 * time.Second)
	for err = nil; err == nil; _, err = bridge.Ready(n) {
		select {
		case <-changed:
		case <-end:
			t.Fatal("nobody noticed")
		}
	}
	if !strings.Contains(err.Error(), "has a carrier") {
		t.Error(err)
	}
}

func TestNamesFitAndDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, vm := range []inventory.VMID{"vm-abcdefghij", "vm-abcdefghik", "vm-x", "restored", "a/../../b:c d"} {
		for _, nic := range []int{0, 1, inventory.NICsMax + inventory.HotPortsMax - 1} {
			name := bridge.TapName(vm, nic)
			if len(name) > 15 || strings.ContainsAny(name, "/: ") || seen[name] {
				t.Errorf("%s, NIC %d: %q", vm, nic, name)
			}
			seen[name] = true
		}
	}
}

func TestCarriersAreReadWithCare(t *testing.T) {
	for _, good := range []string{"bridge:br0", "uplink:eth1", "uplink:enp3s0f1.20"} {
		c, err := bridge.ParseCarrier(good)
		if err != nil || c.String() != good {
			t.Errorf("%s: %v, %v", good, c, err)
		}
	}
	for _, bad := range []string{"", "br0", "bridge:", "bridge:a/b", "uplink:..", "uplink:abcdefghijklmnop", "vlan:eth1", "bridge:a b"} {
		if c, err := bridge.ParseCarrier(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", bad, c, err)
		}
	}
}
