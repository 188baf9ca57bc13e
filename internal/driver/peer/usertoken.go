package peer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// userTokenPrefix names the format, and keeps tokens findable in mail and logs.
const userTokenPrefix = "gwu1."

// The sizes in a user token's text.
const (
	userTokenIDSize = 8
	userSecretSize  = 32
	userSaltSize    = 16
)

// UserToken is what a user shows instead of a certificate, with each call. Its text is a password; there is no String method, so that it
// does not get into a log by accident.
type UserToken struct {
	ID     string // under which the cluster knows it; no secret
	Secret [userSecretSize]byte
}

// NewUserToken returns a token with a fresh secret, and a salt to keep its hash with.
func NewUserToken() (t UserToken, salt []byte) {
	var name [userTokenIDSize]byte
	salt = make([]byte, userSaltSize)
	_, _ = rand.Read(name[:])     // crypto/rand.Read never fails (Go 1.24 release notes)
	_, _ = rand.Read(t.Secret[:]) // likewise
	_, _ = rand.Read(salt)        // likewise
	t.ID = hex.EncodeToString(name[:])
	return t, salt
}

// Text returns the token as people copy it: "gwu1." and base64url of id, secret and a checksum.
func (t UserToken) Text() string {
	name, _ := hex.DecodeString(t.ID) // ours, or checked by ParseUserToken
	b := append(name, t.Secret[:]...)
	sum := sha256.Sum256(b)
	return userTokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSumSize]...))
}

// ParseUserToken reads a token's text; space around it is dropped. Errors are fault.Invalid and do not repeat the text.
func ParseUserToken(text string) (UserToken, error) {
	var t UserToken
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, userTokenPrefix)
	if !ok {
		if strings.HasPrefix(text, tokenPrefix) {
			return t, fault.New(fault.Invalid, "that is a token for hosts to join with: a user's token starts with %s and comes from godwit user token create", userTokenPrefix)
		}
		return t, fault.New(fault.Invalid, "that is no user's token: one starts with %s and comes from godwit user token create", userTokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	const whole = userTokenIDSize + userSecretSize + tokenSumSize
	if err != nil || strings.ContainsAny(body, "\r\n") || len(b) != whole { // the decoder skips line breaks
		return t, fault.New(fault.Invalid, "the token is incomplete or changed: copy it whole, or make another with godwit user token create")
	}
	b, sum := b[:whole-tokenSumSize], b[whole-tokenSumSize:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:tokenSumSize]) {
		return t, fault.New(fault.Invalid, "the token is incomplete or changed: copy it whole, or make another with godwit user token create")
	}
	t.ID = hex.EncodeToString(b[:userTokenIDSize])
	copy(t.Secret[:], b[userTokenIDSize:])
	return t, nil
}

// caHashPrefix may stand before a CA's hash, to say of which kind it is.
const caHashPrefix = "sha256:"

// CAHash returns the hash by which users know the cluster: of its CA's certificate in DER.
func (id *Identity) CAHash() string {
	sum := sha256.Sum256(id.ca.Raw)
	return caHashPrefix + hex.EncodeToString(sum[:])
}

// ParseCAHash reads a hash that CAHash has written; anything else is fault.Invalid.
func ParseCAHash(text string) (sum [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(text)), caHashPrefix))
	if err != nil || len(b) != len(sum) {
		return sum, fault.New(fault.Invalid, "CA hash %q is malformed: it is sha256: and 64 hexadecimal digits, as godwit user token create prints it", text)
	}
	return [sha256.Size]byte(b), nil
}

// DialUser returns a client for a user's calls to the host at the address (host:port), whatever a request's URL says. It shows no
// certificate, and trusts only hosts of the cluster whose CA has the hash: another server's handshake fails as fault.Denied before
// anything is sent to it.
func DialUser(address string, ca [sha256.Size]byte) *http.Client {
	return httpClient(address, pinnedTLS(address, ca, func() error {
		return fault.New(fault.Denied, "%s answers, but its cluster is not the one of the CA hash: check the address, and who gave you the hash", address)
	}))
}

// ShowToken has the client show a user's token with each call (RFC 6750), and returns it.
func ShowToken(c *http.Client, token string) *http.Client {
	c.Transport = bearer{c.Transport, token}
	return c
}

type bearer struct {
	next  http.RoundTripper
	token string
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// pinnedTLS connects without a certificate to a cluster that is known only by its CA's hash. The ordinary verification is
// replaced, not left out: the server sends its CA along, that must have the hash, and must have signed the server.
func pinnedTLS(address string, ca [sha256.Size]byte, other func() error) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{protoHTTP},
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, c := range state.PeerCertificates {
				if !c.IsCA || sha256.Sum256(c.Raw) != ca {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
				if wrong := clockOff(address, c, state.PeerCertificates[0]); err != nil && wrong != nil {
					return wrong
				}
				return err
			}
			return other()
		},
	}
}
