package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// A rotation replaces two files that belong together:
//
//	write host.key.next ─► replace host.crt ─► host.key.next becomes host.key
//
// Whoever finds a certificate that does not fit host.key takes host.key.next and ends what was cut off. Every process of the host looks at
// host.crt before each handshake, so that new connections show the new certificate; those that are open stay.
const nextKeyFile = KeyFile + ".next"

// RenewAt returns when a certificate of that span is to be rotated: when a third of its life is left.
func RenewAt(begin, end time.Time) time.Time { return end.Add(-end.Sub(begin) / 3) }

// RenewAt returns when the host's certificate is to be rotated.
func (id *Identity) RenewAt() time.Time {
	leaf := id.shown.certificate(id).Leaf
	return RenewAt(leaf.NotBefore, leaf.NotAfter)
}

// Rotate replaces the host's key and certificate in the folder that the identity was loaded from, after it has checked that they are this
// host's and valid. certificate is DER. New connections show it from then on, in every process of the host, and the store's
// too, which reads the files before each handshake.
func (id *Identity) Rotate(r *Request, certificate []byte) error {
	next, err := newIdentity(id.ca, certificate, r.key)
	if err != nil {
		return err
	}
	if next.host != id.host || next.cluster != id.cluster {
		return fault.New(fault.Invalid, "certificate is for host %s of cluster %s, not for %s of %s", next.host, next.cluster, id.host, id.cluster)
	}
	dir := id.shown.dir
	if err := writeKey(filepath.Join(dir, nextKeyFile), r.key); err != nil {
		return err
	}
	if err := writeCertificate(filepath.Join(dir, CertificateFile), certificate); err != nil {
		return err
	}
	if err := settleKey(dir); err != nil {
		return err
	}
	id.shown.certificate(id)
	return nil
}

func settleKey(dir string) error {
	if err := os.Rename(filepath.Join(dir, nextKeyFile), filepath.Join(dir, KeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) { // another process did it
		return fault.New(fault.Internal, "identity of this host: %w", err)
	}
	return nil
}

// readKeyOf returns the key of the certificate, and ends a rotation that was cut off.
func readKeyOf(dir string, certificate *x509.Certificate) (*ecdsa.PrivateKey, error) {
	key, err := readKey(filepath.Join(dir, KeyFile))
	if err != nil || key.PublicKey.Equal(certificate.PublicKey) {
		return key, err
	}
	next, err := readKey(filepath.Join(dir, nextKeyFile))
	if err != nil || !next.PublicKey.Equal(certificate.PublicKey) {
		return key, nil //nolint:nilerr // the certificate is nobody's, which newIdentity says
	}
	return next, settleKey(dir)
}

// shown is the certificate that is shown, and the file that it is from.
type shown struct {
	dir string
	now atomic.Pointer[tls.Certificate]

	mu   sync.Mutex
	file os.FileInfo // of CertificateFile, as it was read; nil: the identity has no folder yet
}

// follow begins to look at the folder's files.
func (s *shown) follow(dir string) error {
	info, err := os.Stat(filepath.Join(dir, CertificateFile))
	if err != nil {
		return fault.New(fault.Internal, "identity of this host: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir, s.file = dir, info
	return nil
}

// certificate returns what to show now. Files that cannot be read, or do not fit (they are just being replaced), leave it at what was
// shown last.
func (s *shown) certificate(id *Identity) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return s.now.Load()
	}
	info, err := os.Stat(filepath.Join(s.dir, CertificateFile))
	if err != nil || os.SameFile(info, s.file) && info.ModTime().Equal(s.file.ModTime()) {
		return s.now.Load()
	}
	certificate, err := readCertificate(filepath.Join(s.dir, CertificateFile))
	if err != nil {
		return s.now.Load()
	}
	key, err := readKeyOf(s.dir, certificate)
	if err != nil {
		return s.now.Load()
	}
	next, err := newIdentity(id.ca, certificate.Raw, key)
	if err != nil || next.host != id.host || next.cluster != id.cluster {
		return s.now.Load()
	}
	s.file = info
	s.now.Store(next.shown.now.Load())
	return s.now.Load()
}

func (id *Identity) serverCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return id.shown.certificate(id), nil
}

func (id *Identity) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return id.shown.certificate(id), nil
}

// Expires returns when the certificate ends that the host at the address shows, by a connection of its own. It fails as every connection
// to a host does.
func (d *Dialer) Expires(ctx context.Context, host inventory.HostID, address string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := dialTCP(ctx, address)
	if err != nil {
		return time.Time{}, d.explain(ctx, host, address, err)
	}
	conn := tls.Client(raw, d.id.clientTLS(host, protoHTTP))
	defer func() { _ = conn.Close() }() // nothing was sent
	if err := conn.HandshakeContext(ctx); err != nil {
		return time.Time{}, d.explain(ctx, host, address, err)
	}
	return conn.ConnectionState().PeerCertificates[0].NotAfter, nil
}
