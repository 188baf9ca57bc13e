//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"golang.org/x/sys/unix"
)

// inNamespace marks the process that runs in its own network namespace.
const inNamespace = "GODWIT_TEST_NAMESPACE"

// The client has to do with a real kernel, sockets bound to a NIC without address and ioctls, so it gets a namespace of its own, and the
// library's DHCP server another, with a pair of NICs between them.
func TestLeaseIsTakenAppliedAndRenewed(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		again := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
		again.Env = append(os.Environ(), inNamespace+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		said, err := again.CombinedOutput()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("this system allows no network namespace to this user")
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		t.Logf("%s", said)
		return
	}
	command(t, "ip link add server type veth peer name "+nic)
	if err := linkUp(nic); err != nil {
		t.Fatal(err)
	}
	requests := make(chan *dhcpv4.DHCPv4, 100)
	serve(t, requests)
	device, err := net.InterfaceByName(nic)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	leases, ended := make(chan lease, 100), make(chan error)
	go func() { ended <- keepLease(ctx, device, func(l lease) { leases <- l }) }()

	first := <-leases
	if err := first.apply(nic, true); err != nil {
		t.Fatal(err)
	}
	if routes := command(t, "ip route"); !strings.Contains(routes, "default via 10.9.0.1 dev "+nic) {
		t.Errorf("routes are %q", routes)
	}
	if address := command(t, "ip addr show "+nic); !strings.Contains(address, "10.9.0.5/16") || !strings.Contains(address, "mtu 1400") {
		t.Errorf("address is %q", address)
	}
	second := <-leases
	if !second.address.Equal(first.address) {
		t.Errorf("renewed to %v from %v", second.address, first.address)
	}
	if err := second.apply(nic, true); err != nil {
		t.Errorf("second time: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	var kinds []string
	for len(requests) > 0 {
		r := <-requests
		kinds = append(kinds, r.MessageType().String()+" from "+r.ClientIPAddr.String())
	}
	if got, want := strings.Join(kinds, ", "), "DISCOVER from 0.0.0.0, REQUEST from 0.0.0.0, REQUEST from 10.9.0.5"; got != want {
		t.Errorf("the server saw %s; want %s", got, want)
	}
}

// serve gives 10.9.0.5 for two seconds to everybody. Each answer comes after rubbish and a stranger's, which must be ignored.
func serve(t *testing.T, requests chan<- *dhcpv4.DHCPv4) {
	t.Helper()
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		requests <- m
		kind := dhcpv4.MessageTypeAck
		if m.MessageType() == dhcpv4.MessageTypeDiscover {
			kind = dhcpv4.MessageTypeOffer
		}
		answer, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 5)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1))), dhcpv4.WithNetmask(net.CIDRMask(16, 32)),
			dhcpv4.WithRouter(net.IPv4(10, 9, 0, 1)), dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(2*time.Second)),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, dhcpv4.Uint16(1400).ToBytes()))
		if err != nil {
			t.Error(err)
			return
		}
		stranger := *answer
		stranger.TransactionID[0]++
		stranger.YourIPAddr = net.IPv4(10, 9, 0, 66)
		for _, packet := range [][]byte{{1, 2, 3}, stranger.ToBytes(), answer.ToBytes()} {
			if _, err := conn.WriteTo(packet, peer); err != nil {
				t.Error(err)
			}
		}
	}
	thread, moved := make(chan int), make(chan struct{})
	opened := make(chan *server4.Server)
	go func() { // its thread gets a namespace of its own, and what it starts and opens belongs there
		defer close(opened)
		defer close(thread)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		thread <- unix.Gettid()
		<-moved
		for _, args := range [][]string{{"link", "set", "server", "up"}, {"addr", "add", "10.9.0.1/16", "dev", "server"}} {
			if said, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %v: %v: %s", args, err, said)
				return
			}
		}
		server, err := server4.NewServer("server", nil, handler)
		if err != nil {
			t.Error(err)
			return
		}
		opened <- server
	}()
	command(t, fmt.Sprintf("ip link set server netns %d", <-thread))
	close(moved)
	server, ok := <-opened
	if !ok {
		t.FailNow()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve() // ends when closed
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

func command(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	said, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, said)
	}
	return string(said)
}
