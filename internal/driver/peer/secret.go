package peer

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/godwit-vm/godwit/internal/fault"
)

// SecretFile holds the secret that the cluster's hosts have in common: the key under which the store keeps the key of the CA. So every host
// can take in others, while the store's files, backups of them and a dump are of no use without a host.
const SecretFile = "cluster.key"

// secretSize is that of a key of AES-256.
const secretSize = 32

const secretKind = "GODWIT CLUSTER SECRET"

// NewSecret makes the secret of a new cluster.
func NewSecret() []byte {
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // crypto/rand.Read never fails (Go 1.24 release notes)
	return secret
}

// LoadSecret reads the secret of a host; fault.NotFound on one that has none, such as a witness.
func LoadSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, SecretFile)
	secret, err := readPEM(path, secretKind)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "this host has no secret of the cluster (%s): ask another host", path)
	}
	return secret, err
}

// SaveSecret writes the secret into the directory of a host's identity.
func SaveSecret(dir string, secret []byte) error {
	if len(secret) != secretSize {
		return fault.New(fault.Invalid, "secret of the cluster has %d bytes, not %d", len(secret), secretSize)
	}
	return writePEM(filepath.Join(dir, SecretFile), secretKind, secret, 0o600)
}

// Seal returns the key of the CA, encrypted with the secret (AES-256-GCM, bound to the CA's certificate).
func (ca *CA) Seal(secret []byte) ([]byte, error) {
	box, err := lock(secret)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, fault.New(fault.Internal, "seal key of the ca: %w", err)
	}
	return box.Seal(nil, nil, key, ca.certificate.Raw), nil
}

// UnsealCA returns the CA of the identity's cluster from its sealed key.
func (id *Identity) UnsealCA(secret, sealed []byte) (*CA, error) {
	box, err := lock(secret)
	if err != nil {
		return nil, err
	}
	der, err := box.Open(nil, nil, sealed, id.ca.Raw)
	if err != nil {
		return nil, fault.New(fault.Denied, "the store's key of the ca does not open with this host's secret: join the host again")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Internal, "key of the ca: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(id.ca.PublicKey) {
		return nil, fault.New(fault.Internal, "the store's key of the ca is another's")
	}
	return &CA{certificate: id.ca, key: key, cluster: id.cluster}, nil
}

func lock(secret []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(secret)
	if err != nil || len(secret) != secretSize {
		return nil, fault.New(fault.Invalid, "secret of the cluster has %d bytes, not %d", len(secret), secretSize)
	}
	box, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fault.New(fault.Internal, "secret of the cluster: %w", err)
	}
	return box, nil
}
