package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/face/rpc"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// serve runs the agent and its two faces until ctx ends: the unix socket for users of this machine, the port for other hosts.
func serve(ctx context.Context, a *agent.Agent, c *hostConfig, r roleRun, identity *peer.Identity) error {
	set := r.set
	group, err := socketGroup(set)
	if err != nil {
		return err
	}
	l := set.Limits
	limits := rpc.Limits{
		Calls: l.Calls, Streams: l.Streams, PerSecond: l.CallsPerSecond, Burst: l.CallsBurst, JoinsPerMinute: l.JoinsPerMinute,
		RequestBytes: int(l.RequestSize), RequestTime: l.RequestTimeout,
	}
	listening := make(chan struct{})
	local := &peer.LocalServer{
		Path: set.Socket(), Group: group, Refuse: rpc.Refuse,
		HTTP:        rpc.Handler(a, true, rpc.Callers{Who: localCaller, Directory: a.Desk(), Limits: limits}),
		Connections: l.Connections, ConnectionsPerUser: l.ConnectionsPerUser,
		HeaderBytes: int(l.HeaderSize), HeaderTimeout: l.HeaderTimeout, IdleTimeout: l.IdleTimeout,
		Listening: func() { close(listening) },
	}
	remote := &peer.Server{
		Identity: identity, Stream: a.Stream,
		HTTP: rpc.Handler(a, false, rpc.Callers{Who: remoteCaller, Directory: a.Desk(), Recognize: peer.Recognize, Limits: limits}),
		Limits: peer.Limits{
			Handshakes: l.Handshakes, HandshakesPerAddress: l.HandshakesPerAddress, ConnectionsPerHost: l.ConnectionsPerHost, ConnectionsPerUser: l.ConnectionsPerUser,
			HeaderBytes: int(l.HeaderSize),
		},
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return a.Run(ctx) })
	all.Go(func() error { return c.follow(ctx, identity, r, a.Store, r.renewals) })
	all.Go(func() error {
		return cluster.Run(ctx, cluster.Config{Host: a.Host(), Epoch: a.Epoch(), Store: a.Store, Loops: leaderLoops(a, c, r), Log: r.log})
	})
	all.Go(func() error {
		select { // before it knows its VMs, the agent would deny that they exist
		case <-a.Ready():
			return local.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	all.Go(func() error {
		select {
		case <-listening:
			r.line.Beat(ctx, a.Alive)
		case <-ctx.Done():
			r.line.Ending()
		}
		return nil
	})
	all.Go(func() error {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.agentAddress())
		if err != nil {
			return fault.New(fault.Unavailable, "%w: is another agent on that address?", err)
		}
		return remote.Run(ctx, l)
	})
	return all.Wait()
}

// localCaller says who calls over the unix socket: an admin, but for a user whom the cluster knows by that name and who is not root nor the one
// that Godwit runs as.
func localCaller(r *http.Request) rpc.Caller {
	who, ok := peer.LocalCallerOf(r.Context())
	if !ok {
		return rpc.Caller{Refused: fault.New(fault.Denied, "nobody knows who makes this call")}
	}
	own := who.UID == 0 || int(who.UID) == os.Geteuid()
	return rpc.Caller{Name: who.Name, Role: inventory.Admin, Mapped: !own}
}

// remoteCaller says who calls over TLS.
func remoteCaller(r *http.Request) rpc.Caller {
	if err := peer.RefusedOf(r.Context()); err != nil {
		return rpc.Caller{Refused: err}
	}
	if host, ok := peer.HostID(r.Context()); ok {
		return rpc.Caller{Host: host}
	}
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	return rpc.Caller{Address: address}
}

// socketGroup returns the id of the group that may use the socket, -1 for none.
func socketGroup(set *config.Config) (int, error) {
	if set.SocketGroup == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(set.SocketGroup)
	if err != nil {
		v := set.Value("socket-group")
		return 0, fault.New(fault.Invalid, "socket-group %q (%s): %w: make it with groupadd --system %s", v.Text, v.Where, err, v.Text)
	}
	return strconv.Atoi(g.Gid)
}
