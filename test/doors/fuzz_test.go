package doors

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/driver/peer"
)

// The bounds of one attempt.
const (
	dialMax   = 5 * time.Second
	quiet     = 20 * time.Millisecond // without an answer: there will be none
	callMax   = 500 * time.Millisecond
	answerMax = 1 << 20
)

// door is one that bytes are sent to as they are.
type door struct {
	name string
	open func(ctx context.Context) (net.Conn, error)
}

// doors lists what listens on the host.
func doors() []door {
	dial := func(network, address string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
	}
	secured := func(address, proto string, asHost bool) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, MinVersion: tls.VersionTLS13} //nolint:gosec // nothing is at stake
			if asHost {
				conf.Certificates = identity().StoreTLS().Certificates
			}
			return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", address)
		}
	}
	return []door{
		{"the agent's port, before the handshake", dial("tcp", at.Address)},
		{"the agent's port, as a stranger", secured(at.Address, "h2", false)},
		{"the agent's port, as a host", secured(at.Address, "h2", true)},
		{"the agent's port, a stream of a host", secured(at.Address, "godwit-stream/1", true)},
		{"the switch's port, before the handshake", dial("tcp", at.Trunk)},
		{"the switch's port, as a host", secured(at.Trunk, "godwit-trunk/1", true)},
		{"the agent's socket", dial("unix", at.Socket)},
		{"the switch's socket", dial("unix", at.Switch)},
	}
}

// identity is the host's own.
var identity = sync.OnceValue(func() *peer.Identity {
	id, err := peer.Load(at.PKI)
	if err != nil {
		panic(err) // nothing can be tried
	}
	return id
})

// preface begins a connection of HTTP/2, and an empty SETTINGS frame follows (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// Whatever somebody sends to a door, the processes behind it go on and answer others.
func FuzzDoors(f *testing.F) {
	all := doors()
	for i := range all {
		f.Add(byte(i), []byte{})
		f.Add(byte(i), []byte("GET / HTTP/1.1\r\nHost: agent\r\nContent-Length: -1\r\n\r\n"))
		f.Add(byte(i), []byte(preface+"\x00\x00\x05\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x00"))
		f.Add(byte(i), []byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"))
		f.Add(byte(i), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"))
		f.Add(byte(i), []byte("\x00\x00\x00\x02{}"))
		f.Add(byte(i), []byte("POST /v1/add-port HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"))
		f.Add(byte(i), []byte("POST /v1/set-networks HTTP/1.1\r\nHost: x\r\nContent-Length: 19\r\n\r\n[{\"ID\":\"x\",\"MTU\":-1}]"))
		f.Add(byte(i), []byte("POST /v1/reserve HTTP/1.1\r\nHost: x\r\nContent-Length: 24\r\n\r\n{\"Spec\":{\"Network\":\"x\"}}"))
	}
	f.Fuzz(func(t *testing.T, which byte, sent []byte) {
		d := all[int(which)%len(all)]
		ctx, done := context.WithTimeout(t.Context(), dialMax)
		defer done()
		conn, err := d.open(ctx)
		if err != nil {
			t.Fatalf("%s does not open: %v", d.name, err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(dialMax))
		_, _ = conn.Write(sent) // it may be cut off midway
		_ = conn.SetReadDeadline(time.Now().Add(quiet))
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, answerMax))
		_ = conn.Close()
		answers(t, d.name)
	})
}

// answers fails the test unless agent and switch answer others.
func answers(t *testing.T, after string) {
	t.Helper()
	if code, _, err := ask(t, clients()["root"], "http://agent/godwit.v1.UserService/WhoAmI", "application/json", []byte("{}"), dialMax); code != http.StatusOK {
		t.Fatalf("%s: the agent answers %d %v", after, code, err)
	}
	if code, _, err := ask(t, clients()["switch"], "http://switch/v1/status", "application/json", []byte("{}"), dialMax); code != http.StatusOK {
		t.Fatalf("%s: the switch answers %d %v", after, code, err)
	}
}

// clients are the kinds of callers, and one for the switch.
var clients = sync.OnceValue(func() map[string]*http.Client {
	over := func(socket string, http2 bool) *http.Client {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(http2)
		protocols.SetHTTP1(!http2)
		return &http.Client{Transport: &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	}
	all := map[string]*http.Client{"root": over(at.Socket, true), "switch": over(at.Switch, false)}
	sum, err := peer.ParseCAHash(at.CAHash)
	if err != nil {
		panic(err) // nothing can be tried
	}
	all["stranger"] = peer.DialUser(at.Address, sum)
	for role, token := range at.Tokens {
		all[role] = peer.ShowToken(peer.DialUser(at.Address, sum), token)
	}
	all["host"] = peer.NewDialer(identity()).HTTPClient(identity().Host(), at.Address)
	return all
})

// ask makes one call and reads its answer. A call that goes on for longer than max is ended, with code 0 and a context's error.
func ask(t *testing.T, c *http.Client, url, kind string, body []byte, most time.Duration) (int, string, error) {
	t.Helper()
	ctx, done := context.WithTimeout(t.Context(), most)
	defer done()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	return resp.StatusCode, string(text), err
}

// call is one of the API.
type call struct {
	path   string
	stream bool
}

func calls() []call {
	var all []call
	protoregistry.GlobalFiles.RangeFilesByPackage(godwitv1.File_godwit_v1_api_proto.Package(), func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all = append(all, call{"/" + string(service.FullName()) + "/" + string(m.Name()), m.IsStreamingClient() || m.IsStreamingServer()})
			}
		}
		return true
	})
	slices.SortFunc(all, func(a, b call) int { return strings.Compare(a.path, b.path) })
	return all
}

