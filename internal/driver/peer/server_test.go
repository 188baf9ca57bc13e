package peer_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
)

// serve runs a server until the end of the test and returns its address.
func serve(t *testing.T, s *peer.Server) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			must(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the server does not end")
		}
	})
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// hello answers with the name of who asks.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	host, ok := peer.HostID(r.Context())
	_, _ = fmt.Fprintf(w, "%s %v %s", host, ok, r.Proto)
})

// requireHost answers hosts by next, and strangers where the path begins with one of open.
func requireHost(next http.Handler, open ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, ok := peer.HostID(r.Context())
		for _, prefix := range open {
			ok = ok || strings.HasPrefix(r.URL.Path, prefix)
		}
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func get(t *testing.T, client *http.Client, url string) (int, string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

func TestHostsCallOneAnother(t *testing.T) {
	c := newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello)})
	dialer := peer.NewDialer(c.join(t, "host-2"))
	defer dialer.Close()
	client := dialer.HTTPClient("host-1", address)
	if client != dialer.HTTPClient("host-1", address) {
		t.Error("the client is not kept")
	}
	for range 3 {
		code, body, err := get(t, client, "https://"+address+"/x")
		must(t, err)
		if code != http.StatusOK || body != "host-2 true HTTP/2.0" {
			t.Errorf("got %d %q", code, body)
		}
	}
}

func TestACallAfterWarmNeedsNoHandshake(t *testing.T) {
	c := newCluster(t, "alps")
	var heard atomic.Int64
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) })})
	dialer := peer.NewDialer(c.join(t, "host-2"))
	defer dialer.Close()
	must(t, dialer.Warm(t.Context(), "host-1", address))
	if n := heard.Load(); n != 0 {
		t.Errorf("the API heard %d calls", n)
	}
	var reused []bool
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = append(reused, c.Reused) }})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/x", nil)
	must(t, err)
	response, err := dialer.HTTPClient("host-1", address).Do(request)
	must(t, err)
	must(t, response.Body.Close())
	if !slices.Equal(reused, []bool{true}) || heard.Load() != 1 {
		t.Errorf("connections reused: %v, %d calls heard", reused, heard.Load())
	}
	want(t, fault.Unavailable, dialer.Warm(t.Context(), "host-1", "127.0.0.1:1"))
}

func TestOnlyTheRightHostIsTalkedTo(t *testing.T) {
	c := newCluster(t, "alps")
	streams := func(_ context.Context, s *peer.Stream) { _ = s.Accept() }
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello), Stream: streams})
	mine := peer.NewDialer(c.join(t, "host-2"))
	theirs := peer.NewDialer(newCluster(t, "alps").join(t, "host-2"))

	_, _, err := get(t, mine.HTTPClient("host-3", address), "https://"+address)
	if err == nil || !strings.Contains(err.Error(), "host-3") {
		t.Errorf("a wrong host was called: %v", err)
	}
	if _, _, err = get(t, theirs.HTTPClient("host-1", address), "https://"+address); err == nil {
		t.Error("a host of another cluster was called")
	}
	t.Log(err)
	t.Log(want(t, fault.Denied, errOf(mine.DialStream(t.Context(), "host-3", address, nil))))
	t.Log(want(t, fault.Denied, errOf(theirs.DialStream(t.Context(), "host-1", address, nil))))
	conn, err := mine.DialStream(t.Context(), "host-1", address, nil)
	must(t, err)
	must(t, conn.Close())
}

// handshake dials by hand and says whether the other side let it in: with TLS 1.3 that shows at the first read.
func handshake(t *testing.T, address string, conf *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	dialer := tls.Dialer{Config: conf}
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = io.ReadFull(conn, make([]byte, 1))
	return state, err
}

