package peer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The protocols of the one port, as ALPN names them (RFC 7301).
const (
	protoHTTP   = "h2"
	protoStream = "godwit-stream/1"
)

// serverTLS takes connections from hosts of the cluster, and from strangers without a certificate, who may join. A
// certificate that is shown must be good.
func (id *Identity) serverTLS() *tls.Config {
	return &tls.Config{
		GetCertificate:         id.serverCertificate,
		ClientCAs:              id.roots,
		ClientAuth:             tls.VerifyClientCertIfGiven,
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoHTTP, protoStream},
		SessionTicketsDisabled: true, // connections are few and long
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := id.namedHost(state) // one that was removed is told so in words
			return err
		},
	}
}

// clientTLS connects to that host and no other: the name is checked as DNS name by TLS itself and as URI here.
func (id *Identity) clientTLS(host inventory.HostID, proto string) *tls.Config {
	return &tls.Config{
		GetClientCertificate: id.clientCertificate,
		RootCAs:              id.roots,
		ServerName:           string(host),
		MinVersion:           tls.VersionTLS13,
		NextProtos:           []string{proto},
		VerifyConnection: func(state tls.ConnectionState) error {
			got, err := id.verifiedHost(state)
			if err == nil && got != host {
				err = fault.New(fault.Denied, "host %s answers where host %s was expected", got, host)
			}
			return err
		},
	}
}

// StoreTLS returns the client side of the connection to the store, which is dialled by IP address.
func (id *Identity) StoreTLS() *tls.Config {
	return &tls.Config{
		GetClientCertificate: id.clientCertificate,
		RootCAs:              id.roots,
		MinVersion:           tls.VersionTLS13,
	}
}

// verifiedHost returns who is on the other side, if it is of the cluster still. TLS has verified the chain before.
func (id *Identity) verifiedHost(state tls.ConnectionState) (inventory.HostID, error) {
	host, err := id.namedHost(state)
	if err == nil && id.revoked.has(state.PeerCertificates[0]) {
		err = fault.New(fault.Denied, "host %s was removed from the cluster", host)
	}
	return host, err
}

// namedHost returns who the other side's certificate names, whether it was taken back or not.
func (id *Identity) namedHost(state tls.ConnectionState) (inventory.HostID, error) {
	if len(state.VerifiedChains) == 0 {
		return "", fault.New(fault.Denied, "the other side showed no certificate")
	}
	cluster, host, err := whoIs(state.PeerCertificates[0])
	if err != nil {
		return "", err
	}
	if cluster != id.cluster {
		return "", fault.New(fault.Denied, "host %s belongs to cluster %s, not to %s", host, cluster, id.cluster)
	}
	return host, nil
}

// joinTLS connects a host that joins, which knows its cluster only by the token.
func joinTLS(t Token) *tls.Config {
	return pinnedTLS(t.Address, t.CA, func() error {
		return fault.New(fault.Denied, "%s answers, but belongs to another cluster than the token: make a new token there", t.Address)
	})
}

// clockOff says that this host's clock lies outside the life of one of the certificates, nil when it does not.
func clockOff(address string, certificates ...*x509.Certificate) error {
	now := time.Now()
	for _, c := range certificates {
		const form = "2006-01-02 15:04"
		switch {
		case now.Before(c.NotBefore):
			return fault.New(fault.Denied, "the clock of this host says %s UTC, and the certificate of %s is valid from %s UTC on: set the clocks of both hosts, as by NTP, and try again",
				now.UTC().Format(form), address, c.NotBefore.UTC().Format(form))
		case now.After(c.NotAfter):
			return fault.New(fault.Denied, "the clock of this host says %s UTC, and the certificate of %s ended at %s UTC: set the clocks of both hosts, as by NTP, or rotate that certificate with godwit host rotate-certificate",
				now.UTC().Format(form), address, c.NotAfter.UTC().Format(form))
		}
	}
	return nil
}

// explainTLS says what a failed handshake means for whoever runs the hosts.
func explainTLS(host inventory.HostID, address string, err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		return fault.New(fault.Denied, "%s answers, but is in another cluster than this host: check host %s's address", address, host)
	case errors.As(err, &name):
		return fault.New(fault.Denied, "%s answers, but is not host %s: check that host's address", address, host)
	case errors.As(err, &invalid):
		return fault.New(fault.Denied, "certificate of host %s at %s: %w: check the clocks of both hosts", host, address, err)
	case errors.As(err, &op) && op.Op == "remote error": // how crypto/tls reports the other side's alert
		return fault.New(fault.Denied, "host %s at %s refuses this host: %w: check that both are in the same cluster and that their clocks are right", host, address, err)
	}
	return fault.New(fault.Unavailable, "host %s at %s does not answer: check that godwit runs there and that the network reaches it: %w", host, address, err)
}
