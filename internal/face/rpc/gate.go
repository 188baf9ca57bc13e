package rpc

import (
	"context"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// original names the caller of a call that was passed on, as the host knows it that passes it on. Only hosts are believed.
const original = "Godwit-Caller"

// originalMax is the longest name of a caller that is believed.
const originalMax = 64

// hostShare is how many callers' limits a host has: the calls that it passes on are those of all its users, and each was counted
// there before.
const hostShare = 8

// Caller is who makes a call, as the server that took the connection knows it.
type Caller struct {
	Name    string           // of a user of this machine; empty otherwise
	Host    inventory.HostID // of a host of the cluster; empty otherwise
	Address string           // of a stranger; empty otherwise
	Refused error            // why nothing of it is answered
}

// Limits bound what one caller may have and do. All must be positive.
type Limits struct {
	Calls          int // under way at once
	Streams        int // of them that last
	PerSecond      int // calls on average
	Burst          int // calls at once before the average counts
	JoinsPerMinute int // of a stranger's address
	RequestBytes   int // of one message
	RequestTime    time.Duration
}

// Callers is how a handler knows who calls, and what each may.
type Callers struct {
	Who    func(*http.Request) Caller
	Limits Limits
}

// gate stands before the API: it turns away those over their limits and writes down who calls.
type gate struct {
	next    http.Handler
	callers Callers
	tally   *tally // of users and hosts
	joins   *tally // of strangers
	errors  *connect.ErrorWriter
	streams map[string]bool // paths of calls that last
}

func newGate(next http.Handler, c Callers) *gate {
	l := c.Limits
	return &gate{
		next: next, callers: c, errors: connect.NewErrorWriter(), streams: lasting(),
		tally: newTally(bounds{calls: l.Calls, streams: l.Streams, perSecond: float64(l.PerSecond), burst: l.Burst, waitMax: waitMax}),
		joins: newTally(bounds{calls: l.JoinsPerMinute, streams: 1, perSecond: float64(l.JoinsPerMinute) / 60, burst: l.JoinsPerMinute}),
	}
}

// lasting lists the paths of calls that stream, from the definition of the API.
func lasting() map[string]bool {
	paths := map[string]bool{}
	services := godwitv1.File_godwit_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			if m := methods.Get(j); m.IsStreamingClient() || m.IsStreamingServer() {
				paths["/"+string(services.Get(i).FullName())+"/"+string(m.Name())] = true
			}
		}
	}
	return paths
}

// ServeHTTP lets one call through, or says why not.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := g.callers.Who(r)
	if who.Refused != nil {
		refuse(g.errors, w, r, who.Refused)
		return
	}
	if who.Host == "" { // only hosts pass calls on, and only they are believed
		r.Header.Del(forwarded)
		r.Header.Del(original)
	}
	stream := g.streams[r.URL.Path]
	leave, err := g.enter(r.Context(), who, r.URL.Path, stream)
	if err != nil {
		refuse(g.errors, w, r, err)
		return
	}
	defer leave()
	if !stream {
		// A caller that sends its request a byte at a time holds its place no longer than that. What cannot have a deadline has none:
		// HTTP/1.1 after a hijack, which no call of ours does.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.callers.Limits.RequestTime))
	}
	g.next.ServeHTTP(w, r.WithContext(task.WithCaller(r.Context(), task.Caller{Name: nameOf(who, r.Header)})))
}

// enter counts the call. Hand-overs between hosts are under no limit: a release that waits for its turn would stop a guest.
func (g *gate) enter(ctx context.Context, who Caller, path string, stream bool) (leave func(), err error) {
	switch {
	case who.Host != "" && strings.HasPrefix(path, "/"+godwitv1connect.HandoverServiceName+"/"):
		return func() {}, nil
	case who.Host != "":
		return g.tally.enter(ctx, "host "+string(who.Host), hostShare, stream)
	case who.Name != "":
		return g.tally.enter(ctx, "user "+who.Name, 1, stream)
	}
	leave, err = g.joins.enter(ctx, "address "+who.Address, 1, stream)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "more than %d attempts to join per minute from %s (limits.joins-per-minute): try again later",
			g.callers.Limits.JoinsPerMinute, who.Address)
	}
	return leave, nil
}

// Refuse answers a call with the error, in the protocol that the caller speaks: Connect, gRPC, gRPC-Web, or plain HTTP.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	refuse(connect.NewErrorWriter(), w, r, err)
}

func refuse(writer *connect.ErrorWriter, w http.ResponseWriter, r *http.Request, err error) {
	if writer.IsSupported(r) {
		_ = writer.Write(w, r, wire.Fault(err)) // whoever is turned away may have gone
		return
	}
	code := http.StatusServiceUnavailable
	if fault.Is(err, fault.Denied) {
		code = http.StatusForbidden
	} else if fault.Is(err, fault.NoResources) {
		code = http.StatusTooManyRequests
	}
	http.Error(w, err.Error(), code)
}

// nameOf returns what tasks and events show of the caller: "alice"; "host host-2"; "alice@host-2" for a call that host-2 passes
// on for its user alice; nothing for a stranger.
func nameOf(who Caller, header http.Header) string {
	if who.Host == "" {
		return who.Name
	}
	by := header.Get(original)
	if by == "" || header.Get(forwarded) == "" || len(by) > originalMax || strings.ContainsFunc(by, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "host " + string(who.Host)
	}
	return by + "@" + string(who.Host)
}
