package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/control/migrate"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Each NIC meets its network in a port of the driver that carries the network: the switch (driver/vnet) or a tap on a Linux bridge
// (driver/vnet/bridge). A port's id tells which: "vm-abc-0" on the switch, "tap:vm-abc-0" on a bridge; the number is the NIC's.
const tapPort = "tap:"

// portID is the id of a NIC's port on this host.
func (v *vm) portID(n inventory.NIC) string {
	id := string(v.id) + "-" + strconv.Itoa(n.Number())
	if v.agent.network(n.Network).IsBridge() {
		return tapPort + id
	}
	return id
}

// portIDs lists the VM's ports, on whichever driver, with the numbers of their NICs.
func (v *vm) portIDs() []migrate.Port {
	var all []migrate.Port
	for _, n := range v.stored.Spec.NICs {
		all = append(all, migrate.Port{ID: v.portID(n), NIC: n.Number()})
	}
	return all
}

// switchPort describes the port of a NIC on the switch; false for one on a bridge.
func (v *vm) switchPort(n inventory.NIC) (vnet.PortSpec, bool) {
	id := v.portID(n)
	if strings.HasPrefix(id, tapPort) {
		return vnet.PortSpec{}, false
	}
	spec := vnet.PortSpec{
		ID: id, Network: n.Network, MAC: n.MAC, Guard: true,
		Socket: filepath.Join(v.agent.RunDir, "ports", id+".sock"),
	}
	if v.agent.User != nil {
		spec.Owner = int(v.agent.User.UID)
	}
	return spec, true
}

// ports describes the VM's ports on the switch.
func (v *vm) ports() []vnet.PortSpec {
	var specs []vnet.PortSpec
	for _, n := range v.stored.Spec.NICs {
		if spec, ok := v.switchPort(n); ok {
			specs = append(specs, spec)
		}
	}
	return specs
}

// removePorts removes the VM's ports once its QEMU has ended. Taps have gone with it.
func (v *vm) removePorts(ctx context.Context) {
	for _, port := range v.portIDs() {
		if err := v.agent.removePort(ctx, port.ID); err != nil {
			v.log.LogAttrs(ctx, slog.LevelWarn, "port not removed", slog.String("port", port.ID), slog.Any("err", err))
		}
	}
}

// removePort removes one port of a VM that is off, or a NIC that was taken out.
func (a *Agent) removePort(ctx context.Context, id string) error {
	if vm, nic, ok := ofTap(id); ok {
		a.quiet(id)
		return bridge.Remove(vm, nic)
	}
	return a.Switch.RemovePort(ctx, id)
}

// ofTap returns whose tap a port is; false for a port on the switch.
func ofTap(port string) (inventory.VMID, int, bool) {
	id, ok := strings.CutPrefix(port, tapPort)
	i := strings.LastIndexByte(id, '-')
	if !ok || i < 0 {
		return "", 0, false
	}
	nic, err := strconv.Atoi(id[i+1:])
	return inventory.VMID(id[:i]), nic, err == nil
}

// plug is how QEMU is to be connected to the networks of some NICs.
type plug struct {
	sockets map[string]string   // by NIC name, of those on the switch
	taps    map[string]qemu.Tap // by NIC name, of those on a bridge; descriptors count from qemu.FirstFile
	files   []*os.File          // that the descriptors mean, in order
}

// close lets go of the files; taps that QEMU has live on with it.
func (p *plug) close() {
	for _, f := range p.files {
		_ = f.Close() // QEMU has its own duplicate, and nothing was written here
	}
}

