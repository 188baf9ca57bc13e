package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

var limits = Limits{Calls: 3, Streams: 2, PerSecond: 10, Burst: 5, JoinsPerMinute: 2, RequestBytes: 64 << 10, RequestTime: time.Second}

func mustEnter(t *testing.T, tl *tally, name string, stream bool) func() {
	t.Helper()
	leave, err := tl.enter(t.Context(), name, 1, stream)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestOneMoreCallThanACallerMayHave(t *testing.T) {
	tl := newTally(bounds{calls: 3, streams: 2, perSecond: 1000, burst: 1000, waitMax: waitMax})
	mustEnter(t, tl, "user a", true)
	end := mustEnter(t, tl, "user a", true)
	if _, err := tl.enter(t.Context(), "user a", 1, true); !fault.Is(err, fault.NoResources) || !strings.Contains(err.Error(), "limits.streams") {
		t.Errorf("the third stream: %v", err)
	}
	mustEnter(t, tl, "user a", false)
	if _, err := tl.enter(t.Context(), "user a", 1, false); !fault.Is(err, fault.NoResources) || !strings.Contains(err.Error(), "user a has 3 calls under way") {
		t.Errorf("the fourth call: %v", err)
	}
	mustEnter(t, tl, "user b", true) // nobody takes another's place
	end()
	mustEnter(t, tl, "user a", true)
	for range 4 * 2 {
		if _, err := tl.enter(t.Context(), "host h", 4, false); err != nil {
			t.Fatalf("a host has the places of several callers: %v", err)
		}
	}
}

// A caller that makes too many calls becomes slow first, and is refused when it does not wait.
func TestTooManyCallsPerSecondWaitAndAreThenRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl := newTally(bounds{calls: 1000, streams: 1, perSecond: 10, burst: 5, waitMax: waitMax})
		began := time.Now()
		for range 5 {
			mustEnter(t, tl, "user a", false)()
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the first calls waited %v", took)
		}
		for range 20 { // one after the other: each gets its turn
			mustEnter(t, tl, "user a", false)()
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("20 calls at 10 per second took %v", took)
		}
		answers := make(chan error)
		for range 30 { // all at once: those that would wait longer than a second are refused
			go func() {
				leave, err := tl.enter(t.Context(), "user a", 1, false)
				if err == nil {
					leave()
				}
				answers <- err
			}()
		}
		refused := 0
		for range 30 {
			if err := <-answers; err != nil {
				refused++
				if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "more than 10 calls per second (limits.calls-per-second): slow down") {
					t.Error(err)
				}
			}
		}
		if refused != 20 {
			t.Errorf("%d of 30 were refused", refused)
		}
		before := time.Now()
		mustEnter(t, tl, "user b", false)()
		if time.Since(before) != 0 {
			t.Error("another caller had to wait")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		time.Sleep(time.Second)
		for range 5 + 10 {
			if leave, err := tl.enter(t.Context(), "user c", 1, false); err == nil {
				defer leave()
			}
		}
		if _, err := tl.enter(ctx, "user c", 1, false); !errors.Is(err, context.Canceled) && !fault.Is(err, fault.Unavailable) {
			t.Errorf("a caller that went away: %v", err)
		}
	})
}

func TestCallersAreForgottenWhenThereAreTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl := newTally(bounds{calls: 1, streams: 1, perSecond: 1, burst: 1})
		for i := range callersMax {
			if _, err := tl.enter(t.Context(), fmt.Sprint("address ", i), 1, false); err != nil {
				t.Fatal(err)
			}
		}
		mustEnter(t, tl, "address x", false)
		if _, err := tl.enter(t.Context(), "address y", 1, false); err == nil {
			t.Error("one that cannot be told apart has a place of its own")
		}
		if len(tl.callers) > callersMax+1 {
			t.Errorf("%d callers are known", len(tl.callers))
		}
	})
}

