package peer

import (
	"crypto/tls"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// TrunkTLS returns both sides of the connections between the hosts' switches, which have a port of their own because
// they must outlive the agent. The protocol's name and the other host's are the caller's to add.
func (id *Identity) TrunkTLS() (server, client *tls.Config) {
	server = &tls.Config{
		GetCertificate: id.serverCertificate, ClientCAs: id.roots,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
	return server, id.StoreTLS()
}

// PeerHost returns the host of this cluster on the other side of a verified connection, or fault.Denied.
func (id *Identity) PeerHost(state tls.ConnectionState) (inventory.HostID, error) {
	return id.verifiedHost(state)
}
