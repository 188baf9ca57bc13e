// Package peer is how hosts know and reach one another: the cluster's own certificate authority, host certificates, join
// tokens, and one TCP port between hosts.
//
// # Trust
//
// A cluster has one CA, made by the first host at init. Its key is there, and in the store, sealed with a secret that all hosts but
// witnesses have (secret.go): each of them can sign. A host certificate names its host twice: as
// DNS name, so that ordinary TLS verification checks it, and as URI godwit://CLUSTER/host/ID, which this package reads.
// Everything is TLS 1.3 with certificates on both sides, except for a host that is joining: it has no certificate yet, and
// knows the cluster only by the hash of its CA in the token.
//
// # The one port
//
// ALPN chooses what a connection is: "h2" carries the API (Server.HTTP), "godwit-stream/1" a byte stream with a header
// that says what it is for (Server.Stream). Anything else is refused in the handshake.
//
// The package knows nothing of the API's messages, and does not know the store; that uses its TLS files and
// Identity.StoreTLS.
package peer

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// How long certificates are valid.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	HostLifetime = 2 * 365 * 24 * time.Hour

	// clockSkewMax is how far the clock of a host may be behind that of the CA's host.
	clockSkewMax = time.Hour
)

const (
	uriScheme = "godwit"
	organ     = "Godwit"
)

// CA is the cluster's certificate authority, where its key is. The value does not change and any goroutine may use it.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	cluster     string
}

// NewCA makes a CA with a new key for the cluster, whose name must be usable in a URL (inventory.CheckName).
func NewCA(cluster string) (*CA, error) {
	if err := inventory.CheckName("cluster", cluster); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "make key of the ca: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: cluster, Organization: []string{organ}},
		NotBefore:             now.Add(-clockSkewMax),
		NotAfter:              now.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fault.New(fault.Internal, "make certificate of the ca: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Internal, "read certificate of the ca: %w", err)
	}
	return &CA{certificate: certificate, key: key, cluster: cluster}, nil
}

// LoadCA reads the CA of the directory; fault.NotFound on a host that has no file of the CA's key, and opens the store's instead (UnsealCA).
func LoadCA(dir string) (*CA, error) {
	certificate, err := readCertificate(filepath.Join(dir, CACertificateFile))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, CAKeyFile)
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "this host has no file of the key of the cluster's ca (%s): ask another host", path)
	}
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certificate.PublicKey) {
		return nil, fault.New(fault.Internal, "%s does not belong to %s: restore both from a backup", path, CACertificateFile)
	}
	return &CA{certificate: certificate, key: key, cluster: certificate.Subject.CommonName}, nil
}

// Save writes ca.crt and ca.key (mode 0600) into the directory, which it makes with mode 0700.
func (ca *CA) Save(dir string) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, CAKeyFile), ca.key); err != nil {
		return err
	}
	return writeCertificate(filepath.Join(dir, CACertificateFile), ca.certificate.Raw)
}

// Key returns the CA's private key in PEM.
func (ca *CA) Key() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, fault.New(fault.Internal, "key of the ca: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Cluster returns the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// Certificate returns the CA's certificate in DER.
func (ca *CA) Certificate() []byte { return ca.certificate.Raw }

// Sign returns a certificate in DER for the key of the request (PKCS #10, DER). Of the request it takes nothing but the
// key, proven by the request's signature: who the certificate is for, and at which IP addresses (for the store, which is
// dialled by address), is the caller's word.
func (ca *CA) Sign(request []byte, host inventory.HostID, addresses []string) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate request of host %s: %w", host, err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.Invalid, "certificate request of host %s is not signed by its key: %w", host, err)
	}
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, fault.New(fault.Invalid, "certificate request of host %s: curve %s: take P-256", host, key.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, fault.New(fault.Invalid, "certificate request of host %s: key type %T: take ECDSA P-256 or Ed25519", host, key)
	}
	return ca.issue(csr.PublicKey, host, addresses)
}

func (ca *CA) issue(key any, host inventory.HostID, addresses []string) ([]byte, error) {
	if err := inventory.CheckName("host", string(host)); err != nil {
		return nil, err
	}
	var ips []net.IP
	for _, a := range addresses {
		ip := net.ParseIP(a)
		if ip == nil || ip.IsUnspecified() {
			return nil, fault.New(fault.Invalid, "address %q of host %s is no IP address that others can dial", a, host)
		}
		ips = append(ips, ip)
	}
	now := time.Now()
	end := now.Add(HostLifetime)
	if end.After(ca.certificate.NotAfter) {
		end = ca.certificate.NotAfter // nobody trusts it for longer
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: string(host), Organization: []string{organ}},
		NotBefore:    now.Add(-clockSkewMax),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     []string{string(host)},
		IPAddresses:  ips,
		URIs:         []*url.URL{{Scheme: uriScheme, Host: ca.cluster, Path: "/host/" + string(host)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key, ca.key)
	if err != nil {
		return nil, fault.New(fault.Internal, "make certificate of host %s: %w", host, err)
	}
	return der, nil
}

// serial returns a random 127-bit number (RFC 5280 wants it positive and unique for the CA).
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails (Go 1.24 release notes)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// whoIs reads the cluster and the host out of a certificate's URI.
func whoIs(certificate *x509.Certificate) (cluster string, host inventory.HostID, err error) {
	for _, u := range certificate.URIs {
		name, ok := strings.CutPrefix(u.Path, "/host/")
		if u.Scheme == uriScheme && ok && inventory.CheckName("host", name) == nil {
			return u.Host, inventory.HostID(name), nil
		}
	}
	return "", "", fault.New(fault.Denied, "certificate of %q is not that of a godwit host", certificate.Subject.CommonName)
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Internal, "directory of the certificates: %w", err)
	}
	return nil
}