// answering records who the handlers see.
func answering(seen *[]task.Caller) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		*seen = append(*seen, task.CallerOf(r.Context()))
		w.WriteHeader(http.StatusNoContent)
	})
}

const listVMs = "/godwit.v1.VMService/ListVMs"

func TestHandlersSeeWhoCalls(t *testing.T) {
	for _, c := range []struct {
		who             Caller
		by, passedOn    string
		want            string
		stillForwarding bool
	}{
		{Caller{Name: "root", Role: inventory.Admin}, "", "", "root", false},
		{Caller{Name: "mallory", Role: inventory.Viewer}, "root", "host-2", "mallory", false},
		{Caller{Host: "host-2"}, "", "", "host host-2", false},
		{Caller{Host: "host-2"}, "alice", "host-2", "alice@host-2", true},
		{Caller{Host: "host-2"}, "alice", "", "host host-2", false},
		{Caller{Host: "host-2"}, "al\tice", "host-2", "host host-2", true},
		{Caller{Host: "host-2"}, strings.Repeat("a", 65), "host-2", "host host-2", true},
	} {
		var seen []task.Caller
		header := ""
		next := answering(&seen)
		g := newGate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			header = r.Header.Get(forwarded)
			next.ServeHTTP(w, r)
		}), Callers{Who: func(*http.Request) Caller { return c.who }, Limits: limits}, nil)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, listVMs, strings.NewReader("{}"))
		if c.by != "" {
			r.Header.Set(original, c.by)
			r.Header.Set(originalRole, "viewer")
		}
		if c.passedOn != "" {
			r.Header.Set(forwarded, c.passedOn)
		}
		g.ServeHTTP(httptest.NewRecorder(), r)
		if len(seen) != 1 || seen[0].Name != c.want {
			t.Errorf("%+v with %q is seen as %+v, not %q", c.who, c.by, seen, c.want)
		}
		if (header != "") != c.stillForwarding {
			t.Errorf("%+v: the mark of a passed-on call is %q behind the gate", c.who, header)
		}
	}
}

// What is refused reaches a client of any protocol with kind and text.
func TestRefusalsReachTheClient(t *testing.T) {
	denied := fault.New(fault.Denied, "user eve may not use Godwit on this host")
	g := newGate(http.NotFoundHandler(), Callers{Who: func(*http.Request) Caller { return Caller{Refused: denied} }, Limits: limits}, nil)
	server := httptest.NewServer(g)
	defer server.Close()
	for what, options := range map[string][]connect.ClientOption{"connect": nil, "json": {connect.WithProtoJSON()}, "grpc-web": {connect.WithGRPCWeb()}} {
		client := godwitv1connect.NewVMServiceClient(server.Client(), server.URL, options...)
		_, err := client.ListVMs(t.Context(), connect.NewRequest(&godwitv1.ListVMsRequest{}))
		if err = wire.FromFault(err); !fault.Is(err, fault.Denied) || err.Error() != denied.Error() {
			t.Errorf("%s: %v", what, err)
		}
	}
	resp, err := server.Client().Get(server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(body), denied.Error()) {
		t.Errorf("curl gets %s %q", resp.Status, body)
	}
}

func TestJoinsAreCountedByAddress(t *testing.T) {
	var seen []task.Caller
	address := "192.0.2.1"
	g := newGate(answering(&seen), Callers{Who: func(*http.Request) Caller { return Caller{Address: address} }, Limits: limits}, nil)
	try := func() int {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/godwit.v1.JoinService/Join", nil))
		return w.Code
	}
	for i, want := range []int{204, 204, 503} {
		if got := try(); got != want {
			t.Errorf("attempt %d is answered %d", i+1, got)
		}
	}
	address = "192.0.2.2"
	if got := try(); got != 204 {
		t.Errorf("another address is answered %d", got)
	}
}

