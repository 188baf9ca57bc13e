package rpc

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// hostShare is how many callers' limits a host has: the calls that it passes on are those of all its users, and each was counted
// there before.
const hostShare = 8

// Caller is who makes a call, as the server that took the connection knows it.
type Caller struct {
	Name    string           // of a user of this machine; empty otherwise
	Role    inventory.Role   // of a user of this machine
	Mapped  bool             // a user of the cluster of the same name has that user's role instead
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
	Who func(*http.Request) Caller
	// Directory says who a stranger with a token is, and what users may. nil: no token is good, and users are what Who says.
	Directory Directory
	// Recognize is told whose token was shown on a call's connection; its error refuses the call. May be nil.
	Recognize func(ctx context.Context, user string) error
	Limits    Limits
}

// gate stands before the API: it finds out who calls, turns away those over their limits and those who may not, and writes down
// who was turned away.
type gate struct {
	next    http.Handler
	callers Callers
	tally   *tally // of users and hosts
	joins   *tally // of strangers
	tries   *tries // of tokens
	errors  *connect.ErrorWriter
	streams map[string]bool // paths of calls that last
	note    func(context.Context, inventory.Event)
}

func newGate(next http.Handler, c Callers, note func(context.Context, inventory.Event)) *gate {
	l := c.Limits
	return &gate{
		next: next, callers: c, errors: connect.NewErrorWriter(), streams: lasting(), note: note, tries: newTries(l.JoinsPerMinute),
		tally: newTally(bounds{calls: l.Calls, streams: l.Streams, perSecond: float64(l.PerSecond), burst: l.Burst, waitMax: waitMax}),
		joins: newTally(bounds{calls: l.JoinsPerMinute, streams: 1, perSecond: float64(l.JoinsPerMinute) / 60, burst: l.JoinsPerMinute}),
	}
}

// lasting lists the paths of calls that stream, from the definition of the API.
func lasting() map[string]bool {
	paths := map[string]bool{}
	procedures(func(path string, m protoreflect.MethodDescriptor) {
		if m.IsStreamingClient() || m.IsStreamingServer() {
			paths[path] = true
		}
	})
	return paths
}

// procedures calls f with each call of the API, in all files of its definition.
func procedures(f func(path string, m protoreflect.MethodDescriptor)) {
	api := godwitv1.File_godwit_v1_api_proto.Package()
	protoregistry.GlobalFiles.RangeFilesByPackage(api, func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				f("/"+string(service.FullName())+"/"+string(m.Name()), m)
			}
		}
		return true
	})
}

// ServeHTTP lets one call through, or says why not.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := g.callers.Who(r)
	if who.Refused != nil {
		refuse(g.errors, w, r, who.Refused)
		return
	}
	if who.Host == "" { // only hosts pass calls on, and only they are believed
		for _, name := range []string{forwarded, original, originalUser, originalRole} {
			r.Header.Del(name)
		}
	}
	id, leave, err := g.admit(r, who)
	if err != nil {
		refuse(g.errors, w, r, err)
		return
	}
	defer leave()
	ctx, end := task.WithCaller(context.WithValue(r.Context(), hostKey{}, who.Host), id.caller()), func() {}
	if g.streams[r.URL.Path] {
		ctx, end = g.keepJudging(ctx, r, who, id, http.NewResponseController(w))
	} else {
		// A caller that sends its request a byte at a time holds its place no longer than that. What cannot have a deadline has none:
		// HTTP/1.1 after a hijack, which no call of ours does.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.callers.Limits.RequestTime))
	}
	defer end()
	g.next.ServeHTTP(w, r.WithContext(ctx))
}

type hostKey struct{}

// hostOf returns the host that makes the call of this context itself, as its certificate says; empty for everybody else.
func hostOf(ctx context.Context) inventory.HostID {
	host, _ := ctx.Value(hostKey{}).(inventory.HostID)
	return host
}

// admit finds out who calls, counts the call and judges it. The call is over when leave is called.
func (g *gate) admit(r *http.Request, who Caller) (id identity, leave func(), err error) {
	ctx, path := r.Context(), r.URL.Path
	call, right, exists := callOf(path)
	if !exists {
		return id, nil, fault.New(fault.Denied, "there is no call %q that anybody may make", path)
	}
	id, leave = g.meet(who, r.Header), func() {}
	failed := func(err error) (identity, func(), error) {
		leave()
		g.refused(ctx, call, right, id, err)
		return id, nil, err
	}
	if id.stranger && !right.anybody && r.Header.Get("Authorization") != "" {
		if id, err = g.byToken(ctx, who, r.Header); err == nil && g.callers.Recognize != nil {
			err = g.callers.Recognize(ctx, id.name)
		}
		if err != nil {
			return failed(err)
		}
	}
	if enter, err := g.enter(ctx, id, path); err != nil {
		return failed(err)
	} else {
		leave = enter
	}
	if id.user != "" && !id.byToken {
		if id, err = g.known(ctx, id); err != nil {
			return failed(err)
		}
	}
	if err := judge(call, right, id); err != nil {
		return failed(err)
	}
	return id, leave, nil
}

// enter counts the call. Hand-overs between hosts are under no limit: a release that waits for its turn would stop a guest.
func (g *gate) enter(ctx context.Context, id identity, path string) (leave func(), err error) {
	switch stream := g.streams[path]; {
	case id.host != "" && strings.HasPrefix(path, "/"+godwitv1connect.HandoverServiceName+"/"):
		return func() {}, nil
	case !id.stranger:
		return g.tally.enter(ctx, id.tally, id.share, stream)
	default:
		leave, err = g.joins.enter(ctx, id.tally, id.share, stream)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "more than %d attempts to join per minute from %s (limits.joins-per-minute): try again later",
			g.callers.Limits.JoinsPerMinute, id.from)
	}
	return leave, nil
}

// judgeEvery is how often it is asked again whether a call that lasts is still its caller's to make.
const judgeEvery = 5 * time.Second

// keepJudging returns a context for a call that lasts: it ends, with the reason as its cause, when the caller's token was revoked or has expired,
// or when the caller has no longer the role, judgeEvery later at most. While the store is away the call goes on.
func (g *gate) keepJudging(base context.Context, r *http.Request, who Caller, id identity, control *http.ResponseController) (context.Context, func()) {
	if id.user == "" || g.callers.Directory == nil {
		return base, func() {}
	}
	ctx, cancel := context.WithCancelCause(base)
	call, right, _ := callOf(r.URL.Path)
	var judging sync.WaitGroup
	judging.Go(func() {
		tick := time.NewTicker(judgeEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := g.judgeAgain(ctx, who, id, call, right, r.Header)
			if fault.Is(err, fault.Denied) {
				g.refused(ctx, call, right, id, err)
				cancel(err)
				_ = control.SetReadDeadline(time.Unix(1, 0)) // whoever waits for input wakes up
				return
			}
		}
	})
	return ctx, func() { cancel(nil); judging.Wait() }
}

func (g *gate) judgeAgain(ctx context.Context, who Caller, id identity, call string, r right, header http.Header) (err error) {
	if id.byToken {
		var u inventory.User
		if u, err = g.callers.Directory.Token(ctx, strings.TrimPrefix(header.Get("Authorization"), bearer)); err == nil {
			id.role = u.Role
		}
	} else {
		id, err = g.known(ctx, g.meet(who, header))
	}
	if err != nil {
		return err
	}
	return judge(call, r, id)
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
