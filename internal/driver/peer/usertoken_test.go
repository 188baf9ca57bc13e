package peer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
)

func TestUserTokensAreReadAsTheyWereWritten(t *testing.T) {
	token, salt := peer.NewUserToken()
	other, otherSalt := peer.NewUserToken()
	if token.ID == other.ID || token.Secret == other.Secret || string(salt) == string(otherSalt) {
		t.Fatal("two tokens have something in common")
	}
	text := token.Text()
	read, err := peer.ParseUserToken("\n " + text + "\n")
	must(t, err)
	if read != token {
		t.Errorf("%+v became %+v", token, read)
	}
	for _, bad := range []string{
		"", "gwu1.", text[:len(text)-1], text + "A", strings.Replace(text, "gwu1", "gwu2", 1), text[:20] + flipped(text[20:21]) + text[21:], "gwu1." + text[5:20] + "\n" + text[20:],
		peer.Token{Address: "h:1", ID: "0011223344556677"}.Text(),
	} {
		_, err := peer.ParseUserToken(bad)
		if want(t, fault.Invalid, err); len(bad) > 10 && strings.Contains(err.Error(), bad) {
			t.Errorf("the error repeats the text: %v", err)
		}
	}
}

func flipped(c string) string {
	if c == "A" {
		return "B"
	}
	return "A"
}

func FuzzParseUserToken(f *testing.F) {
	f.Add("gwu1.")
	f.Add("gwu1.AAAA")
	f.Add("gw1.AAAA")
	f.Add(peer.UserToken{ID: "0011223344556677"}.Text())
	f.Fuzz(func(t *testing.T, text string) {
		token, err := peer.ParseUserToken(text)
		if err != nil {
			want(t, fault.Invalid, err)
			return
		}
		if token.Text() != strings.TrimSpace(text) {
			t.Errorf("%q reads as %q", text, token.Text())
		}
	})
}

func TestCAHashes(t *testing.T) {
	c := newCluster(t, "alps")
	sum := sha256.Sum256(c.first.CA())
	text := c.first.CAHash()
	for _, good := range []string{text, strings.TrimPrefix(text, "sha256:"), strings.ToUpper(text), " " + text + "\n"} {
		if got, err := peer.ParseCAHash(good); err != nil || got != sum {
			t.Errorf("%q: %x %v", good, got, err)
		}
	}
	for _, bad := range []string{"", "sha256:", text[:40], text + "00", strings.Replace(text, "sha256", "sha512", 1)} {
		_, err := peer.ParseCAHash(bad)
		want(t, fault.Invalid, err)
	}
}

// A user knows the cluster by its CA's hash only, and sends nothing to another one.
func TestUsersReachOnlyTheirCluster(t *testing.T) {
	c, other := newCluster(t, "alps"), newCluster(t, "alps")
	address, _ := serve(t, &peer.Server{Identity: c.first, HTTP: hello})
	client := peer.DialUser(address, sha256.Sum256(c.first.CA()))
	defer client.CloseIdleConnections()
	code, body, err := get(t, client, "https://"+address+"/")
	if err != nil || code != http.StatusOK || body != " false HTTP/2.0" {
		t.Errorf("%d %q %v", code, body, err)
	}
	_, _, err = get(t, peer.DialUser(address, sha256.Sum256(other.first.CA())), "https://"+address+"/")
	if err == nil || !strings.Contains(err.Error(), "its cluster is not the one of the CA hash") {
		t.Errorf("another cluster: %v", err)
	}
}

// A user who was recognized keeps the connection, which is no stranger's any more: neither its time nor its place.
func TestRecognizedConnectionsLast(t *testing.T) {
	c := newCluster(t, "alps")
	const life = 200 * time.Millisecond
	address, _ := serve(t, &peer.Server{
		Identity: c.first, Limits: peer.Limits{Handshakes: 2, HandshakesPerAddress: 2, ConnectionsPerUser: 3, StrangerTime: life},
		HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user := r.Header.Get("X-User"); user != "" {
				if err := peer.Recognize(r.Context(), user); err != nil {
					http.Error(w, err.Error(), http.StatusTooManyRequests)
					return
				}
			}
			w.(http.Flusher).Flush()
			if r.URL.Path == "/lasts" {
				select { // longer than a stranger's connection
				case <-time.After(3 * life):
					_, _ = fmt.Fprint(w, "it lasted")
				case <-r.Context().Done():
				}
			}
		}),
	})
	call := func(user, path string) (int, string, error) { // each has a connection of its own
		client := peer.DialUser(address, sha256.Sum256(c.first.CA()))
		t.Cleanup(client.CloseIdleConnections)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+path, nil)
		must(t, err)
		request.Header.Set("X-User", user)
		response, err := client.Do(request)
		if err != nil {
			return 0, "", err
		}
		defer response.Body.Close()
		text := make([]byte, 200)
		n, err := response.Body.Read(text)
		if err != nil && n > 0 {
			err = nil
		}
		return response.StatusCode, string(text[:n]), err
	}
	if _, text, err := call("alice", "/lasts"); err != nil || text != "it lasted" {
		t.Errorf("alice's: %q %v", text, err)
	}
	for range 2 {
		if code, _, _ := call("alice", "/"); code != http.StatusOK {
			t.Errorf("alice is answered %d", code)
		}
	}
	// Alice has three open now, more than there are places for strangers; a fourth is one too many, and Bob's is not.
	code, text, _ := call("alice", "/")
	if code != http.StatusTooManyRequests || !strings.HasPrefix(text, "user alice has 3 connections here, the most that one user may have (limits.connections-per-user)") {
		t.Errorf("the fourth is answered %d %q", code, text)
	}
	if code, _, err := call("bob", "/"); code != http.StatusOK {
		t.Errorf("bob is answered %d %v", code, err)
	}
	if _, text, err := call("", "/lasts"); err == nil || errors.Is(err, context.Canceled) || text != "" {
		t.Errorf("a stranger's connection lasted: %q %v", text, err)
	}
}
