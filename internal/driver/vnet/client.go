package vnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// answerMax bounds what a client reads of one answer.
const answerMax = 64 << 20

// Client drives a Switch over its control socket. All calls are idempotent and may be repeated after an error; they
// return fault.Unavailable while no switch answers there, and the switch's own kinds otherwise. Many goroutines may
// use one Client.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the switch whose control socket is at that path. It does not connect yet.
func NewClient(socket string) *Client {
	dialer := net.Dialer{Timeout: 2 * time.Second}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns:    4,
		IdleConnTimeout: 30 * time.Second,
	}}}
}

// Close drops idle connections. The client may be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// AddPort makes the port exist and its socket accept connections. A port that exists with the same spec is left alone,
// whatever its mode; one that differs is fault.Exists.
func (c *Client) AddPort(ctx context.Context, spec PortSpec) error {
	return c.call(ctx, "add-port", spec, &empty{})
}

// RemovePort closes and forgets the port in any mode. A port that is not there is no error.
func (c *Client) RemovePort(ctx context.Context, id string) error {
	return c.call(ctx, "remove-port", portRequest{ID: id}, &empty{})
}

// Reserve makes the port exist for the guest that the migration will bring from source: QEMU may connect, nothing
// passes but frames that source forwards, which are queued. Repeating it is no error, an open port is fault.Conflict.
func (c *Client) Reserve(ctx context.Context, spec PortSpec, id inventory.MigrationID, source inventory.HostID) error {
	return c.call(ctx, "reserve", reserveRequest{Spec: spec, Migration: id, Source: source}, &empty{})
}

// Hold stops writing to the port's QEMU, queues what comes, and returns once QEMU has read everything written before.
// When that takes longer than drain, a second at most, the port stays held and the error (fault.Unavailable) says how much
// was unread. When ctx ends earlier nobody knows whether the port is held: give the switch its time there, and bound the
// wait with drain. Call it shortly before the vCPUs stop.
func (c *Client) Hold(ctx context.Context, port string, drain time.Duration) error {
	return c.call(ctx, "hold", portRequest{ID: port, Drain: drain}, &empty{})
}

// Unhold writes what was queued since Hold and lets the port carry frames again. A normal port is left alone; a
// forwarding one is fault.Conflict (see Abort).
func (c *Client) Unhold(ctx context.Context, port string) error {
	return c.call(ctx, "unhold", portRequest{ID: port}, &empty{})
}

// Track holds the port as Hold does and counts from now on, once Unhold lets frames pass again, those that are written
// to its client and that a guest with this filter takes. The guest's receive ring must be read between Track and Unhold:
// nothing is on the way then.
func (c *Client) Track(ctx context.Context, port string, filter Filter) error {
	return c.call(ctx, "track", trackRequest{ID: port, Filter: filter}, &empty{})
}

// Tracked returns how many frames were written since Track that the guest takes, 0 for a port that is not tracked. The
// number stands still while the port is held.
func (c *Client) Tracked(ctx context.Context, port string) (uint64, error) {
	var a trackAnswer
	err := c.call(ctx, "tracked", portRequest{ID: port}, &a)
	return a.Written, err
}

// Forward sends the last again frames that were written since Track (those that the guest did not get before it stopped),
// everything queued since Hold, and everything that follows, to the reserved port of the target host, and keeps a copy
// of each frame. Call it when the guest has stopped. Without a trunk to the target it returns fault.Unavailable and the
// port stays held.
func (c *Client) Forward(ctx context.Context, port string, target inventory.HostID, id inventory.MigrationID, again int) error {
	return c.call(ctx, "forward", portRequest{ID: port, Host: target, Migration: id, Again: again}, &empty{})
}

// Abort takes a held or forwarding port back to normal: every frame since Hold is written to its own QEMU in order. Call
// it only when the target can never run the guest. A normal port is left alone; a committed one is fault.Conflict.
func (c *Client) Abort(ctx context.Context, port string, id inventory.MigrationID) error {
	return c.call(ctx, "abort", portRequest{ID: port, Migration: id}, &empty{})
}

