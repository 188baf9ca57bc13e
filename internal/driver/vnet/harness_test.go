package vnet

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// authority is a cluster CA for tests.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{key: key, cert: cert, pool: pool}
}

func (a *authority) issue(t testing.TB, host inventory.HostID) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: string(host)}, DNSNames: []string{string(host)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool, MinVersion: tls.VersionTLS13,
	}
}

func peerID(state tls.ConnectionState) (inventory.HostID, error) {
	if len(state.PeerCertificates) == 0 {
		return "", errors.New("no certificate")
	}
	return inventory.HostID(state.PeerCertificates[0].Subject.CommonName), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// node is a running switch with its client.
type node struct {
	*Client
	t      testing.TB
	host   inventory.HostID
	dir    string
	cfg    Config
	sw     *Switch
	trunk  string
	cancel context.CancelFunc
	ended  chan error
}

// startNode runs the switch of a host whose trunk listens on an address, for instance "127.0.0.1:0".
func startNode(t testing.TB, ca *authority, host inventory.HostID, listen string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "vnet") //nolint:usetesting // t.TempDir is too long for a unix socket in long test names
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	n := &node{t: t, host: host, dir: dir, cfg: Config{
		Host: host, Dir: filepath.Join(dir, "state"), Control: filepath.Join(dir, "switch.sock"), TrunkAddr: listen,
		PeerID: peerID, Log: slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
	if ca != nil {
		n.cfg.ServerTLS = ca.issue(t, host)
		n.cfg.ClientTLS = n.cfg.ServerTLS
	}
	n.start()
	t.Cleanup(n.stop)
	return n
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		_, _ = os.Stderr.Write(b)
	}
	return len(b), nil
}

func (n *node) start() {
	n.t.Helper()
	sw, err := New(n.cfg)
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.sw, n.cancel, n.ended = sw, cancel, make(chan error, 1)
	go func() { n.ended <- sw.Run(ctx) }()
	select {
	case <-sw.Ready():
	case err := <-n.ended:
		n.t.Fatalf("switch %s did not start: %v", n.host, err)
	}
	n.Client = NewClient(n.cfg.Control)
	st, err := n.Status(n.t.Context())
	must(n.t, err)
	n.trunk = st.Trunk
	n.cfg.TrunkAddr = st.Trunk // a restart comes back where the peers look for it
	if n.cfg.ServerTLS == nil {
		n.cfg.TrunkAddr = ""
	}
}

// stop ends the switch and waits for it.
func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.Close()
	n.cancel()
	n.cancel = nil
	if err := <-n.ended; err != nil {
		n.t.Errorf("switch %s: %v", n.host, err)
	}
}

// mesh runs n switches that are each other's peers and carry the network blue, and waits for their trunks.
func mesh(t testing.TB, hosts int) []*node {
	t.Helper()
	ca := newAuthority(t)
	nodes := make([]*node, hosts)
	peers := make([]Peer, hosts)
	for i := range nodes {
		host := inventory.HostID(fmt.Sprintf("host-%d", i+1))
		nodes[i] = startNode(t, ca, host, fmt.Sprintf("127.0.0.%d:0", i+1))
		peers[i] = Peer{ID: host, Addr: nodes[i].trunk}
	}
	for _, n := range nodes {
		must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue}}))
		must(t, n.SetPeers(t.Context(), peers))
	}
	for _, n := range nodes {
		n.waitTrunks(hosts - 1)
	}
	return nodes
}

const blue = inventory.NetworkID("blue")

func (n *node) waitTrunks(want int) {
	n.t.Helper()
	eventually(n.t, "trunks are up", func() bool {
		peers, err := n.Peers(n.t.Context())
		must(n.t, err)
		up := 0
		for _, p := range peers {
			if p.Connected {
				up++
			}
		}
		return up == want
	})
}

// eventually polls for something that has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (n *node) spec(id, m string) PortSpec {
	return PortSpec{ID: id, Network: blue, MAC: m, Socket: filepath.Join(n.dir, id+".sock")}
}

// station is a client of a port that speaks frames, like QEMU.
type station struct {
	t    testing.TB
	conn net.Conn
	mac  mac
	mu   sync.Mutex
	got  []*frame
	all  uint64        // how many it has ever got
	more chan struct{} // token when got has grown
	done chan struct{} // closed when the connection has ended
}

// station adds a port and attaches to it.
func (n *node) station(id, m string) *station {
	n.t.Helper()
	must(n.t, n.AddPort(n.t.Context(), n.spec(id, m)))
	return n.attach(id, m)
}

// attach connects to the port's socket.
func (n *node) attach(id, m string) *station {
	n.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(n.dir, id+".sock"))
	must(n.t, err)
	s := &station{t: n.t, conn: conn, more: make(chan struct{}, 1), done: make(chan struct{})}
	s.mac, err = parseMAC(m)
	must(n.t, err)
	go s.read()
	n.t.Cleanup(func() { _ = conn.Close(); <-s.done })
	eventually(n.t, "port "+id+" has its client", func() bool {
		p, err := n.Port(n.t.Context(), id)
		return err == nil && p.Connected
	})
	return s
}

func (s *station) read() {
	defer close(s.done)
	r := bufio.NewReaderSize(s.conn, readBuffer)
	var runts uint64
	for {
		f, err := readFrame(r, &runts)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.got = append(s.got, f)
		s.all++
		s.mu.Unlock()
		signal(s.more)
	}
}

// write sends frames in one write.
func (s *station) write(frames ...*frame) error {
	var b []byte
	for _, f := range frames {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.data)))
		b = append(b, f.data...)
	}
	_, err := s.conn.Write(b)
	return err
}

func (s *station) send(target mac, n int) {
	s.t.Helper()
	must(s.t, s.write(numbered(target, s.mac, n)))
}

// next returns the next frame that is no announcement.
func (s *station) next() *frame {
	s.t.Helper()
	limit := time.After(5 * time.Second)
	for {
		s.mu.Lock()
		for len(s.got) > 0 {
			f := s.got[0]
			s.got = s.got[1:]
			if binary.BigEndian.Uint16(f.data[12:]) != etherRARP {
				s.mu.Unlock()
				return f
			}
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-limit:
			s.t.Fatalf("no frame for %s within 5 s", s.mac)
		}
	}
}

// expect fails unless the next frame is number n from the source.
func (s *station) expect(source mac, n int) {
	s.t.Helper()
	f := s.next()
	if got := int(binary.BigEndian.Uint32(f.data[14:])); f.source() != source || got != n {
		s.t.Fatalf("%s got frame %d of %s, want %d of %s", s.mac, got, f.source(), n, source)
	}
}

// deaf attaches a client to the port that reads only when the test does.
func (n *node) deaf(id string) net.Conn {
	n.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(n.dir, id+".sock"))
	must(n.t, err)
	n.t.Cleanup(func() { _ = conn.Close() })
	eventually(n.t, "port "+id+" has its client", func() bool {
		p, err := n.Port(n.t.Context(), id)
		return err == nil && p.Connected
	})
	return conn
}

// breakTrunk cuts the connection to a peer; both sides notice and connect again.
func (n *node) breakTrunk(peer inventory.HostID) {
	n.t.Helper()
	n.sw.mu.Lock()
	tr := n.sw.trunks[peer]
	n.sw.mu.Unlock()
	before := tr.status().Connects
	tr.mu.Lock()
	conn := tr.conn
	tr.mu.Unlock()
	must(n.t, conn.Close())
	eventually(n.t, "the trunk is back", func() bool { s := tr.status(); return s.Connected && s.Connects > before })
}
