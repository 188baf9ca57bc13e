package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
)

func TestServerAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.11": "192.0.2.11:7443", "192.0.2.11:9": "192.0.2.11:9", "host-1.example.org": "host-1.example.org:7443",
		"[2001:db8::1]:9": "[2001:db8::1]:9", "[2001:db8::1]": "[2001:db8::1]:7443", "2001:db8::1": "[2001:db8::1]:7443",
		"": "", ":7443": "", "https://host-1/": "", "https://host-1:7443": "", "host-1:": "", "host-1:https": "", "host-1:0": "", "host-1:70000": "", "a b": "", "root@host-1": "",
	} {
		got, err := serverAddress(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
}

func TestLivesOfTokens(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"12h": 12 * time.Hour, "30d": 30 * 24 * time.Hour, "1ms": time.Millisecond,
		"": 0, "0d": 0, "-1d": 0, "-1h": 0, "0s": 0, "1.5d": 0, "d": 0, "99999d": 0, "soon": 0,
	} {
		if got, err := parseLife(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

// What login keeps is one file that only its user may read, with a login for each server.
func TestCredentialsAreKeptByServer(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	path := filepath.Join(dir, "godwit", "credentials")
	if kept, err := readCredentials(); err != nil || len(kept) != 0 {
		t.Errorf("without a file: %v %v", kept, err)
	}
	for _, l := range []login{{Server: "a:1", Token: "one"}, {Server: "b:1", Token: "two"}, {Server: "a:1", Token: "three"}} {
		if at, _, err := changeCredentials(l.Server, &l); err != nil || at != path {
			t.Fatalf("%s %v", at, err)
		}
	}
	kept, err := readCredentials()
	if err != nil || len(kept) != 2 || kept[0].Token != "two" || kept[1].Token != "three" {
		t.Errorf("kept: %+v %v", kept, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if _, before, err := changeCredentials("c:1", nil); before || err != nil {
		t.Errorf("a server that is not there: %v %v", before, err)
	}
	if _, before, err := changeCredentials("b:1", nil); !before || err != nil {
		t.Errorf("a server that is there: %v %v", before, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readCredentials(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a torn file: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := changeCredentials("a:1", nil); !fault.Is(err, fault.Denied) {
		t.Errorf("a file that others may read: %v", err)
	}
}

// The command line counts before the environment, and the environment before what login has kept.
func TestWhereTokensComeFrom(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	hash := "sha256:" + strings.Repeat("ab", 32)
	text := func() string { token, _ := peer.NewUserToken(); return token.Text() }
	kept, env, file := text(), text(), text()
	if _, _, err := changeCredentials("h:7443", &login{Server: "h:7443", CAHash: hash, Token: kept}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "token")
	if err := os.WriteFile(path, []byte(file+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	found := func(args ...string) (login, error) {
		cmd := newRoot()
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		if err := flagsFromEnvironment(cmd.Flags()); err != nil {
			t.Fatal(err)
		}
		d, err := doorOf(cmd)
		if err != nil || d.server == "" {
			return login{Server: d.server}, err
		}
		return d.login(cmd)
	}
	if l, err := found("--server", "h"); err != nil || l.Token != kept || l.CAHash != hash {
		t.Errorf("%+v %v", l, err)
	}
	t.Setenv(tokenVariable, env)
	if l, err := found("--server", "h"); err != nil || l.Token != env || l.CAHash != hash {
		t.Errorf("%+v %v", l, err)
	}
	other := strings.Replace(hash, "ab", "cd", 1)
	if l, err := found("--server", "h", "--token-file", path, "--ca-hash", other); err != nil || l.Token != file || l.CAHash != other {
		t.Errorf("%+v %v", l, err)
	}
	if _, err := found("--server", "other"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "other:7443") {
		t.Errorf("a server that is not kept: %v", err)
	}
	t.Setenv("GODWIT_SERVER", "h")
	if l, err := found(); err != nil || l.Server != "h:7443" {
		t.Errorf("%+v %v", l, err)
	}
	if l, err := found("--socket", "/run/x.sock"); err != nil || l.Server != "" {
		t.Errorf("a socket on the command line, a server in the environment: %+v %v", l, err)
	}
	if _, err := found("--socket", "/run/x.sock", "--server", "h"); err == nil {
		t.Error("two agents on the command line")
	}
}
