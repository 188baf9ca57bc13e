package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// linksSettle is how long the host's links may go on changing before they are looked at: one cable makes several messages.
const linksSettle = 100 * time.Millisecond

// remember keeps the cluster's networks, so that the driver of one is known also while the store is away. A network's driver never changes.
func (a *Agent) remember(all []inventory.Network) {
	a.networksMu.Lock()
	defer a.networksMu.Unlock()
	for _, n := range all {
		a.networks[n.ID] = n.Spec
	}
}

// network returns what the cluster says of a network. Whoever starts or takes a VM has described the host before, which remembers all of them.
func (a *Agent) network(id inventory.NetworkID) inventory.NetworkSpec {
	a.networksMu.Lock()
	defer a.networksMu.Unlock()
	return a.networks[id]
}

// segment makes sure that this host has a bridge network, and returns its bridge.
func (a *Agent) segment(id inventory.NetworkID) (bridge.Segment, error) {
	n, err := a.carried(inventory.Network{ID: id, Spec: a.network(id)})
	if err != nil {
		return bridge.Segment{}, err
	}
	return bridge.Ready(n)
}

// carried says what carries a bridge network on this host.
func (a *Agent) carried(n inventory.Network) (bridge.Network, error) {
	carrier, ok := a.Carriers[n.ID]
	if !ok {
		return bridge.Network{}, fault.New(fault.Incompatible, "nothing says what carries it there: write [networks.%s] with bridge or uplink into the configuration file, or start it with --network %s=bridge:NAME", n.ID, n.ID)
	}
	return bridge.Network{Owner: a.RunDir, ID: n.ID, VLAN: n.Spec.VLAN, MTU: n.Spec.MTU, Carrier: carrier}, nil
}

// bridges says which bridge networks this host has, and why not the others.
func (a *Agent) bridges(all []inventory.Network) (have []inventory.NetworkID, missing []inventory.NetworkMissing) {
	a.remember(all)
	for _, n := range all {
		if !n.Spec.IsBridge() {
			continue
		}
		if _, err := a.segment(n.ID); err != nil {
			missing = append(missing, inventory.NetworkMissing{Network: n.ID, Why: err.Error()})
		} else {
			have = append(have, n.ID)
		}
	}
	return have, missing
}

// followLinks looks after the bridge networks whenever a link of the host changes; followNetworks does so when the networks do.
func (a *Agent) followLinks(ctx context.Context) error {
	for ctx.Err() == nil {
		changed, err := bridge.Watch(ctx)
		if err != nil {
			a.Log.LogAttrs(ctx, slog.LevelWarn, "links are looked at from time to time only", slog.Any("err", err))
			<-ctx.Done() // followNetworks looks too
			return nil
		}
		for range changed {
			select {
			case <-ctx.Done():
			case <-time.After(linksSettle):
				a.keepBridges(ctx, nil)
			}
		}
		select { // messages were lost
		case <-ctx.Done():
		case <-time.After(resyncEvery):
			a.keepBridges(ctx, nil)
		}
	}
	return nil
}

// keepBridges publishes which bridge networks this host has when that has changed, and removes bridges of its own that nobody wants any
// more. all is nil for the networks as they were when somebody last asked.
func (a *Agent) keepBridges(ctx context.Context, all []inventory.Network) {
	if all == nil {
		a.networksMu.Lock()
		for id, spec := range a.networks {
			all = append(all, inventory.Network{ID: id, Spec: spec})
		}
		a.networksMu.Unlock()
		slices.SortFunc(all, func(x, y inventory.Network) int { return cmp.Compare(x.ID, y.ID) })
	} else {
		a.sweepBridges(ctx, all)
	}
	have, missing := a.bridges(all)
	a.mu.Lock()
	same := slices.Equal(have, a.published.Networks) && reflect.DeepEqual(missing, a.published.Missing)
	a.mu.Unlock()
	if same {
		return
	}
	for _, m := range missing {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "network is not here", slog.String("network", string(m.Network)), slog.String("why", m.Why))
	}
	within, done := context.WithTimeout(ctx, storeTimeout)
	defer done()
	if err := a.publish(within); err != nil && ctx.Err() == nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "host not published, will be again", slog.Any("err", err))
	}
}

// sweepBridges removes what Godwit made for networks that are gone or carried by something else now.
func (a *Agent) sweepBridges(ctx context.Context, all []inventory.Network) {
	var keep []bridge.Network
	for _, n := range all {
		if c, err := a.carried(n); err == nil && n.Spec.IsBridge() {
			keep = append(keep, c)
		}
	}
	if err := bridge.Sweep(a.RunDir, keep); err != nil {
		a.Log.LogAttrs(ctx, slog.LevelWarn, "own bridges not swept", slog.Any("err", err))
	}
}

// Networks returns all segments, each with the hosts that have it and why others do not, as they last said.
func (a *Agent) Networks(ctx context.Context) ([]inventory.Network, error) {
	all, err := a.Store.Networks(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := a.Store.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		for _, h := range hosts {
			why := h.Spec.LacksNetwork(all[i].ID)
			if all[i].Spec.IsBridge() && why == "" && !slices.Contains(h.Spec.Networks, all[i].ID) {
				why = "it has not looked yet: see whether its agent runs"
			}
			all[i].Hosts = append(all[i].Hosts, inventory.NetworkHost{Host: h.ID, Why: why})
		}
	}
	return all, nil
}

// Bounds of a bridge network's MTU: the least that every IPv4 host takes (RFC 791), and what switches call jumbo frames.
const (
	mtuMin = 576
	mtuMax = 9216
)

// driverProblems lists what does not go together with the network's driver.
func driverProblems(s inventory.NetworkSpec) []string {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	switch s.Driver {
	case "", inventory.UserNetwork:
		if s.VLAN != 0 || s.MTU != 0 {
			add("a VLAN or an MTU is for a network on a bridge: add --driver bridge")
		}
	case inventory.BridgeNetwork:
		if s.Subnet != "" || s.Gateway != "" || len(s.Forwards) > 0 {
			add("a network on a bridge has the LAN's own gateway and DHCP: leave --subnet, --gateway and --forward out")
		}
		if s.VLAN < 0 || s.VLAN > 4094 {
			add("VLAN %d is not possible: take 1 to 4094, or 0 for frames without a tag", s.VLAN)
		}
		if s.MTU != 0 && (s.MTU < mtuMin || s.MTU > mtuMax) {
			add("an MTU of %d is not possible: take %d to %d, or 0 for the guest's own", s.MTU, mtuMin, mtuMax)
		}
	default:
		add("network driver %q is unknown: take user or bridge", s.Driver)
	}
	return bad
}
