package vnet

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A peer that sends nothing for silenceMax is given up; one that lives sends at least every keepaliveEvery.
const (
	keepaliveEvery = 500 * time.Millisecond
	silenceMax     = 2 * time.Second
	handshakeMax   = 5 * time.Second // TCP, TLS and hello together
	redialMin      = 100 * time.Millisecond
	redialMax      = 2 * time.Second
	handshakesMax  = 64 // inbound, at once
)

// trunk is the connection to one peer. The host with the smaller id dials.
type trunk struct {
	peer     Peer
	link     *link
	fabric   *fabric
	log      *slog.Logger
	dials    bool
	dial     func(ctx context.Context, p Peer) (net.Conn, error)
	accepted chan net.Conn // authenticated as peer
	stop     context.CancelFunc
	stopped  chan struct{}

	mu       sync.Mutex
	since    time.Time
	connects uint64
	problem  string
	conn     net.Conn // while connected
}

// run keeps the trunk connected until ctx ends.
func (t *trunk) run(ctx context.Context) {
	if t.dials {
		t.runDial(ctx)
	} else {
		t.runAccept(ctx)
	}
	for {
		select {
		case conn := <-t.accepted:
			_ = conn.Close() // came too late
		default:
			return
		}
	}
}

func (t *trunk) runDial(ctx context.Context) {
	pause := redialMin
	for ctx.Err() == nil {
		conn, err := t.dial(ctx, t.peer)
		if err == nil {
			began := time.Now()
			err = t.serve(ctx, conn)
			if time.Since(began) > redialMax {
				pause = redialMin
			}
		}
		if ctx.Err() != nil {
			return
		}
		t.note(err)
		select {
		case <-ctx.Done():
		case <-time.After(pause + rand.N(pause/4)):
		}
		pause = min(2*pause, redialMax)
	}
}

// runAccept serves the newest connection that the peer has made: when it dials again it has given up the one before.
func (t *trunk) runAccept(ctx context.Context) {
	var conn net.Conn
	for {
		if conn == nil {
			select {
			case <-ctx.Done():
				return
			case conn = <-t.accepted:
			}
		}
		one, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- t.serve(one, conn) }()
		var newer net.Conn
		var err error
		select {
		case newer = <-t.accepted:
			cancel()
			err = <-done
		case err = <-done:
		}
		cancel()
		if ctx.Err() == nil && newer == nil {
			t.note(err)
		}
		conn = newer
	}
}

// note keeps why the trunk is down and logs it when that is news.
func (t *trunk) note(err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	news := t.problem != err.Error()
	t.problem = err.Error()
	t.mu.Unlock()
	if news {
		t.log.Warn("trunk is down", slog.String("peer", string(t.peer.ID)), slog.Any("err", err))
	}
}

// serve carries the trunk over one connection until it breaks or ctx ends, and closes it.
func (t *trunk) serve(ctx context.Context, conn net.Conn) error {
	var once sync.Once
	hangUp := func() { once.Do(func() { _ = conn.Close() }) } // the peer notices or has gone
	defer hangUp()
	stop := context.AfterFunc(ctx, hangUp)
	defer stop()

	r := bufio.NewReaderSize(conn, readBuffer)
	if err := t.hello(conn, r); err != nil {
		return err
	}
	t.connected(conn)
	t.fabric.linkUp(t.link, time.Now())
	t.log.InfoContext(ctx, "trunk is up", slog.String("peer", string(t.peer.ID)))

	gone := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		t.write(conn, gone)
		hangUp()
	})
	err := t.read(conn, r)
	close(gone)
	hangUp()
	writing.Wait()
	t.fabric.linkDown(t.link, time.Now())
	t.connected(nil)
	return err
}

func (t *trunk) connected(conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since, t.conn = time.Now(), conn
	if conn != nil {
		t.connects++
		t.problem = ""
	}
}

// hello makes sure that both ends speak the same protocol and are who the other thinks.
func (t *trunk) hello(conn net.Conn, r *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeMax)); err != nil {
		return err
	}
	mine := item{kind: kindHello, ctl: &control{number: trunkVersion, host: t.fabric.host}}
	if _, err := conn.Write(appendMessage(nil, mine)); err != nil {
		return err
	}
	theirs, err := readMessage(r)
	if err != nil {
		return err
	}
	switch {
	case theirs.kind != kindHello:
		return fault.New(fault.Incompatible, "host %s did not open with hello", t.peer.ID)
	case theirs.ctl.number != trunkVersion:
		return fault.New(fault.Incompatible, "host %s speaks trunk version %d, this host %d: upgrade the older one", t.peer.ID, theirs.ctl.number, trunkVersion)
	case theirs.ctl.host != t.peer.ID:
		return fault.New(fault.Denied, "host %s calls itself %s", t.peer.ID, theirs.ctl.host)
	}
	return conn.SetDeadline(time.Time{})
}

