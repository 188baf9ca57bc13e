package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The times after which another host counts as not answering. An established connection is given up pingAfter +
// pingTimeout = 2.5 s after its last frame.
const (
	dialTimeout      = 2 * time.Second
	handshakeTimeout = 2 * time.Second
	pingAfter        = time.Second
	pingTimeout      = 1500 * time.Millisecond
	idleMax          = 30 * time.Second // connections without a call are closed then
)

// Dialer reaches other hosts. Any goroutine may use it.
type Dialer struct {
	id *Identity

	mu      sync.Mutex
	clients map[route]*http.Client
}

type route struct {
	host    inventory.HostID
	address string
}

// NewDialer returns a Dialer that shows this identity.
func NewDialer(id *Identity) *Dialer {
	return &Dialer{id: id, clients: map[route]*http.Client{}}
}

// HTTPClient returns the client for calls to that host at that address (host:port), the same one each time. Whatever the
// host part of a request's URL says, the connection goes to the address, and only to that host. It speaks HTTP/2 over
// one connection. Calls to a host that died, or a network that was cut, fail within 3 s, also while they wait for an
// answer.
func (d *Dialer) HTTPClient(host inventory.HostID, address string) *http.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := route{host, address}
	if d.clients[r] == nil {
		// A host that moved leaves its old route behind; there are as many as addresses ever were.
		d.clients[r] = httpClient(address, d.id.clientTLS(host, protoHTTP))
	}
	return d.clients[r]
}

// warmPath is asked for by Warm alone, and answered by the server itself.
const warmPath = "/warm"

// Warm opens the connection that calls to that host at that address take, if none is open, and keeps it open for as long as any other call would:
// the next one needs no handshake. The other side's API hears nothing of it.
func (d *Dialer) Warm(ctx context.Context, host inventory.HostID, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+address+warmPath, nil)
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	resp, err := d.HTTPClient(host, address).Do(req)
	if err != nil {
		return d.explain(ctx, host, address, err)
	}
	return resp.Body.Close()
}

// Close closes idle connections. Calls that are under way end by their contexts.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.clients {
		c.CloseIdleConnections()
	}
}

func httpClient(address string, conf *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialTCP(ctx, address)
		},
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: handshakeTimeout,
		IdleConnTimeout:     idleMax,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	tune(conn)
	return conn, nil
}

// DialStream opens a byte stream to that host at that address. It returns when the other side's handler accepted the
// header, or its refusal with kind and reason; a host that does not answer is fault.Unavailable. ctx bounds the opening
// only. The caller closes the stream; its type has CloseWrite.
func (d *Dialer) DialStream(ctx context.Context, host inventory.HostID, address string, header []byte) (net.Conn, error) {
	if len(header) > HeaderMax {
		return nil, fault.New(fault.Internal, "stream header of %d bytes is too long: at most %d", len(header), HeaderMax)
	}
	raw, err := dialTCP(ctx, address)
	if err != nil {
		return nil, d.explain(ctx, host, address, err)
	}
	boundStream(raw)
	paceStream(raw)
	conn := tls.Client(raw, d.id.clientTLS(host, protoStream))
	if err := open(ctx, conn, header); err != nil {
		_ = conn.Close() // err says what matters
		return nil, d.explain(ctx, host, address, err)
	}
	return conn, nil
}

// open does the handshake, sends the header and waits for the answer, all before openTimeout and before ctx ends.
func open(ctx context.Context, conn *tls.Conn, header []byte) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	cut := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := conn.HandshakeContext(ctx)
	if err == nil {
		// With TLS 1.3 a client learns from its first read whether the server took its certificate; so the answer is read
		// even if the header could not be written.
		wrote := writeHeader(conn, header)
		if err = readAnswer(conn); errors.Is(err, errNoAnswer) && wrote != nil {
			err = wrote
		}
	}
	if !cut() && err == nil {
		err = ctx.Err()
	}
	return err
}

func (d *Dialer) explain(ctx context.Context, host inventory.HostID, address string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fault.New(fault.Canceled, "dial host %s at %s: %w", host, address, cause)
	}
	if fault.KindOf(err) != fault.Unknown && !errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap("", "host "+string(host), err)
	}
	return explainTLS(host, address, err)
}

// DialJoin returns a client for the one call of a host that joins, which has no certificate: it goes to the token's
// address and trusts only the cluster that the token speaks of.
func DialJoin(t Token) *http.Client { return httpClient(t.Address, joinTLS(t)) }
