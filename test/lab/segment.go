package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/control"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/driver/vnet/netclient"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Network is the segment that a Cluster's guests are on; its gateway is on the first host.
const (
	Network = "lan"
	Subnet  = "10.10.0.0/24"
)

// bootMax bounds how long the Linux guest may take until it has an address.
const bootMax = 90 * time.Second

// Segment is a client on the guests' network segment: its frames go through the switch of one host like a guest's.
type Segment struct {
	*netclient.Client

	cancel context.CancelFunc
	ended  chan error
}

// JoinSegment attaches a client to the segment at the host's switch.
func (h *Host) JoinSegment(ctx context.Context) (*Segment, error) {
	mac := inventory.NewMAC()
	socket := filepath.Join(h.Run, "ports", "client-"+mac[12:]+".sock")
	port := vnet.PortSpec{ID: "client-" + mac, Network: Network, Socket: socket}
	switches := vnet.NewClient(filepath.Join(h.Run, "switch.sock"))
	defer switches.Close()
	// The agent tells the switch of a network that was just made within its next look at the store.
	if err := Until(ctx, 10*time.Second, func() error { return switches.AddPort(ctx, port) }); err != nil {
		return nil, err
	}
	client, err := netclient.New(netclient.Config{Socket: socket, MAC: mac})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Segment{Client: client, cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- client.Run(running) }() // waited for in Close
	select {
	case <-client.Ready():
		return s, nil
	case err := <-s.ended:
		cancel()
		return nil, fmt.Errorf("client on the segment: %w", err)
	case <-ctx.Done():
		cancel()
		return nil, errors.Join(ctx.Err(), <-s.ended)
	}
}

// Close leaves the segment.
func (s *Segment) Close() error {
	s.cancel()
	return <-s.ended
}

// Control dials the guest's control port.
func (s *Segment) Control(ctx context.Context, ip string) (*control.Client, error) {
	return Control(ctx, s, ip)
}

// Control dials the guest's control port from a client.
func Control(ctx context.Context, from Dialer, ip string) (*control.Client, error) {
	conn, err := from.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(control.Port)))
	if err != nil {
		return nil, err
	}
	return control.NewClient(conn), nil
}

// LinuxVM makes a VM with the Linux guest on the segment, its kernel on the shared datastore, and returns it with its
// address once it runs. A disk of diskSize bytes is added when that is not 0.
func (h *Host) LinuxVM(ctx context.Context, name string, memory inventory.Bytes, diskSize inventory.Bytes) (ip string, err error) {
	linux, err := guest.Images(ctx)
	if err != nil {
		return "", err
	}
	for from, to := range map[string]string{linux.Kernel: "vmlinuz", linux.Initrd: "initrd"} {
		if err := h.cluster.Put(from, to); err != nil {
			return "", err
		}
	}
	if _, err := h.Godwit(ctx, "network", "create", Network, "--subnet", Subnet, "--gateway", h.cluster.Hosts[0].Name); err != nil && ExitCode(err) != 4 {
		return "", err
	}
	args := []string{
		"vm", "create", name, "--memory", strconv.FormatInt(int64(memory), 10), "--kernel", "vmlinuz", "--initrd", "initrd",
		"--cmdline", linux.Cmdline, "--nic", Network,
	}
	if diskSize > 0 {
		args = append(args, "--disk", "size="+strconv.FormatInt(int64(diskSize), 10))
	}
	if _, err := h.Godwit(ctx, args...); err != nil {
		return "", err
	}
	if err := Until(ctx, 10*time.Second, func() error {
		_, err := h.Godwit(ctx, "vm", "start", name)
		return err
	}); err != nil {
		return "", err
	}
	return h.WaitAddress(ctx, name)
}

// WaitAddress waits until the guest's heartbeats say its address.
func (h *Host) WaitAddress(ctx context.Context, name string) (string, error) {
	ip := ""
	err := Until(ctx, bootMax, func() error {
		vm, err := h.VM(ctx, name)
		if err != nil {
			return err
		}
		if ip = vm.GetStatus().GetHeartbeat().GetIp(); ip == "" {
			return fmt.Errorf("%s has no address yet: it is %s", name, vm.GetStatus().GetState())
		}
		return nil
	})
	return ip, err
}

// Put copies a file onto the shared datastore, readable by the VMs' user.
func (c *Cluster) Put(from, name string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Datastore, name), text, 0o644) //nolint:gosec // QEMU's user reads it
}

// Until calls f until it returns nil, a bounded time has passed, or ctx ends; then it returns f's last error. It is for
// what another process brings about and no event tells.
func Until(ctx context.Context, most time.Duration, f func() error) error {
	ctx, done := context.WithTimeout(ctx, most)
	defer done()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