// plugIn makes the taps of NICs on bridges, up for a guest that begins here and down for one that arrives, and says where the others' sockets
// are; their ports on the switch must be there. Close the plug when QEMU has its files. On an error nothing is left.
func (v *vm) plugIn(nics []inventory.NIC, arriving bool) (_ *plug, err error) {
	p := &plug{sockets: map[string]string{}, taps: map[string]qemu.Tap{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for _, n := range nics {
		if port, ok := v.switchPort(n); ok {
			p.sockets[n.Name] = port.Socket
			continue
		}
		tap, err := v.openTap(n, arriving)
		if err != nil {
			return nil, err
		}
		given := qemu.Tap{FD: qemu.FirstFile + len(p.files), MTU: v.agent.network(n.Network).MTU}
		p.files = append(p.files, tap.File)
		if tap.Vhost != nil {
			given.VhostFD = qemu.FirstFile + len(p.files)
			p.files = append(p.files, tap.Vhost)
		}
		p.taps[n.Name] = given
	}
	return p, nil
}

// openTap makes the tap of a NIC on a bridge, up for a guest that runs here.
func (v *vm) openTap(n inventory.NIC, arriving bool) (*bridge.Tap, error) {
	segment, err := v.agent.segment(n.Network)
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "%s has no network %s, which %s needs: %w", v.agent.Host(), n.Network, n.Name, err)
	}
	tap, err := bridge.Open(bridge.TapSpec{VM: v.id, NIC: n.Number(), Network: n.Network, MAC: n.MAC, Segment: segment})
	if err != nil || arriving {
		return tap, err
	}
	if err := bridge.Up(v.id, n.Number()); err != nil {
		tap.Close()
		return nil, err
	}
	return tap, nil
}

// outlet makes the port of a NIC that is to be plugged into the running VM.
func (v *vm) outlet(ctx context.Context, n inventory.NIC) (qemu.NICPlug, error) {
	if port, ok := v.switchPort(n); ok {
		return qemu.NICPlug{Socket: port.Socket}, v.agent.Switch.AddPort(ctx, port)
	}
	return qemu.NICPlug{MTU: v.agent.network(n.Network).MTU, Tap: func() (*os.File, *os.File, error) {
		tap, err := v.openTap(n, false)
		if err != nil {
			return nil, nil, err
		}
		return tap.File, tap.Vhost, nil
	}}, nil
}

// upTaps takes the taps of a VM that runs here up: its former agent may have been killed between cont and that.
func (v *vm) upTaps(ctx context.Context) {
	for _, port := range v.portIDs() {
		if vm, nic, ok := ofTap(port.ID); ok {
			if err := bridge.Up(vm, nic); err != nil {
				v.log.LogAttrs(ctx, slog.LevelWarn, "tap not up", slog.String("port", port.ID), slog.Any("err", err))
			}
		}
	}
}

// card is a NIC of a VM on this host as its network knows it.
func (a *Agent) card(id inventory.VMID, nic int) (bridge.Card, error) {
	v := a.lookup(id)
	if v == nil {
		return bridge.Card{}, fault.New(fault.NotFound, "vm %s is not at %s", id, a.Host())
	}
	vm := v.record()
	if pulse := v.snapshot().Heartbeat; pulse.IP != "" {
		vm.Status.Heartbeat = pulse
	}
	for _, n := range vm.Spec.NICs {
		if n.Number() == nic {
			known := append(guestAddresses(vm, n), v.addresses[n.MAC]...)
			return bridge.Card{VM: id, NIC: nic, MAC: n.MAC, Addresses: known}, nil
		}
	}
	return bridge.Card{}, fault.New(fault.NotFound, "vm %s has no nic%d", id, nic)
}

// guestAddresses are the IP addresses that the guest is known to have on a NIC. A heartbeat does not say on which it is.
func guestAddresses(vm inventory.VM, n inventory.NIC) []netip.Addr {
	var all []netip.Addr
	if ip, err := netip.ParseAddr(vm.Status.Heartbeat.IP); err == nil && len(vm.Spec.NICs) == 1 {
		all = append(all, ip)
	}
	for _, g := range vm.Status.Guest.NICs {
		for _, text := range g.Addresses {
			if p, err := netip.ParsePrefix(text); err == nil && g.MAC == n.MAC {
				all = append(all, p.Addr())
			}
		}
	}
	return all
}