func TestHandshakesThatAreRefused(t *testing.T) {
	c := newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello)})
	good := func() *tls.Config {
		conf := c.join(t, "host-2").StoreTLS()
		conf.NextProtos = []string{"h2"}
		return conf
	}
	state, err := handshake(t, address, good())
	must(t, err) // the server's HTTP/2 settings came
	if state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "h2" {
		t.Errorf("got %x %q", state.Version, state.NegotiatedProtocol)
	}
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":      func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"unknown ALPN": func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} },
		"no ALPN":      func(c *tls.Config) { c.NextProtos = nil },
		"foreign CA": func(c *tls.Config) {
			c.GetClientCertificate = newCluster(t, "alps").join(t, "host-2").StoreTLS().GetClientCertificate
		},
		"foreign name": func(c *tls.Config) {
			c.GetClientCertificate = newCluster(t, "andes").join(t, "host-2").StoreTLS().GetClientCertificate
		},
		"stream without certificate": func(c *tls.Config) {
			c.GetClientCertificate, c.NextProtos = nil, []string{"godwit-stream/1"}
		},
	} {
		conf := good()
		change(conf)
		if _, err := handshake(t, address, conf); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestStrangerMayJoinAndNothingElse(t *testing.T) {
	c := newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: requireHost(hello, "/godwit.v1.JoinService/")})
	token, err := c.first.NewToken(address)
	must(t, err)
	client := peer.DialJoin(token)
	defer client.CloseIdleConnections()
	code, body, err := get(t, client, "https://"+address+"/godwit.v1.JoinService/Join")
	must(t, err)
	if code != http.StatusOK || body != " false HTTP/2.0" {
		t.Errorf("got %d %q", code, body)
	}
	for _, path := range []string{"/godwit.v1.VMService/ListVMs", "/", "/x/godwit.v1.JoinService/"} {
		if code, _, err = get(t, client, "https://"+address+path); err != nil || code != http.StatusUnauthorized {
			t.Errorf("%s: %d %v", path, code, err)
		}
	}
	// Somebody else answers at the token's address.
	other, _ := serve(t, &peer.Server{Identity: newCluster(t, "alps").first, HTTP: hello})
	token.Address = other
	_, _, err = get(t, peer.DialJoin(token), "https://"+other)
	if err == nil || !strings.Contains(err.Error(), "another cluster than the token") {
		t.Errorf("got %v", err)
	}
}

// A server that shows the right CA, but has no certificate signed by it, is found out.
func TestJoinIsNotFooledByABorrowedCA(t *testing.T) {
	c, liar := newCluster(t, "alps"), newCluster(t, "alps")
	shown, err := liar.first.StoreTLS().GetClientCertificate(nil)
	must(t, err)
	pair := *shown
	pair.Certificate = [][]byte{pair.Certificate[0], c.first.CA()}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	must(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		conn, err := listener.Accept()
		if err == nil {
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			_ = conn.Close()
		}
	})
	token, err := c.first.NewToken(listener.Addr().String())
	must(t, err)
	if _, _, err = get(t, peer.DialJoin(token), "https://"+token.Address); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("got %v", err)
	}
	all.Wait()
	must(t, listener.Close())
}

func TestStreamCarriesHeaderAndBytesBothWays(t *testing.T) {
	c := newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: hello, Stream: func(_ context.Context, s *peer.Stream) {
		if string(s.Header) == "unwanted" {
			_ = s.Refuse(fault.New(fault.Conflict, "migration mig-1 is over"))
			return
		}
		if string(s.Header) == "ignored" {
			return
		}
		_ = s.Accept()
		_, _ = fmt.Fprintf(s, "%s says %s: ", s.From, s.Header)
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
	}})
	dialer := peer.NewDialer(c.join(t, "host-2"))
	conn, err := dialer.DialStream(t.Context(), "host-1", address, []byte("hello"))
	must(t, err)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var all sync.WaitGroup
	all.Go(func() {
		_, _ = conn.Write(data)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	})
	got, err := io.ReadAll(conn)
	must(t, err)
	all.Wait()
	must(t, conn.Close())
	if !bytes.Equal(got, append([]byte("host-2 says hello: "), data...)) {
		t.Errorf("got %d bytes back", len(got))
	}
	_, err = dialer.DialStream(t.Context(), "host-1", address, []byte("unwanted"))
	t.Log(want(t, fault.Conflict, err))
	_, err = dialer.DialStream(t.Context(), "host-1", address, []byte("ignored"))
	t.Log(want(t, fault.Internal, err))
	_, err = dialer.DialStream(t.Context(), "host-1", address, make([]byte, peer.HeaderMax+1))
	t.Log(want(t, fault.Internal, err))
	big, err := dialer.DialStream(t.Context(), "host-1", address, bytes.Repeat([]byte("h"), peer.HeaderMax))
	must(t, err)
	must(t, big.Close())
}