// kinds are those who call.
var kinds = []string{"stranger", "viewer", "operator", "admin", "host", "root"}

// looks are the first words of calls that change nothing and that each user may make.
var looks = []string{"List", "Get", "Watch", "WhoAmI"}

// forbidden reports whether a kind of caller must not get further than the gate, whatever the message is. It is said here once more, and in other
// words than the table of roles.
func forbidden(who, path string) bool {
	service, name, _ := strings.Cut(strings.TrimPrefix(path, "/godwit.v1."), "/")
	look := slices.ContainsFunc(looks, func(word string) bool { return strings.HasPrefix(name, word) })
	admins := service == "UserService" && name != "WhoAmI"
	between := slices.Contains([]string{"HandoverService", "MoveService", "CertificateService"}, service)
	open := service == "JoinService" || service == "LeaveService"
	switch who {
	case "stranger":
		return !open
	case "viewer":
		return !open && (!look || admins)
	case "operator":
		return between || admins || name == "CreateNetwork" || name == "CreateToken"
	case "host":
		return !between && !open && (!look || admins)
	}
	return between // what is left are admins
}

// Whatever message somebody sends in a call, it is answered, and by the gate alone where the caller may not make it.
func FuzzCalls(f *testing.F) {
	all := calls()
	for i := range all {
		for who := range kinds {
			f.Add(uint16(i), byte(who), true, []byte("{}"))
		}
		f.Add(uint16(i), byte(5), false, []byte{0x0a, 1, 'x'})
		f.Add(uint16(i), byte(4), false, []byte{0x0a, 1, 'x', 0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0})
		f.Add(uint16(i), byte(5), true, []byte(`{"vm":"x","name":"x","host":"x","file":{"path":"x"},"disk":"disk0","size":"-1","limit":-1,"since":"-1s","task":"x"}`))
	}
	f.Fuzz(func(t *testing.T, which uint16, who byte, asJSON bool, message []byte) {
		c, name := all[int(which)%len(all)], kinds[int(who)%len(kinds)]
		never := forbidden(name, c.path)
		if !never && strings.HasSuffix(c.path, "/RotateCertificate") {
			return // each one writes a key, and an empty message is a whole one
		}
		kind := "application/proto"
		if asJSON {
			kind = "application/json"
		}
		if c.stream {
			kind = strings.Replace(kind, "/", "/connect+", 1)
			message = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...) //nolint:gosec // a fuzzer's
		}
		base := "https://" + at.Address
		if name == "root" {
			base = "http://agent"
		}
		most := dialMax
		if c.stream {
			most = callMax // one that is let in goes on
		}
		code, answer, err := ask(t, clients()[name], base+c.path, kind, message, most)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			if never || !c.stream {
				t.Errorf("%s calls %s and is neither answered nor refused within %v", name, c.path, most)
			}
			return
		case err != nil: // a handler that panics has no answer
			t.Fatalf("%s calls %s: %v", name, c.path, err)
		}
		// A stream's refusal is in the last message of its body; that of other calls is code 403 (connectrpc.com/docs/protocol).
		if never && (!c.stream && code != http.StatusForbidden || !strings.Contains(answer, "permission_denied")) {
			t.Errorf("%s calls %s and is answered %d %.200s", name, c.path, code, answer)
		}
		if code == http.StatusInternalServerError || c.stream && strings.Contains(answer, `"code":"internal"`) {
			t.Errorf("%s calls %s and meets a bug: %d %.500s", name, c.path, code, answer)
		}
	})
}