// ports is migrate.Ports over both drivers.
type ports struct{ agent *Agent }

var _ migrate.Ports = ports{}

// Hold implements migrate.Ports. A tap needs none: the kernel keeps what QEMU does not read.
func (p ports) Hold(ctx context.Context, port string, drain time.Duration) error {
	if _, _, ok := ofTap(port); ok {
		return nil
	}
	return p.agent.Switch.Hold(ctx, port, drain)
}

// Unhold implements migrate.Ports.
func (p ports) Unhold(ctx context.Context, port string) error {
	if _, _, ok := ofTap(port); ok {
		return nil
	}
	return p.agent.Switch.Unhold(ctx, port)
}

// Track implements migrate.Ports.
func (p ports) Track(ctx context.Context, port string, filter vnet.Filter) error {
	if _, _, ok := ofTap(port); ok {
		return migrate.ErrNotCounted
	}
	return p.agent.Switch.Track(ctx, port, filter)
}

// Tracked implements migrate.Ports.
func (p ports) Tracked(ctx context.Context, port string) (uint64, error) {
	if _, _, ok := ofTap(port); ok {
		return 0, migrate.ErrNotCounted
	}
	return p.agent.Switch.Tracked(ctx, port)
}

// Forward implements migrate.Ports: the guest has stopped here, and nothing may come from its tap any more.
func (p ports) Forward(ctx context.Context, port string, target inventory.HostID, id inventory.MigrationID, again int) error {
	if vm, nic, ok := ofTap(port); ok {
		p.agent.quiet(port)
		return bridge.Leave(vm, nic)
	}
	return p.agent.Switch.Forward(ctx, port, target, id, again)
}

// Abort implements migrate.Ports: the guest runs on here.
func (p ports) Abort(ctx context.Context, port string, id inventory.MigrationID) error {
	if vm, nic, ok := ofTap(port); ok {
		return p.agent.arrive(ctx, port, vm, nic)
	}
	return p.agent.Switch.Abort(ctx, port, id)
}

// Commit implements migrate.Ports: a tap goes with its QEMU.
func (p ports) Commit(ctx context.Context, port string, id inventory.MigrationID) error {
	if _, _, ok := ofTap(port); ok {
		p.agent.quiet(port)
		return nil
	}
	return p.agent.Switch.Commit(ctx, port, id)
}

// Open implements migrate.Ports: the guest runs here from now on.
func (p ports) Open(ctx context.Context, port string, id inventory.MigrationID) error {
	if vm, nic, ok := ofTap(port); ok {
		return p.agent.arrive(ctx, port, vm, nic)
	}
	return p.agent.Switch.Open(ctx, port, id)
}

// Discard implements migrate.Ports.
func (p ports) Discard(ctx context.Context, port string, id inventory.MigrationID) error {
	if vm, nic, ok := ofTap(port); ok {
		return bridge.Remove(vm, nic)
	}
	return p.agent.Switch.Discard(ctx, port, id)
}

// arrive lets a guest onto its bridge and announces it, for the first time now and then beside whatever else goes on.
func (a *Agent) arrive(ctx context.Context, port string, vm inventory.VMID, nic int) error {
	card, err := a.card(vm, nic)
	if err != nil {
		return err
	}
	if err := bridge.Arrive(card); err != nil {
		return err
	}
	until, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a.mu.Lock()
	if before := a.announcing[port]; before != nil {
		before()
	}
	a.announcing[port] = cancel
	a.mu.Unlock()
	a.spawn(ctx, func(ctx context.Context) {
		defer context.AfterFunc(ctx, cancel)()
		if err := bridge.Announce(until, card); err != nil && !fault.Is(err, fault.NotFound) {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "announcement not repeated", slog.String("port", port), slog.Any("err", err))
		}
	})
	return nil
}

// quiet ends the announcements of a port whose guest leaves.
func (a *Agent) quiet(port string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if cancel := a.announcing[port]; cancel != nil {
		cancel()
		delete(a.announcing, port)
	}
}