// read passes the peer's messages to the fabric until the connection breaks.
func (t *trunk) read(conn net.Conn, r *bufio.Reader) error {
	items := make([]item, 0, batchMax)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(silenceMax)); err != nil {
			return err
		}
		it, err := readMessage(r)
		if err != nil {
			var timeout net.Error
			switch {
			case errors.As(err, &timeout) && timeout.Timeout():
				return fault.New(fault.Unavailable, "host %s was silent for %v", t.peer.ID, silenceMax)
			case errors.Is(err, io.EOF):
				return fault.New(fault.Unavailable, "host %s hung up", t.peer.ID)
			}
			return err
		}
		items = append(items[:0], it)
		for len(items) < batchMax && blockBuffered(r) {
			if it, err = readMessage(r); err != nil {
				break
			}
			items = append(items, it)
		}
		t.fabric.fromLink(t.link, items, time.Now())
		clear(items)
		if err != nil {
			return err // a malformed message behind good ones
		}
	}
}

// write sends what is queued for the peer, and keepalives, until the connection breaks.
func (t *trunk) write(conn net.Conn, gone <-chan struct{}) {
	var batch []item
	buf := make([]byte, 0, writeChunk+messageMax)
	beat := time.NewTicker(keepaliveEvery)
	defer beat.Stop()
	for {
		batch = t.link.out.take(batch[:0], writeChunk)
		buf = buf[:0]
		if len(batch) == 0 {
			select {
			case <-gone:
				return
			case <-t.link.out.wake:
				continue
			case <-beat.C:
				buf = appendMessage(buf, item{kind: kindKeepalive})
			}
		}
		for i := range batch {
			buf = appendMessage(buf, batch[i])
			batch[i].frame.release()
			batch[i] = item{}
		}
		err := conn.SetWriteDeadline(time.Now().Add(silenceMax))
		if err == nil {
			_, err = conn.Write(buf)
		}
		t.link.out.done()
		if err != nil {
			return // the reader says why
		}
	}
}

func (t *trunk) status() PeerStatus {
	t.mu.Lock()
	s := PeerStatus{Peer: t.peer, Since: t.since, Connects: t.connects, Error: t.problem}
	t.mu.Unlock()
	f := t.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Connected = t.link.up
	st := t.link.stats
	s.FramesIn, s.BytesIn, s.FramesOut, s.BytesOut = st.framesIn, st.bytesIn, st.framesOut, st.bytesOut
	s.DropsIn, s.DropsOut = st.dropsIn, st.dropsOut
	return s
}

// dialTrunk connects to a peer and makes sure that it is the one.
func (s *Switch) dialTrunk(ctx context.Context, p Peer) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	config := s.cfg.ClientTLS.Clone()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{trunkALPN}
	if config.ServerName == "" {
		config.ServerName = string(p.ID)
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := s.authenticate(ctx, conn, p.ID); err != nil {
		_ = raw.Close() // the error that matters is err
		return nil, err
	}
	return conn, nil
}

// authenticate finishes the handshake; want is empty when any peer will do.
func (s *Switch) authenticate(ctx context.Context, conn *tls.Conn, want inventory.HostID) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != trunkALPN {
		return fault.New(fault.Incompatible, "peer does not speak %s", trunkALPN)
	}
	id, err := s.cfg.PeerID(state)
	if err != nil {
		return err
	}
	if want != "" && id != want {
		return fault.New(fault.Denied, "the certificate there is host %s's, not host %s's", id, want)
	}
	return nil
}

// acceptTrunks takes connections of peers until ctx ends.
func (s *Switch) acceptTrunks(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // nothing more to accept
	defer stop()
	var shaking sync.WaitGroup
	defer shaking.Wait()
	slots := make(chan struct{}, handshakesMax)
	config := s.cfg.ServerTLS.Clone()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{trunkALPN}
	if config.ClientAuth < tls.RequireAnyClientCert { // a stricter caller verifies in VerifyConnection
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	for {
		raw, err := l.Accept()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.WarnContext(ctx, "trunk listener does not accept", slog.Any("err", err))
			select {
			case <-ctx.Done():
			case <-time.After(redialMin):
			}
			continue
		}
		slots <- struct{}{}
		shaking.Go(func() {
			defer func() { <-slots }()
			s.admitTrunk(ctx, tls.Server(raw, config))
		})
	}
}

func (s *Switch) admitTrunk(ctx context.Context, conn *tls.Conn) {
	one, cancel := context.WithTimeout(ctx, handshakeMax)
	defer cancel()
	err := s.authenticate(one, conn, "")
	if err == nil {
		var id inventory.HostID
		if id, err = s.cfg.PeerID(conn.ConnectionState()); err == nil {
			err = s.handTrunk(ctx, id, conn)
		}
	}
	if err != nil {
		_ = conn.Close() // refused
		s.log.WarnContext(ctx, "trunk refused", slog.String("from", conn.RemoteAddr().String()), slog.Any("err", err))
	}
}

// handTrunk gives an authenticated connection to its trunk.
func (s *Switch) handTrunk(ctx context.Context, id inventory.HostID, conn net.Conn) error {
	s.mu.Lock()
	t := s.trunks[id]
	s.mu.Unlock()
	switch {
	case t == nil:
		return fault.New(fault.Denied, "host %s is no peer of this switch", id)
	case t.dials:
		return fault.New(fault.Conflict, "host %s dialled, but this host has the smaller id and dials", id)
	}
	select {
	case t.accepted <- conn:
		return nil
	case <-t.stopped:
		return fault.New(fault.Denied, "host %s is no peer any more", id)
	case <-ctx.Done():
		return ctx.Err()
	}
}
