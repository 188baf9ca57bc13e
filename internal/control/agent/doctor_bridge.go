package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// checkBridges says which bridge networks this host has, and what its kernel can do for them.
func (a *Agent) checkBridges(ctx context.Context) Check {
	c := Check{Name: "bridge", State: "good"}
	all, err := a.Store.Networks(ctx)
	if err != nil {
		return Check{Name: "bridge", State: "bad", Detail: err.Error(), Fix: "see whether the store answers"}
	}
	all = slices.DeleteFunc(all, func(n inventory.Network) bool { return !n.Spec.IsBridge() })
	have, missing := a.bridges(all)
	if len(all) == 0 {
		c.Detail = "no network is on a bridge"
	} else {
		c.Detail = fmt.Sprintf("%d of %d networks on bridges are here", len(have), len(all))
	}
	for _, m := range missing {
		c.State = "warn"
		what, fix := m.Why, ""
		if i := strings.LastIndex(m.Why, ": "); i > 0 {
			what, fix = m.Why[:i], m.Why[i+2:]
		}
		c.Detail += fmt.Sprintf("; not %s: %s", m.Network, what)
		if c.Fix == "" {
			c.Fix = fix
		}
	}
	if err := bridge.Vhost(); err != nil {
		c.Detail += "; no vhost-net (" + err.Error() + "): QEMU carries frames itself, at more cost"
		if len(all) > 0 && c.Fix == "" {
			c.State, c.Fix = "warn", "modprobe vhost_net"
		}
	}
	if err := bridge.VLANs(); err != nil {
		what, _, _ := strings.Cut(err.Error(), ":")
		c.Detail += "; " + what
	}
	return c
}