func TestHostThatDoesNotAnswer(t *testing.T) {
	c := newCluster(t, "alps")
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and nobody ever says a word
	must(t, err)
	defer listener.Close()
	dialer := peer.NewDialer(c.join(t, "host-2"))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = dialer.DialStream(ctx, "host-1", listener.Addr().String(), nil)
	t.Log(want(t, fault.Canceled, err)) // the caller's time was up
	began := time.Now()
	_, _, err = get(t, dialer.HTTPClient("host-1", listener.Addr().String()), "https://x")
	if took := time.Since(began); err == nil || took > 3*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := closed.Addr().String()
	must(t, closed.Close())
	_, err = dialer.DialStream(t.Context(), "host-1", address, nil)
	t.Log(want(t, fault.Unavailable, err))
}

// cable forwards bytes between two ends until it is frozen: then it keeps the connections and drops everything, like a
// host whose power is cut.
type cable struct {
	listener net.Listener
	frozen   chan struct{}
	all      sync.WaitGroup
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c := &cable{listener: listener, frozen: make(chan struct{})}
	var mu sync.Mutex
	var conns []net.Conn
	c.all.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				c.all.Go(func() {
					buf := make([]byte, 32<<10)
					for {
						n, err := pair[1].Read(buf)
						select {
						case <-c.frozen:
							if err != nil {
								return
							}
							continue
						default:
						}
						if n > 0 {
							_, _ = pair[0].Write(buf[:n])
						}
						if err != nil {
							_ = pair[0].Close()
							return
						}
					}
				})
			}
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		c.all.Wait()
	})
	return c
}

func TestCallToAHostThatDiesFailsInThreeSeconds(t *testing.T) {
	c := newCluster(t, "alps")
	arrived := make(chan struct{})
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done() // a call that takes long, like a watch
	})})
	cable := newCable(t, address)
	dialer := peer.NewDialer(c.join(t, "host-2"))
	failed := make(chan error, 1)
	go func() {
		_, _, err := get(t, dialer.HTTPClient("host-1", cable.listener.Addr().String()), "https://x/")
		failed <- err
	}()
	<-arrived
	began := time.Now()
	close(cable.frozen)
	select {
	case err := <-failed:
		if took := time.Since(began); err == nil || took > 3*time.Second {
			t.Errorf("%v after %v", err, took)
		} else {
			t.Logf("%v after %v", err, took)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the call waits for a dead host")
	}
}

func TestStopLetsCallsFinishAndCutsStreams(t *testing.T) {
	c := newCluster(t, "alps")
	inCall, finish := make(chan struct{}), make(chan struct{})
	inStream, streamEnded := make(chan struct{}), make(chan struct{})
	address, stop := serve(t, &peer.Server{
		Identity: c.first,
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(inCall)
			<-finish
			_, _ = io.WriteString(w, "done")
		}),
		Stream: func(_ context.Context, s *peer.Stream) {
			defer close(streamEnded)
			_ = s.Accept()
			close(inStream)
			_, _ = io.Copy(io.Discard, s) // waits for bytes that never come
		},
	})
	dialer := peer.NewDialer(c.join(t, "host-2"))
	conn, err := dialer.DialStream(t.Context(), "host-1", address, nil)
	must(t, err)
	defer conn.Close()
	answer := make(chan string, 1)
	go func() {
		_, body, err := get(t, dialer.HTTPClient("host-1", address), "https://x/")
		answer <- fmt.Sprint(body, err)
	}()
	<-inCall
	<-inStream
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	select {
	case <-streamEnded:
	case <-time.After(10 * time.Second):
		t.Error("the stream was not cut")
		_ = conn.Close()
	}
	close(finish)
	if got := <-answer; got != "done<nil>" {
		t.Errorf("the running call got %s", got)
	}
	<-stopped
	if _, _, err := get(t, dialer.HTTPClient("host-1", address), "https://x/"); err == nil {
		t.Error("a stopped server answers")
	}
}

// Nobody without a certificate can keep the hosts out by holding connections open.
func TestStrangersHoldFewConnectionsForAShortTime(t *testing.T) {
	c := newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: hello})
	for range 70 { // more than may be open at once
		conn, err := net.Dial("tcp", address)
		must(t, err)
		defer conn.Close()
	}
	dialer := peer.NewDialer(c.join(t, "host-2"))
	deadline := time.Now().Add(15 * time.Second)
	for {
		_, _, err := get(t, dialer.HTTPClient("host-1", address), "https://x/")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("a host of the cluster does not get in: %v", err)
		}
	}
}
