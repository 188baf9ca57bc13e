package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The files of an identity, in PEM. Keys have mode 0600. Only the host on which the cluster was made, or restored, has CAKeyFile.
const (
	CACertificateFile = "ca.crt"
	CAKeyFile         = "ca.key"
	CertificateFile   = "host.crt"
	KeyFile           = "host.key"
)

// Identity is what a host proves to others who it is with, and knows them by. Who that is does not change; its certificate does, when this
// process or another of the host rotates it (rotate.go). Any goroutine may use it.
type Identity struct {
	cluster string
	host    inventory.HostID
	ca      *x509.Certificate
	roots   *x509.CertPool
	shown   shown
	revoked *revoked // nil in memory only: none
}

// Cluster returns the name of the cluster.
func (id *Identity) Cluster() string { return id.cluster }

// Host returns the host's id.
func (id *Identity) Host() inventory.HostID { return id.host }

// CA returns the certificate of the cluster's CA in DER.
func (id *Identity) CA() []byte { return id.ca.Raw }

// Expires returns when the host's certificate ends.
func (id *Identity) Expires() time.Time { return id.shown.certificate(id).Leaf.NotAfter }

// CAExpires returns when the certificate of the cluster's CA ends, and with it every other.
func (id *Identity) CAExpires() time.Time { return id.ca.NotAfter }

// Init makes a cluster's CA, its secret, and the identity of its first host in the directory. addresses are the IP addresses at which
// the host's store is dialled. A directory that has an identity is fault.Exists and left as it is.
func Init(dir, cluster string, host inventory.HostID, addresses []string) (*Identity, error) {
	if err := inventory.CheckName("host", string(host)); err != nil {
		return nil, err
	}
	for _, name := range []string{CACertificateFile, CAKeyFile, CertificateFile, KeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return nil, fault.New(fault.Exists, "%s exists: this host belongs to a cluster already", filepath.Join(dir, name))
		}
	}
	ca, err := NewCA(cluster)
	if err != nil {
		return nil, err
	}
	request, err := NewRequest(host)
	if err != nil {
		return nil, err
	}
	certificate, err := ca.issue(request.key.Public(), host, addresses)
	if err != nil {
		return nil, err
	}
	if err := ca.Save(dir); err != nil {
		return nil, err
	}
	if err := SaveSecret(dir, NewSecret()); err != nil {
		return nil, err
	}
	id, err := request.Save(dir, ca.Certificate(), certificate)
	if err != nil {
		return nil, err
	}
	list, err := ca.Revoke(nil)
	if err != nil {
		return nil, err
	}
	return id, id.SaveRevoked(list)
}

// Kept is what a backup keeps of a cluster's trust.
type Kept struct {
	CA, CAKey []byte // PEM
	Secret    []byte // empty: the host that made the backup had none
}

// Found makes the identity of a cluster's first host in the directory out of a CA and a secret that were kept, as Init does with new ones.
func Found(dir string, kept Kept, host inventory.HostID, addresses []string) (*Identity, error) {
	if _, err := os.Lstat(filepath.Join(dir, CACertificateFile)); err == nil {
		return nil, fault.New(fault.Exists, "%s exists: this host belongs to a cluster already", filepath.Join(dir, CACertificateFile))
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{CACertificateFile: kept.CA, CAKeyFile: kept.CAKey} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return nil, fault.New(fault.NoResources, "identity of this host: %w", err)
		}
	}
	ca, err := LoadCA(dir)
	if err != nil {
		return nil, err
	}
	request, err := NewRequest(host)
	if err != nil {
		return nil, err
	}
	signed, err := ca.issue(request.key.Public(), host, addresses)
	if err != nil {
		return nil, err
	}
	if err := ca.Save(dir); err != nil { // synced, and with its modes
		return nil, err
	}
	if len(kept.Secret) > 0 {
		if err := SaveSecret(dir, kept.Secret); err != nil {
			return nil, err
		}
	}
	id, err := request.Save(dir, ca.Certificate(), signed)
	if err != nil {
		return nil, err
	}
	list, err := ca.Revoke(nil) // the store has a newer one, if any was revoked
	if err != nil {
		return nil, err
	}
	return id, id.SaveRevoked(list)
}

// Request is a new host's key, before the cluster has signed it.
type Request struct {
	key  *ecdsa.PrivateKey
	host inventory.HostID
	csr  []byte
}

