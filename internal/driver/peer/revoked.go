package peer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// RevokedFile lists the certificates that the CA has taken back: a certificate revocation list (RFC 5280) in DER. Every host keeps a copy
// and looks at it in each handshake, and so does etcd.
const RevokedFile = "revoked.crl"

// Revoke returns the list with more certificates taken back, numbered and signed by the CA; a nil list begins one. Certificates that have
// expired are left out, since nobody takes them any more.
func (ca *CA) Revoke(list []byte, more ...inventory.HostCertificate) ([]byte, error) {
	now := time.Now()
	template := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now.Add(-clockSkewMax),
		// No list is too old to be used: which one counts is the store's word.
		NextUpdate: ca.certificate.NotAfter,
	}
	if len(list) > 0 {
		old, err := x509.ParseRevocationList(list)
		if err != nil {
			return nil, fault.New(fault.Internal, "list of revoked certificates: %w", err)
		}
		template.Number.Add(old.Number, template.Number)
		template.RevokedCertificateEntries = old.RevokedCertificateEntries
	}
	for _, c := range more {
		raw, err := hex.DecodeString(c.Serial)
		if err != nil {
			return nil, fault.New(fault.Internal, "certificate with serial number %q: %w", c.Serial, err)
		}
		number := new(big.Int).SetBytes(raw)
		known := slices.ContainsFunc(template.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(number) == 0 })
		if !known && c.Expires.After(now) {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: number, RevocationTime: now})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.certificate, ca.key)
	if err != nil {
		return nil, fault.New(fault.Internal, "make list of revoked certificates: %w", err)
	}
	return der, nil
}

// Merge returns a list of all that are in the store's list or in a host's own, newer than both, if the host's own is newer than the store's:
// the store was restored from a backup, and no host would take what follows on a list that is older than its own. It returns nil otherwise.
func (ca *CA) Merge(list, own []byte) ([]byte, error) {
	var lists [2]*x509.RevocationList
	for i, der := range [][]byte{list, own} {
		lists[i] = &x509.RevocationList{Number: big.NewInt(1)} // what every host begins with
		if len(der) == 0 {
			continue
		}
		var err error
		if lists[i], err = x509.ParseRevocationList(der); err != nil {
			return nil, fault.New(fault.Internal, "list of revoked certificates: %w", err)
		}
	}
	kept, mine := lists[0], lists[1]
	if mine.Number.Cmp(kept.Number) <= 0 {
		return nil, nil
	}
	var more []inventory.HostCertificate
	for _, e := range kept.RevokedCertificateEntries {
		// The list does not say when a certificate ends; none ends after the CA's.
		more = append(more, inventory.HostCertificate{Serial: hex.EncodeToString(e.SerialNumber.Bytes()), Expires: ca.certificate.NotAfter})
	}
	return ca.Revoke(own, more...)
}

// Certificate returns the host's certificate as the cluster notes it.
func (id *Identity) Certificate() inventory.HostCertificate {
	return noted(id.shown.certificate(id).Leaf)
}

// Noted returns how the cluster notes a certificate, given in DER.
func Noted(der []byte) (inventory.HostCertificate, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return inventory.HostCertificate{}, fault.New(fault.Invalid, "certificate: %w", err)
	}
	return noted(c), nil
}

// KeyOf returns the SHA-256 of the public key of a certificate request (PKCS #10, DER), whose own signature it checks.
func KeyOf(request []byte) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "certificate request: %w", err)
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return sum[:], nil
}

func noted(c *x509.Certificate) inventory.HostCertificate {
	return inventory.HostCertificate{Serial: hex.EncodeToString(c.SerialNumber.Bytes()), Expires: c.NotAfter}
}

// SaveRevoked replaces this host's copy of the list, if it is the CA's and not older than the copy. All of this host's processes look at it
// from then on.
func (id *Identity) SaveRevoked(list []byte) error {
	next, err := x509.ParseRevocationList(list)
	if err == nil {
		err = next.CheckSignatureFrom(id.ca)
	}
	if err != nil {
		return fault.New(fault.Denied, "list of revoked certificates is not the cluster's: %w", err)
	}
	if old := id.revoked.read(); old != nil && old.Number.Cmp(next.Number) >= 0 {
		return nil
	}
	return writeWhole(filepath.Join(id.revoked.dir, RevokedFile), list, 0o644)
}

// Revoked returns this host's copy of the list, in DER; nil when it has none.
func (id *Identity) Revoked() []byte {
	if list := id.revoked.read(); list != nil {
		return list.Raw
	}
	return nil
}

// TakenBack reports whether this host's own certificate was, as its copy of the list says.
func (id *Identity) TakenBack() bool { return id.revoked.has(id.shown.certificate(id).Leaf) }

// revoked is the host's copy of the list, read again when the file is another one.
type revoked struct {
	dir string
	ca  *x509.Certificate

	mu   sync.Mutex
	info fs.FileInfo // of the file that list was read from
	list *x509.RevocationList
}

// read returns the list; nil when there is none. One that cannot be read, or is not the CA's, is none: the file is this host's own, and
// whoever can change it can do worse.
func (r *revoked) read() *x509.RevocationList {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	path := filepath.Join(r.dir, RevokedFile)
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	if r.info != nil && os.SameFile(info, r.info) && info.ModTime().Equal(r.info.ModTime()) && info.Size() == r.info.Size() {
		return r.list
	}
	r.info, r.list = info, nil
	der, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if list, err := x509.ParseRevocationList(der); err == nil && list.CheckSignatureFrom(r.ca) == nil {
		r.list = list
	}
	return r.list
}

// has reports whether the certificate was taken back.
func (r *revoked) has(c *x509.Certificate) bool {
	list := r.read()
	return list != nil && slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(c.SerialNumber) == 0
	})
}

// removedHeader is on the answer to a host that is not of the cluster any more.
const removedHeader = "Godwit-Removed"

// refuseRemoved answers a caller whose certificate was taken back, and reports whether it was; also on a connection that is older than that.
func (id *Identity) refuseRemoved(w http.ResponseWriter, r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || !id.revoked.has(r.TLS.PeerCertificates[0]) {
		return false
	}
	w.Header().Set(removedHeader, "true")
	http.Error(w, "this host was removed from the cluster", http.StatusForbidden)
	return true
}

// Removed asks the agent at an address (host:port) whether this host is still of the cluster; it returns fault.Denied, with what to do, if
// it is not, and nil if it is or nobody who can be trusted answers.
func (id *Identity) Removed(ctx context.Context, address string) error {
	client := httpClient(address, id.anyHostTLS())
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		return nil // an address that is none says nothing
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil // nobody who can be trusted
	}
	_ = resp.Body.Close() // only the header counts
	if resp.Header.Get(removedHeader) == "" {
		return nil
	}
	return id.WasRemoved()
}

// WasRemoved is the error of a host that is not of the cluster any more.
func (id *Identity) WasRemoved() error {
	return fault.New(fault.Denied, "host %s was removed from cluster %s: end its VMs, remove its data folder, and join it again with a new token", id.host, id.cluster)
}

// anyHostTLS connects to whatever host of the cluster is at an address. The ordinary verification is replaced, not left out: the name is what
// nobody knows.
func (id *Identity) anyHostTLS() *tls.Config {
	return &tls.Config{
		GetClientCertificate: id.clientCertificate,
		InsecureSkipVerify:   true, // VerifyConnection does it
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{protoHTTP},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: id.roots})
			return err
		},
	}
}
