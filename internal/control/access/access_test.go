package access_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/control/access"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// startMax bounds the start of the store.
const startMax = 30 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// desk returns the desk of a host with a real store, and how to stop the store.
func desk(t *testing.T) (d *access.Desk, stop func()) {
	t.Helper()
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	id, err := peer.Init(pki, "test", "host-1", []string{"127.0.0.1"})
	must(t, err)
	ready, ended := make(chan string, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- store.Serve(ctx, store.ServerConfig{
			Name: "host-1", Dir: filepath.Join(dir, "store"), ClientURL: "https://127.0.0.1:0", PeerURL: "https://127.0.0.1:0",
			CAFile: filepath.Join(pki, peer.CACertificateFile), CertFile: filepath.Join(pki, peer.CertificateFile), KeyFile: filepath.Join(pki, peer.KeyFile),
			LogFile: filepath.Join(dir, "store.log"), Ready: func(endpoint string) { ready <- endpoint },
		})
	}()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			must(t, <-ended)
		}
	}
	t.Cleanup(stop)
	var endpoint string
	select {
	case endpoint = <-ready:
	case <-time.After(startMax):
		t.Fatal("the store does not start")
	}
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{endpoint}, TLS: id.StoreTLS()})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	must(t, s.Admit(t.Context(), "host-1"))
	now, _, err := s.NextEpoch(t.Context(), "host-1", "boot")
	must(t, err)
	return access.New(s, s.As("host-1", now.Epoch), task.New("host-1")), stop
}

// The story of a token: it says whose it is until its time is up, it is revoked, its user is gone, or nobody can tell.
func TestWhoseTokenThisIs(t *testing.T) {
	d, stop := desk(t)
	ctx := task.WithCaller(t.Context(), task.Caller{Name: "root"})
	u, err := d.Create(ctx, "olga", "operator")
	must(t, err)
	if u.Role != inventory.Operator || u.By != "root" || u.ID == "" {
		t.Errorf("made: %+v", u)
	}
	text, made, err := d.CreateToken(ctx, "olga", 0)
	must(t, err)
	if life := time.Until(made.Expires); life > 30*24*time.Hour || life < 30*24*time.Hour-time.Minute || made.By != "root" {
		t.Errorf("made: %+v", made)
	}
	denied := func(text, says string) {
		t.Helper()
		if _, err := d.Token(ctx, text); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), says) {
			t.Errorf("it is answered %v", err)
		}
	}
	whose := func(text string) inventory.Role {
		t.Helper()
		u, err := d.Token(ctx, text)
		must(t, err)
		if u.Name != "olga" {
			t.Errorf("it is %s's", u.Name)
		}
		return u.Role
	}
	if whose(text) != inventory.Operator {
		t.Error("it has another role")
	}
	_, err = d.SetRole(ctx, "olga", "viewer")
	must(t, err)
	if whose(text) != inventory.Viewer {
		t.Error("it has the former role")
	}
	forged, err := peer.ParseUserToken(text)
	must(t, err)
	forged.Secret[0] ^= 1
	const unknown = "the cluster does not know this token"
	denied(forged.Text(), unknown) // the id of a token that there is
	strange, _ := peer.NewUserToken()
	denied(strange.Text(), unknown)
	if _, err := d.Token(ctx, "gwu1.x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("no token: %v", err)
	}
	short, _, err := d.CreateToken(ctx, "olga", time.Nanosecond)
	must(t, err)
	denied(short, "the token of user olga expired at ")
	second, kept, err := d.CreateToken(ctx, "olga", time.Hour)
	must(t, err)
	must(t, d.RevokeToken(ctx, kept.ID))
	denied(second, unknown)
	whose(text)
	all, err := d.Tokens(ctx, "olga")
	must(t, err)
	if len(all) != 2 {
		t.Errorf("tokens: %+v", all)
	}
	for _, life := range []time.Duration{-time.Second, 367 * 24 * time.Hour} {
		if _, _, err := d.CreateToken(ctx, "olga", life); !fault.Is(err, fault.Invalid) {
			t.Errorf("a life of %v: %v", life, err)
		}
	}
	must(t, d.Delete(ctx, "olga"))
	denied(text, unknown)
	_, err = d.Create(ctx, "olga", "admin") // another one of that name
	must(t, err)
	denied(text, unknown)

	stop()
	within, done := context.WithTimeout(ctx, startMax)
	defer done()
	if _, err := d.Token(within, text); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "nobody can say whose token this is") {
		t.Errorf("without the store: %v", err)
	}
}