// NewRequest makes a key for a host that joins. Nothing is written; the key never leaves the host.
func NewRequest(host inventory.HostID) (*Request, error) {
	if err := inventory.CheckName("host", string(host)); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.New(fault.Internal, "make key of host %s: %w", host, err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(host)}}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fault.New(fault.Internal, "make certificate request of host %s: %w", host, err)
	}
	return &Request{key: key, host: host, csr: csr}, nil
}

// CSR returns the request to be signed by CA.Sign: PKCS #10 in DER.
func (r *Request) CSR() []byte { return r.csr }

// Save writes ca.crt, host.key and host.crt into the directory, which it makes with mode 0700, after it has checked that
// they fit together. ca and certificate are DER. A joining host checks ca with Token.Verify first.
func (r *Request) Save(dir string, ca, certificate []byte) (*Identity, error) {
	root, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate of the ca: %w", err)
	}
	id, err := newIdentity(root, certificate, r.key)
	if err != nil {
		return nil, err
	}
	if id.host != r.host {
		return nil, fault.New(fault.Invalid, "certificate is for host %s, not for %s", id.host, r.host)
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := writeKey(filepath.Join(dir, KeyFile), r.key); err != nil {
		return nil, err
	}
	if err := writeCertificate(filepath.Join(dir, CACertificateFile), ca); err != nil {
		return nil, err
	}
	if err := writeCertificate(filepath.Join(dir, CertificateFile), certificate); err != nil {
		return nil, err
	}
	id.revoked = &revoked{dir: dir, ca: root}
	return id, id.shown.follow(dir)
}

// Load reads the identity of a directory. A host that belongs to no cluster is fault.NotFound, and a certificate that is
// over is fault.Denied.
func Load(dir string) (*Identity, error) {
	path := filepath.Join(dir, CertificateFile)
	certificate, err := readCertificate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "this host belongs to no cluster (no %s): run godwit init or godwit join", path)
	}
	if err != nil {
		return nil, err
	}
	ca, err := readCertificate(filepath.Join(dir, CACertificateFile))
	if err != nil {
		return nil, err
	}
	key, err := readKeyOf(dir, certificate)
	if err != nil {
		return nil, err
	}
	id, err := newIdentity(ca, certificate.Raw, key)
	if err != nil {
		return nil, err
	}
	id.revoked = &revoked{dir: dir, ca: ca}
	return id, id.shown.follow(dir)
}

func newIdentity(ca *x509.Certificate, certificate []byte, key *ecdsa.PrivateKey) (*Identity, error) {
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate of the host: %w", err)
	}
	cluster, host, err := whoIs(leaf)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fault.New(fault.Invalid, "certificate of host %s does not belong to its key: join the host again", host)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := leaf.Verify(options); err != nil {
		return nil, fault.New(fault.Denied, "certificate of host %s: %w: check the clock, or join the host again", host, err)
	}
	id := &Identity{cluster: cluster, host: host, ca: ca, roots: roots}
	// The CA's certificate goes along for hosts that join.
	id.shown.now.Store(&tls.Certificate{Certificate: [][]byte{certificate, ca.Raw}, PrivateKey: key, Leaf: leaf})
	return id, nil
}

func readPEM(path, kind string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Internal, "identity of this host: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fault.New(fault.Internal, "%s holds no PEM block %q: restore it from a backup, or join the host again", path, kind)
	}
	return block.Bytes, nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Internal, "%s: %w", path, err)
	}
	return certificate, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	der, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Internal, "%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Internal, "%s: key of type %T, not ECDSA", path, parsed)
	}
	return key, nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fault.New(fault.Internal, "%s: %w", path, err)
	}
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

func writeCertificate(path string, der []byte) error {
	return writePEM(path, "CERTIFICATE", der, 0o644)
}

// writePEM replaces the file as a whole.
func writePEM(path, kind string, der []byte, mode fs.FileMode) error {
	return writeWhole(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeWhole replaces the file as a whole, so that a host that loses power has the old one or the new one.
func writeWhole(path string, text []byte, mode fs.FileMode) error {
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fault.New(fault.Internal, "identity of this host: %w", err)
	}
	_, err = tmp.Write(text)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // err says what matters
		return fault.New(fault.Internal, "identity of this host: %w", err)
	}
	return nil
}
