package qga

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of what is kept of an answer.
const (
	TextMax      = 128 // bytes of a name or a version
	NICsMax      = 64  // network cards
	AddressesMax = 32  // of one card
)

// Clean makes a text from a guest fit to be shown: control characters, and those that turn the direction of writing round, become
// spaces, and it ends after TextMax bytes.
func Clean(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), TextMax)], "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s))
}

// Ping asks whether the agent answers.
func (c *Client) Ping(ctx context.Context) error { return c.call(ctx, "guest-ping", nil, nil) }

// Version returns the agent's version, cleaned.
func (c *Client) Version(ctx context.Context) (string, error) {
	var info struct {
		Version string `json:"version"`
	}
	err := c.call(ctx, "guest-info", nil, &info)
	return Clean(info.Version), err
}

// Hostname returns the guest's name for itself, cleaned.
func (c *Client) Hostname(ctx context.Context) (string, error) {
	var name struct {
		Name string `json:"host-name"`
	}
	err := c.call(ctx, "guest-get-host-name", nil, &name)
	return Clean(name.Name), err
}

// System returns the guest's name for its operating system, like "Debian GNU/Linux 12 (bookworm)", cleaned.
func (c *Client) System(ctx context.Context) (string, error) {
	var os struct {
		Pretty  string `json:"pretty-name"`
		Name    string `json:"name"`
		Version string `json:"version"`
		Kernel  string `json:"kernel-release"`
	}
	err := c.call(ctx, "guest-get-osinfo", nil, &os)
	switch {
	case os.Pretty != "":
		return Clean(os.Pretty), err
	case os.Name != "":
		return Clean(os.Name + " " + os.Version), err
	case os.Kernel != "": // a guest without /etc/os-release
		return Clean("kernel " + os.Kernel), err
	}
	return "", err
}

// NIC is a network card as the guest sees it.
type NIC struct {
	Name      string // as the guest calls it, cleaned
	MAC       string // canonical lower-case; empty when the card has none
	Addresses []netip.Prefix
}

// NICs lists the guest's network cards but its loopback, and of their addresses those that others could reach: no link-local
// ones. What is no address is left out.
func (c *Client) NICs(ctx context.Context) ([]NIC, error) {
	var list []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := c.call(ctx, "guest-network-get-interfaces", nil, &list); err != nil {
		return nil, err
	}
	var nics []NIC
	for _, l := range list {
		n := NIC{Name: Clean(l.Name)}
		if mac, err := net.ParseMAC(l.MAC); err == nil && len(mac) == 6 {
			n.MAC = mac.String()
		}
		loopback := false
		for _, a := range l.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if err != nil || ip.Zone() != "" {
				continue
			}
			loopback = loopback || ip.IsLoopback()
			prefix, err := ip.Prefix(a.Prefix)
			if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || len(n.Addresses) == AddressesMax {
				continue
			}
			n.Addresses = append(n.Addresses, netip.PrefixFrom(ip, prefix.Bits()))
		}
		if loopback || len(nics) == NICsMax {
			continue
		}
		nics = append(nics, n)
	}
	return nics, nil
}

// shutdownHears is how long Shutdown listens for a refusal. The agent says nothing when it does as asked.
const shutdownHears = time.Second

// Shutdown asks the guest to power itself off and returns without waiting for that; nil says only that the agent did not refuse.
// Whether the guest goes, QEMU's SHUTDOWN event tells.
func (c *Client) Shutdown(ctx context.Context) error {
	return fault.Wrap("guest agent", "guest-shutdown", c.within(ctx, CallMax, func() error {
		if err := c.step(); err != nil {
			return err
		}
		c.inStep = false
		if err := c.send("guest-shutdown", map[string]any{"mode": "powerdown"}); err != nil {
			return err
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(shutdownHears)) // fails on a closed connection only
		line, err := c.in.line()
		if err != nil {
			return nil //nolint:nilerr // silence, and a port that the guest closes as it goes, are what is hoped for
		}
		c.inStep = true
		return read(line, nil)
	}))
}

// FreezeMax bounds Freeze and Thaw: a guest with a slow disk has much to flush, and its hooks have databases to quiet.
const FreezeMax = 30 * time.Second

// Frozen reports whether file systems of the guest are frozen by its agent.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var status string
	if err := c.call(ctx, "guest-fsfreeze-status", nil, &status); err != nil {
		return false, err
	}
	switch status {
	case "thawed":
		return false, nil
	case "frozen":
		return true, nil
	}
	return false, fault.Wrap("guest agent", "guest-fsfreeze-status", fault.New(fault.Internal, "the status %s is unknown", strconv.Quote(Clean(status))))
}

// Freeze flushes and freezes the guest's file systems, runs the guest's own hooks before, and returns how many were frozen. Whoever
// writes in the guest then waits until Thaw, which the caller must see to: also when this fails, since a guest that answered too late
// is frozen all the same.
func (c *Client) Freeze(ctx context.Context) (int, error) {
	var n int
	err := c.callFor(ctx, FreezeMax, "guest-fsfreeze-freeze", nil, &n)
	return n, err
}

// Thaw ends Freeze and returns how many file systems were thawed; none is no error.
func (c *Client) Thaw(ctx context.Context) (int, error) {
	var n int
	err := c.callFor(ctx, FreezeMax, "guest-fsfreeze-thaw", nil, &n)
	return n, err
}
