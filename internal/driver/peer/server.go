package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of a server.
const (
	// strangerTimeMax is how long such a connection may last: enough for one join.
	strangerTimeMax = 15 * time.Second
	shutdownMax     = 300 * time.Millisecond // calls that take longer are cut: most of them wait for a store that is gone
	acceptRetry     = 50 * time.Millisecond
	callHeadTimeout = 10 * time.Second
	clientPingAfter = 5 * time.Second
)

// Server answers other hosts on one TCP port.
type Server struct {
	// Identity is what it shows, and decides who is let in.
	Identity *Identity
	// HTTP answers calls. Calls of strangers reach it too: wrap it in RequireHost.
	HTTP http.Handler
	// Stream answers a stream: Accept or Refuse, then use it. The stream is closed when Stream returns, and when ctx ends.
	// nil refuses all.
	Stream func(ctx context.Context, s *Stream)
	// Limits bound what others may hold open.
	Limits Limits
}

type (
	hostKey    struct{}
	refusedKey struct{}
)

// RefusedOf returns why the connection of this context's call is one too many; nil for all others.
func RefusedOf(ctx context.Context) error {
	err, _ := ctx.Value(refusedKey{}).(error)
	return err
}

// HostID returns the host that makes the call of this context, as its certificate says; false for a stranger.
func HostID(ctx context.Context) (inventory.HostID, bool) {
	host, ok := ctx.Value(hostKey{}).(inventory.HostID)
	return host, ok
}

// RequireHost lets only hosts of the cluster through to next; strangers only to paths that begin with one of open, and get
// 401 elsewhere.
func RequireHost(next http.Handler, open ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := HostID(r.Context()); ok {
			next.ServeHTTP(w, r)
			return
		}
		for _, prefix := range open {
			if strings.HasPrefix(r.URL.Path, prefix) {
				next.ServeHTTP(w, r)
				return
			}
		}
		http.Error(w, "no certificate of this cluster: join the host first", http.StatusUnauthorized)
	})
}

// Run answers on the listener until ctx ends or the listener breaks, and closes it. It lets running calls finish for a
// short time, cuts the streams, and returns when no goroutine of it is left; nil for an end that ctx asked for.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	count := newCensus(s.Limits.filled())
	conf := s.Identity.serverTLS()
	calls := &handover{addr: listener.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	running := callers{next: s.HTTP}
	base, cutCalls := context.WithCancel(context.WithoutCancel(ctx))
	defer cutCalls()
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	server := &http.Server{
		Handler:           &running,
		TLSConfig:         conf.Clone(), // net/http changes its own
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: clientPingAfter, PingTimeout: pingTimeout},
		ReadHeaderTimeout: callHeadTimeout,
		MaxHeaderBytes:    count.limits.HeaderBytes,
		IdleTimeout:       2 * idleMax,
		ErrorLog:          log.New(io.Discard, "", 0), // what strangers do wrong is not news
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if conn, ok := c.(*tls.Conn); ok {
				if raw, ok := conn.NetConn().(*stranger); ok && raw.refused != nil {
					ctx = context.WithValue(ctx, refusedKey{}, raw.refused)
				}
				if host, err := s.Identity.verifiedHost(conn.ConnectionState()); err == nil {
					return context.WithValue(ctx, hostKey{}, host)
				}
			}
			return ctx
		},
	}
	var all sync.WaitGroup
	all.Go(func() { _ = server.Serve(calls) }) // ends with http.ErrServerClosed below
	all.Go(func() {
		<-ctx.Done()
		_ = listener.Close() // only makes accept return
	})
	err := s.accept(ctx, listener, conf, calls, count, &all)

	cancel()
	close(calls.done)
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownMax)
	defer stop()
	if server.Shutdown(grace) != nil {
		cutCalls()
		_ = server.Close() // what did not end in time
	}
	running.wait()
	all.Wait()
	return err
}