// Commit drops the copies: the guest runs at the target. The port goes on forwarding until every peer has said that no
// more can come, or forwardLinger at most, and then removes itself. A port that is gone is no error.
func (c *Client) Commit(ctx context.Context, port string, id inventory.MigrationID) error {
	return c.call(ctx, "commit", portRequest{ID: port, Migration: id}, &empty{})
}

// Open lets the guest of a reserved port onto the network: queued frames first, then the peers are told that its
// address moved, then it is announced by reverse ARP. Call it right after cont. Repeating it is no error.
func (c *Client) Open(ctx context.Context, port string, id inventory.MigrationID) error {
	return c.call(ctx, "open", portRequest{ID: port, Migration: id}, &empty{})
}

// Discard removes a reserved port and drops its queue. A port that is gone is no error, an open one fault.Conflict.
func (c *Client) Discard(ctx context.Context, port string, id inventory.MigrationID) error {
	return c.call(ctx, "discard", portRequest{ID: port, Migration: id}, &empty{})
}

// SetNetworks makes exactly these networks exist here. A network that still has ports cannot go: fault.Conflict, and
// nothing changes. Gateways that did not change go on undisturbed.
func (c *Client) SetNetworks(ctx context.Context, networks []NetworkSpec) error {
	return c.call(ctx, "set-networks", networks, &empty{})
}

// SetPeers makes exactly these hosts the trunk peers; trunks to peers that did not change are left alone. The switch's
// own host in the list is ignored.
func (c *Client) SetPeers(ctx context.Context, peers []Peer) error {
	return c.call(ctx, "set-peers", peers, &empty{})
}

// Status returns everything about the switch.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, "status", empty{}, &s)
	return s, err
}

// Ports returns the ports, sorted by id.
func (c *Client) Ports(ctx context.Context) ([]PortStatus, error) {
	s, err := c.Status(ctx)
	return s.Ports, err
}

// Port returns one port, or fault.NotFound.
func (c *Client) Port(ctx context.Context, id string) (PortStatus, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return PortStatus{}, err
	}
	for _, p := range s.Ports {
		if p.ID == id {
			return p, nil
		}
	}
	return PortStatus{}, fault.New(fault.NotFound, "port %s: not on this switch", id)
}

// Networks returns the networks, sorted by id.
func (c *Client) Networks(ctx context.Context) ([]NetworkStatus, error) {
	s, err := c.Status(ctx)
	return s.Networks, err
}

// Peers returns the trunks, sorted by peer.
func (c *Client) Peers(ctx context.Context) ([]PeerStatus, error) {
	s, err := c.Status(ctx)
	return s.Peers, err
}

func (c *Client) call(ctx context.Context, op string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fault.New(fault.Internal, "switch: encode %s: %w", op, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://switch/v1/"+op, bytes.NewReader(body))
	if err != nil {
		return fault.New(fault.Internal, "switch: %w", err)
	}
	req.Header.Set("Idempotency-Key", op) // lets net/http retry on a connection that the restarted switch has closed
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fault.New(fault.Canceled, "switch: %s: %w", op, ctx.Err())
		}
		if opErr, ok := errors.AsType[*net.OpError](err); ok {
			err = opErr.Err
		}
		return fault.New(fault.Unavailable, "switch: no answer at %s: %w: is the switch process running?", c.socket, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to the end below
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if err != nil {
		return fault.New(fault.Unavailable, "switch: %s: answer cut short: %w", op, err)
	}
	if resp.StatusCode != http.StatusOK {
		var p problem
		if err := json.Unmarshal(answer, &p); err != nil || p.Message == "" {
			return fault.New(fault.Internal, "switch: %s: answered %s", op, resp.Status)
		}
		return fault.New(fault.ParseKind(p.Kind), "switch: %s", p.Message)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fault.New(fault.Internal, "switch: %s: answer is no JSON: %w", op, err)
	}
	return nil
}
