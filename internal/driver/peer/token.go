package peer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// tokenPrefix names the format and keeps tokens findable in mail and logs.
const tokenPrefix = "gw1."

// The sizes in a token's text.
const (
	tokenIDSize     = 8
	tokenSecretSize = 16
	tokenSumSize    = 4
	tokenAddressMax = 255
)

// Token is what a host needs to join: where to go, how to know that it talks to the right cluster, and the one-time
// secret. Its text is a password; there is no String method, so that it does not get into a log by accident.
type Token struct {
	Address string   // host:port of an agent of the cluster
	CA      [32]byte // SHA-256 of the CA's certificate in DER
	ID      string   // under which the cluster knows it
	Secret  [tokenSecretSize]byte
}

// NewToken returns a token with a fresh secret for the cluster of the identity, to be used at this host's address.
func (id *Identity) NewToken(address string) (Token, error) {
	if err := checkAddress(address); err != nil {
		return Token{}, err
	}
	t := Token{Address: address, CA: sha256.Sum256(id.ca.Raw)}
	var name [tokenIDSize]byte
	_, _ = rand.Read(name[:])     // crypto/rand.Read never fails (Go 1.24 release notes)
	_, _ = rand.Read(t.Secret[:]) // likewise
	t.ID = hex.EncodeToString(name[:])
	return t, nil
}

// SecretHash returns what the cluster keeps of the secret. The secret is random with 128 bits, so a plain SHA-256 cannot
// be searched.
func (t Token) SecretHash() []byte {
	sum := sha256.Sum256(t.Secret[:])
	return sum[:]
}

// Verify returns fault.Denied unless this is the CA that the token speaks of. ca is DER.
func (t Token) Verify(ca []byte) error {
	if sha256.Sum256(ca) != t.CA {
		return fault.New(fault.Denied, "%s answers, but belongs to another cluster than the token: make a new token there", t.Address)
	}
	return nil
}

// Text returns the token as people copy it: "gw1." and base64url of CA hash, id, secret, address and a checksum.
func (t Token) Text() string {
	name, _ := hex.DecodeString(t.ID) // ours, or checked by ParseToken
	b := bytes.Join([][]byte{t.CA[:], name, t.Secret[:], []byte(t.Address)}, nil)
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSumSize]...))
}

// ParseToken reads a token's text; space around it is dropped. Errors are fault.Invalid and do not repeat the text.
func ParseToken(text string) (Token, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return Token{}, fault.New(fault.Invalid, "that is no join token: a token starts with %s and comes from godwit token create", tokenPrefix)
	}
	broken := fault.New(fault.Invalid, "the join token is incomplete or changed: copy it whole, or make another with godwit token create")
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") { // the decoder skips line breaks
		return Token{}, broken
	}
	const fixed = len(Token{}.CA) + tokenIDSize + tokenSecretSize
	if len(b) < fixed+tokenSumSize || len(b) > fixed+tokenSumSize+tokenAddressMax {
		return Token{}, broken
	}
	b, sum := b[:len(b)-tokenSumSize], b[len(b)-tokenSumSize:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:tokenSumSize]) {
		return Token{}, broken
	}
	var t Token
	rest := b[copy(t.CA[:], b):]
	t.ID, rest = hex.EncodeToString(rest[:tokenIDSize]), rest[tokenIDSize:]
	t.Address = string(rest[copy(t.Secret[:], rest):])
	if checkAddress(t.Address) != nil {
		return Token{}, broken
	}
	return t, nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || host == "" || len(address) > tokenAddressMax || strings.ContainsAny(address, " \t\r\n/") {
		return fault.New(fault.Invalid, "address %q: write it as HOST:PORT", address)
	}
	return nil
}
