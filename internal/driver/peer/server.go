package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of a server.
const (
	strangerTimeMax = 15 * time.Second       // the default of Limits.StrangerTime
	shutdownMax     = 300 * time.Millisecond // calls that take longer are cut: most of them wait for a store that is gone
	acceptRetry     = 50 * time.Millisecond
	callHeadTimeout = 10 * time.Second
	clientPingAfter = 5 * time.Second
)

// Server answers other hosts on one TCP port.
type Server struct {
	// Identity is what it shows, and decides who is let in.
	Identity *Identity
	// HTTP answers calls. Calls of strangers reach it too: it decides who may what, and tells by Recognize whom it knows.
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

	strangerKey struct{}
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

// Recognize says that the call of this context is a user's, who was known by something else than a certificate. The user's connection gives
// its place among the strangers back then and may last; it is counted as that user's until it is closed. One too many is
// fault.NoResources, and the connection stays a stranger's. Whether the next call on it is the user's too, is asked anew.
func Recognize(ctx context.Context, user string) error {
	conn, ok := ctx.Value(strangerKey{}).(*stranger)
	if !ok {
		return nil // a host's, or not of a Server
	}
	return conn.recognize(user)
}

// Run answers on the listener until ctx ends or the listener breaks, and closes it. It lets running calls finish for a
// short time, cuts the streams, and returns when no goroutine of it is left; nil for an end that ctx asked for.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	count := newCensus(s.Limits.filled())
	conf := s.Identity.serverTLS()
	calls := &handover{addr: listener.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	running := callers{next: s.HTTP, id: s.Identity}
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
				ctx = context.WithValue(ctx, strangerKey{}, conn.NetConn())
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
		guest := &stranger{Conn: conn, census: count, leave: func() { one(); <-strangers }}
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
		raw.limit(count.limits.StrangerTime)
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
	census *census
	leave  func()
	gone   func() // nil, or to be called when it is closed
	once   sync.Once

	refused error // why it is one too many of its host's
	timer   atomic.Pointer[time.Timer]

	mu     sync.Mutex
	user   string // whose it is, once a call has said so
	closed bool
}

// recognize makes the connection the user's.
func (g *stranger) recognize(user string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.user == user || g.closed {
		return nil
	}
	leave, err := g.census.user(user)
	if err != nil {
		return err
	}
	if before := g.gone; before != nil {
		before() // a program that calls for two users has its connection with the last one
	}
	g.gone, g.user = leave, user
	if t := g.timer.Load(); t != nil {
		t.Stop()
	}
	g.known()
	return nil
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
	g.mu.Lock()
	g.closed = true
	if g.gone != nil {
		g.gone()
	}
	g.mu.Unlock()
	return g.Conn.Close()
}

// callers counts the running calls, since http.Server.Close does not wait for them.
type callers struct {
	next http.Handler
	id   *Identity
	mu   sync.RWMutex // each call holds it for reading
}

// ServeHTTP runs one call.
func (c *callers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.mu.TryRLock() {
		http.Error(w, "this host's agent is stopping: try again", http.StatusServiceUnavailable)
		return
	}
	defer c.mu.RUnlock()
	if c.id.refuseRemoved(w, r) {
		return
	}
	if _, known := HostID(r.Context()); known && r.Method == http.MethodHead && r.URL.Path == warmPath {
		w.WriteHeader(http.StatusNoContent)
		return
	}
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