// accept hands every connection to a goroutine of its own until the listener is closed.
func (s *Server) accept(ctx context.Context, listener net.Listener, conf *tls.Config, calls *handover, count *census, all *sync.WaitGroup) error {
	strangers := make(chan struct{}, count.limits.Handshakes)
	for {
		select {
		case strangers <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.Accept()
		if err != nil {
			<-strangers
			if ctx.Err() == nil && errors.Is(err, net.ErrClosed) {
				return fault.New(fault.Internal, "port %v was closed under the server: %w", listener.Addr(), err)
			}
			// Out of file descriptors, or a connection that was gone before it was accepted: the next one may do.
			select {
			case <-time.After(acceptRetry):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		one, ok := count.arrive(conn.RemoteAddr())
		if !ok { // it is told nothing: whoever holds so many open does not listen
			_ = conn.Close()
			<-strangers
			continue
		}
		tune(conn)
		guest := &stranger{Conn: conn, leave: func() { one(); <-strangers }}
		all.Go(func() { s.serve(ctx, guest, conf, calls, count) })
	}
}

// serve does the handshake and passes the connection on by its protocol.
func (s *Server) serve(ctx context.Context, raw *stranger, conf *tls.Config, calls *handover, count *census) {
	conn := tls.Server(raw, conf)
	shaking, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if conn.HandshakeContext(shaking) != nil {
		_ = raw.Close() // the other side got its alert
		return
	}
	state := conn.ConnectionState()
	host, err := s.Identity.verifiedHost(state)
	if err == nil && state.NegotiatedProtocol == protoHTTP {
		raw.gone, raw.refused = count.connect(host)
	}
	switch {
	case err != nil:
		raw.limit(strangerTimeMax)
	case raw.refused != nil:
		raw.limit(refusalTime) // it keeps its place among the strangers until then
	default:
		raw.known()
	}
	switch {
	case state.NegotiatedProtocol == protoHTTP:
		calls.pass(conn)
	case state.NegotiatedProtocol == protoStream && err == nil:
		s.stream(ctx, conn, host)
	default: // a stranger's stream, or no ALPN at all
		_ = conn.Close()
	}
}

// stream reads the header and runs the handler.
func (s *Server) stream(ctx context.Context, conn *tls.Conn, from inventory.HostID) {
	defer func() { _ = conn.Close() }() // the handler has flushed what matters
	cut := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })
	defer cut()
	if conn.SetDeadline(time.Now().Add(openTimeout)) != nil {
		return
	}
	stream := &Stream{Conn: conn, From: from}
	header, err := readHeader(conn)
	if err != nil {
		_ = stream.Refuse(err) // the other side may be gone
		return
	}
	stream.Header = header
	if raw, ok := conn.NetConn().(*stranger); ok {
		boundStream(raw.Conn)
	}
	if s.Stream == nil {
		_ = stream.Refuse(fault.New(fault.Invalid, "this host takes no streams")) // likewise
		return
	}
	s.Stream(ctx, stream)
	_ = stream.Refuse(fault.New(fault.Internal, "nobody wanted the stream")) // does nothing when it was answered
}

// stranger is a connection whose other side is not known yet. It holds one of the strangers' places until it is known
// or closed.
type stranger struct {
	net.Conn
	leave func()
	gone  func() // nil, or to be called when it is closed
	once  sync.Once

	refused error // why it is one too many of its host's
	timer   atomic.Pointer[time.Timer]
}

func (g *stranger) known() { g.once.Do(g.leave) }

// limit closes the connection after d: a stranger has one thing to do here.
func (g *stranger) limit(d time.Duration) {
	g.timer.Store(time.AfterFunc(d, func() { _ = g.Close() }))
}

// Close closes the connection and gives the place back.
func (g *stranger) Close() error {
	if t := g.timer.Load(); t != nil {
		t.Stop()
	}
	g.known()
	if g.gone != nil {
		g.gone()
	}
	return g.Conn.Close()
}

// callers counts the running calls, since http.Server.Close does not wait for them.
type callers struct {
	next http.Handler
	mu   sync.RWMutex // each call holds it for reading
}

// ServeHTTP runs one call.
func (c *callers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.mu.TryRLock() {
		http.Error(w, "this host's agent is stopping: try again", http.StatusServiceUnavailable)
		return
	}
	defer c.mu.RUnlock()
	c.next.ServeHTTP(w, r)
}

// wait returns when no call runs, and no other will.
func (c *callers) wait() { c.mu.Lock() }

// handover is the listener through which the HTTP server gets the connections that are meant for it.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
}

func (h *handover) pass(conn net.Conn) {
	select {
	case h.conns <- conn:
	case <-h.done:
		_ = conn.Close() // the server is closing
	}
}

// Accept returns the next connection for the HTTP server.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close does nothing: Run ends the handing over.
func (h *handover) Close() error { return nil }

// Addr returns the address of the one port.
func (h *handover) Addr() net.Addr { return h.addr }
