package bundle

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"slices"
)

// Gone stands where a secret was.
const Gone = "[redacted]"

// knownMin is the shortest text that is taken out wherever it stands; a shorter one would be found in everything.
const knownMin = 12

// form is how a secret looks. The expression is tried only where one of the marks stands, in lower case: texts are long, and
// expressions slow.
type form struct {
	marks []string
	is    *regexp.Regexp
}

// The forms of secrets that Godwit, its guests and its administrators have.
var forms = []form{
	// Private keys, in PEM: whole, or begun in a text whose end was cut off, or in one line of JSON with \n.
	{[]string{"private key-----"}, regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^-]*(-----END [A-Z0-9 ]*PRIVATE KEY-----)?`)},
	{[]string{"private key-----"}, regexp.MustCompile(`[A-Za-z0-9+/=\\n\s]*-----END [A-Z0-9 ]*PRIVATE KEY-----`)},
	// Join tokens (driver/peer, token.go).
	{[]string{"gw1.", "gwu1."}, regexp.MustCompile(`\bgwu?1\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*`)},
	// What a cloud-init seed says to a guest may have passwords in any form: user data, network configuration, as fields of a record.
	{
		[]string{`"user_data"`, `"userdata"`, `"network_config"`, `"networkconfig"`},
		regexp.MustCompile(`"(user_data|userData|network_config|networkConfig)"\s*:\s*"((?:[^"\\]|\\.)*)"`),
	},
	// Hashes of tokens and passwords, and what an idempotent call was answered, which may be a token.
	{
		[]string{`"secret_hash"`, `"secrethash"`, `"password"`, `"passwd"`, `"secret"`, `"answer"`},
		regexp.MustCompile(`"(secret_hash|secretHash|password|passwd|secret|answer)"\s*:\s*"((?:[^"\\]|\\.)*)"`),
	},
	{
		[]string{"password", "passwd", "secret", "apikey", "api_key", "api-key"},
		regexp.MustCompile(`(?im)\b(password|passwd|secret|api[_-]?key)\s*[:=]\s*[^\s,;]+`),
	},
	{[]string{"$1$", "$2a$", "$2b$", "$2y$", "$5$", "$6$", "$y$", "$gy$", "$7$"}, regexp.MustCompile(`\$(1|2[aby]|5|6|y|gy|7)\$[./A-Za-z0-9$]{8,}`)}, // crypt(5)
}

// named are the forms that keep the name of the field.
var named = regexp.MustCompile(`^"([^"]+)"\s*:`)

// encodedMin is the shortest base64 that can hold a secret worth looking for.
const encodedMin = 24

// Redactor takes secrets out of texts. Use it after the last Know.
type Redactor struct{ known [][]byte }

// Know takes out each line of the secret wherever it stands, and so a key's text outside its PEM block too.
func (r *Redactor) Know(secret []byte) {
	for line := range bytes.Lines(secret) {
		line = bytes.TrimSpace(line)
		if len(line) >= knownMin && !bytes.HasPrefix(line, []byte("-----")) {
			r.known = append(r.known, bytes.Clone(line))
		}
	}
}

// Redact returns the text without secrets, and how many it had.
func (r *Redactor) Redact(text []byte) ([]byte, int) {
	n := 0
	lower := bytes.ToLower(text)
	for _, form := range forms {
		if !slices.ContainsFunc(form.marks, func(mark string) bool { return bytes.Contains(lower, []byte(mark)) }) {
			continue
		}
		text = form.is.ReplaceAllFunc(text, func(found []byte) []byte {
			if name := named.FindSubmatch(found); name != nil {
				if bytes.HasSuffix(found, []byte(`:""`)) || bytes.HasSuffix(found, []byte(`: ""`)) || bytes.HasSuffix(found, []byte(`"`+Gone+`"`)) {
					return found // nothing is in it
				}
				n++
				return []byte(`"` + string(name[1]) + `": "` + Gone + `"`)
			}
			n++
			return []byte(Gone)
		})
	}
	if r != nil {
		for _, known := range r.known {
			if found := bytes.Count(text, known); found > 0 {
				n += found
				text = bytes.ReplaceAll(text, known, []byte(Gone))
			}
		}
	}
	// A record that this version cannot read is in the dump as base64, and may hold what stands above.
	return r.decoded(text, &n), n
}

// isBase64 are the letters of both alphabets of RFC 4648.
var isBase64 = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_" {
		is[c] = true
	}
	return is
}()

// decoded takes out words in base64 that hide a secret, and counts them.
func (r *Redactor) decoded(text []byte, n *int) []byte {
	var out []byte // nil while nothing was found
	kept := 0
	for i := 0; i < len(text); i++ {
		if !isBase64[text[i]] {
			continue
		}
		begin := i
		for i < len(text) && isBase64[text[i]] {
			i++
		}
		if i-begin >= encodedMin && r.hides(text[begin:i]) {
			out = append(append(out, text[kept:begin]...), Gone...)
			kept = i
			*n++
		}
	}
	if out == nil {
		return text
	}
	return append(out, text[kept:]...)
}

// inside are the marks of a secret in decoded base64.
var inside = [][]byte{[]byte("PRIVATE KEY"), []byte("gw1."), []byte("gwu1."), []byte("#cloud-config"), []byte("password"), []byte("passwd")}

func (r *Redactor) hides(text []byte) bool {
	bare := bytes.TrimRight(text, "=")
	for _, code := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		plain := make([]byte, code.DecodedLen(len(bare)))
		if _, err := code.Decode(plain, bare); err != nil {
			continue
		}
		for _, mark := range inside {
			if bytes.Contains(plain, mark) {
				return true
			}
		}
		if r == nil {
			continue
		}
		for _, known := range r.known {
			if bytes.Contains(plain, known) {
				return true
			}
		}
	}
	return false
}
