package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: people make mistakes with users, tokens and servers too. The answers are in testdata/bad-input-users.txt.
func TestBadInputUsers(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	m.full = filepath.Join(m.Dir, "full")
	for _, name := range []string{"full", "other", "copied", "keys"} { // that state looks at, and one for tokens
		if err := os.Mkdir(filepath.Join(m.Dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first := m.Hosts[0]
	for _, args := range []string{"user create ann --role admin", "user create vera --role viewer"} {
		if _, err := first.Godwit(step(t), words(args)...); err != nil {
			t.Fatal(err)
		}
	}
	tokenOf := func(user string) *godwitv1.CreateUserTokenResponse {
		made := &godwitv1.CreateUserTokenResponse{}
		if err := first.Read(step(t), made, "user", "token", "create", user); err != nil {
			t.Fatal(err)
		}
		return made
	}
	keep := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(m.Dir, "keys", name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	vera, lost := tokenOf("vera"), tokenOf("vera")
	if _, err := first.Godwit(step(t), "user", "token", "revoke", lost.GetToken().GetId()); err != nil {
		t.Fatal(err)
	}
	join, err := first.Godwit(step(t), "token", "create")
	if err != nil {
		t.Fatal(err)
	}
	good, revoked := keep("good", vera.GetSecret(), 0o600), keep("revoked", lost.GetSecret(), 0o600)
	torn, open := keep("torn", vera.GetSecret()[:40], 0o600), keep("open", vera.GetSecret(), 0o644)
	host := keep("join", string(join), 0o600)
	server := " --server " + first.Address + " --ca-hash " + vera.GetCaHash()
	zero := "sha256:" + strings.Repeat("0", 64)
	hidden := strings.NewReplacer(vera.GetCaHash(), "sha256:HASH", lost.GetToken().GetId(), "REVOKED")
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes with users, tokens and servers. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"a user without a role", 1, words("user create olga"), 2},
		{"a role that there is not", 1, words("user create olga --role god"), 2},
		{"a name and a role that cannot be", 1, []string{"user", "create", "Olga O", "--role", "god"}, 2},
		{"root", 1, words("user create root --role admin"), 2},
		{"a user that is there", 1, words("user create vera --role admin"), 4},
		{"another role for nobody", 1, words("user set-role olga viewer"), 3},
		{"a role that there is not, for somebody", 1, words("user set-role vera god"), 2},
		{"another role for the last admin", 1, words("user set-role ann operator"), 4},
		{"the end of the last admin", 1, words("user delete ann"), 4},
		{"the end of nobody", 1, words("user delete olga"), 3},
		{"a verb that users do not have", 1, words("user rename vera olga"), 2},
		{"a token for nobody", 1, words("user token create olga"), 3},
		{"a token for a time that is none", 1, words("user token create vera --life soon"), 2},
		{"a token for no time", 1, words("user token create vera --life 0d"), 2},
		{"a token for ever", 1, words("user token create vera --life 9999d"), 2},
		{"the tokens of nobody", 1, words("user token ls olga"), 3},
		{"the end of a token that there is not", 1, words("user token revoke " + lost.GetToken().GetId()), 3},

		{"a server and a socket", 1, words("vm ls --socket /run/godwit/agent.sock --server " + first.Address), 2},
		{"a server that is no address", 1, words("vm ls --server https://godwit/"), 2},
		{"a server without token and hash", 1, words("vm ls --server " + first.Address), 2},
		{"a hash that is none", 1, words("vm ls --server " + first.Address + " --token-file " + good + " --ca-hash 42"), 2},
		{"the hash of another cluster", 1, words("vm ls --server " + first.Address + " --token-file " + good + " --ca-hash " + zero), 5},
		{"a server that does not answer", 1, words("vm ls --server " + first.Address + ":9 --token-file " + good + " --ca-hash " + zero), 6},
		{"a token file that is not there", 1, words("vm ls" + server + " --token-file /no/such/token"), 3},
		{"a token file that others may read", 1, words("vm ls" + server + " --token-file " + open), 5},
		{"half a token", 1, words("vm ls" + server + " --token-file " + torn), 2},
		{"a token to join with", 1, words("vm ls" + server + " --token-file " + host), 2},
		{"a token that was revoked", 1, words("vm ls" + server + " --token-file " + revoked), 5},
		{"a viewer that changes something", 1, words("user set-role vera admin" + server + " --token-file " + good), 5},
		{"a viewer that follows what is an admin's", 1, words("user ls" + server + " --token-file " + good), 5},
		{"a login without a hash", 1, words("login " + first.Address + " --token-file " + good), 2},
		{"a login with a revoked token", 1, words("login " + first.Address + " --ca-hash " + vera.GetCaHash() + " --token-file " + revoked), 5},
		{"a logout without a login", 1, words("logout " + first.Address), 3},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
	}
	text := strings.ReplaceAll(hidden.Replace(file.String()), os.Getenv("XDG_CONFIG_HOME"), "/home/.config")
	compare(t, "testdata/bad-input-users.txt", text)
}