// A release that waits for its turn would stop a guest: hand-overs are never counted.
func TestHandOversAreUnderNoLimit(t *testing.T) {
	var seen []task.Caller
	g := newGate(answering(&seen), Callers{Who: func(*http.Request) Caller { return Caller{Host: "host-2"} }, Limits: limits}, nil)
	for range 10 * limits.Burst * hostShare {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/godwit.v1.HandoverService/Release", nil))
		if w.Code != http.StatusNoContent {
			t.Fatalf("after %d calls one is answered %d", len(seen), w.Code)
		}
	}
}

func TestStreamsAreKnownByTheirPath(t *testing.T) {
	paths := lasting()
	if !paths["/godwit.v1.VMService/ConsoleVM"] || paths[listVMs] {
		t.Errorf("%v", paths)
	}
}

// A caller that sends its request slowly is cut; its place is free again.
func TestSlowRequestsAreCut(t *testing.T) {
	slow := limits
	slow.RequestTime = 100 * time.Millisecond
	done := make(chan error, 1)
	g := newGate(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		done <- err
	}), Callers{Who: func(*http.Request) Caller { return Caller{Name: "root", Role: inventory.Admin} }, Limits: slow}, nil)
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		server := httptest.NewUnstartedServer(g)
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!http2)
		protocols.SetUnencryptedHTTP2(http2)
		server.Config.Protocols = protocols
		server.Start()
		client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
		body, write := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+listVMs, body)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}()
		if _, err := write.Write([]byte("{")); err != nil { // and then nothing
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Errorf("%s: a request without end was read to its end", name)
		}
		_ = write.Close()
		server.CloseClientConnections()
		server.Close()
	}
	if c := g.tally.callers["user root"]; c.calls != 0 && c.streams != 0 {
		t.Errorf("%d calls are still counted", c.calls)
	}
}

// Whatever somebody sends to the socket, it is answered by the protocol or refused, no handler panics, and no count is left.
func FuzzGate(f *testing.F) {
	f.Add("POST", listVMs, "application/json", "", []byte("{}"))
	f.Add("POST", "/godwit.v1.VMService/CreateVM", "application/proto", "gzip", []byte{0x0a, 3, 'w', 'e', 'b'})
	f.Add("POST", "/godwit.v1.VMService/ConsoleVM", "application/connect+proto", "", []byte{0, 0, 0, 0, 1, 0xff})
	f.Add("GET", listVMs+"?encoding=json&message=%7B%7D&connect=v1", "", "", []byte{})
	f.Add("POST", listVMs, "application/grpc", "", []byte{1, 0xff, 0xff, 0xff, 0xff})
	options := []connect.HandlerOption{connect.WithInterceptors(faults{}), connect.WithReadMaxBytes(limits.RequestBytes)}
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(godwitv1connect.UnimplementedVMServiceHandler{}, options...))
	mux.Handle(godwitv1connect.NewHostServiceHandler(godwitv1connect.UnimplementedHostServiceHandler{}, options...))
	wide := limits
	wide.Burst, wide.PerSecond = 1<<20, 1<<20
	g := newGate(mux, Callers{Who: func(*http.Request) Caller { return Caller{Name: "fuzz", Role: inventory.Admin} }, Limits: wide}, nil)
	f.Fuzz(func(t *testing.T, method, target, contentType, encoding string, body []byte) {
		if !strings.HasPrefix(target, "/") {
			return
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://agent"+target, bytes.NewReader(body))
		if err != nil {
			return // no HTTP server would pass it on
		}
		r.RequestURI, r.ProtoMajor, r.Proto = target, 2, "HTTP/2.0"
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Content-Encoding", encoding)
		r.Header.Set(original, encoding)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("answered %d", w.Code)
		}
		_, _, exists := callOf(r.URL.Path)
		if c := g.tally.callers["user fuzz"]; c == nil && exists || c != nil && (c.calls != 0 || c.streams != 0) {
			t.Errorf("counts are left: %+v", c)
		}
	})
}
