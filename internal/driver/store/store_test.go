package store_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/driver/store/storetest"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// member is a running store process, in this process.
type member struct {
	config   store.ServerConfig
	identity *peer.Identity
	endpoint string
	stop     context.CancelFunc
	ended    chan error
}

// startMember starts a real etcd member with the TLS files of a real cluster. It is stopped at the end of the test.
func startMember(t *testing.T) *member {
	t.Helper()
	id, config := storetest.Member(t)
	m := &member{identity: id, config: config}
	m.start(t)
	t.Cleanup(func() {
		m.halt(t)
		if t.Failed() {
			if b, err := os.ReadFile(m.config.LogFile); err == nil {
				t.Logf("store's log:\n%s", b)
			}
		}
	})
	return m
}

func (m *member) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m.stop, m.ended = cancel, make(chan error, 1)
	ready := make(chan string, 1)
	conf := m.config
	conf.Ready = func(endpoint string) { ready <- endpoint }
	go func() { m.ended <- store.Serve(ctx, conf) }()
	select {
	case m.endpoint = <-ready:
		m.config.ClientURL = m.endpoint // a restart comes back at the same address
	case err := <-m.ended:
		cancel()
		t.Fatalf("the store ended instead of getting ready: %v", err)
	case <-time.After(30 * time.Second):
		cancel()
		t.Fatal("the store is not ready after 30 s")
	}
}

func (m *member) halt(t *testing.T) {
	t.Helper()
	if m.stop == nil {
		return
	}
	m.stop()
	m.stop = nil
	if err := <-m.ended; err != nil {
		t.Errorf("the store ended with %v", err)
	}
}

func (m *member) open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{m.endpoint}, TLS: m.identity.StoreTLS()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// start gives a store of its own with a first host that acts.
func start(t *testing.T) (*store.Store, *store.Writer) {
	t.Helper()
	s := startMember(t).open(t)
	return s, writer(t, s, "host-1")
}

func writer(t *testing.T, s *store.Store, host inventory.HostID) *store.Writer {
	t.Helper()
	must(t, s.Admit(t.Context(), host))
	epoch, _, err := s.NextEpoch(t.Context(), host, "boot-"+string(host))
	if err != nil {
		t.Fatal(err)
	}
	return s.As(host, epoch.Epoch)
}

// must fails the test on an error; want wants one of a kind and returns it.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, kind fault.Kind, err error) string {
	t.Helper()
	if fault.KindOf(err) != kind {
		t.Fatalf("got %v (%v), want %v", err, fault.KindOf(err), kind)
	}
	return err.Error()
}

func TestOpenSaysWhichStoreDoesNotAnswer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close())
	began := time.Now()
	_, err = store.Open(t.Context(), store.Config{Endpoints: []string{"http://" + address}})
	t.Log(want(t, fault.Unavailable, err))
	if took := time.Since(began); took > store.CallTimeout+2*time.Second {
		t.Errorf("it took %v", took)
	}
	_, err = store.Open(t.Context(), store.Config{})
	t.Log(want(t, fault.Invalid, err))
}

func TestStoreTakesHostsOfItsClusterOnly(t *testing.T) {
	m := startMember(t)
	stranger, err := peer.Init(t.TempDir(), "test", "host-1", []string{"127.0.0.1"})
	must(t, err)
	_, err = store.Open(t.Context(), store.Config{Endpoints: []string{m.endpoint}, TLS: stranger.StoreTLS()})
	t.Log(want(t, fault.Denied, err))
	bare := m.identity.StoreTLS()
	bare.GetClientCertificate = nil
	if _, err = store.Open(t.Context(), store.Config{Endpoints: []string{m.endpoint}, TLS: bare}); err == nil {
		t.Fatal("a client without certificate was let in")
	}
	t.Log(err)
	m.open(t)
}

func TestServeRefusesWhatItCannotServe(t *testing.T) {
	m := startMember(t)
	again := m.config
	again.Dir = t.TempDir()
	t.Log(want(t, fault.Unavailable, store.Serve(t.Context(), again))) // the port is taken
	for _, url := range []string{"https://name:2379", "127.0.0.1:2379", "http://127.0.0.1:2379", "https://127.0.0.1"} {
		bad := m.config
		bad.ClientURL = url
		t.Log(want(t, fault.Invalid, store.Serve(t.Context(), bad)))
	}
}

func TestInventoryOutlivesTheStoresRestart(t *testing.T) {
	m := startMember(t)
	s := m.open(t)
	w := writer(t, s, "host-1")
	must(t, w.CreateVM(t.Context(), inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "web-1"}, Run: inventory.VMRun{Owner: "host-1"}}))
	m.halt(t)
	began := time.Now()
	_, err := s.VMs(t.Context())
	t.Logf("%s (after %v)", want(t, fault.Unavailable, err), time.Since(began))
	err = w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running})
	want(t, fault.Unavailable, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.VMs(ended)
	want(t, fault.Canceled, err)

	m.start(t)
	// The same connection comes back by itself, within one call.
	vm, err := s.VM(t.Context(), "web-1")
	must(t, err)
	if vm.ID != "vm-a" {
		t.Errorf("got %+v", vm)
	}
	must(t, w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{State: inventory.Running}))
}

func TestClusterIsNamedOnce(t *testing.T) {
	s, _ := start(t)
	_, err := s.Cluster(t.Context())
	t.Log(want(t, fault.NotFound, err))
	must(t, s.InitCluster(t.Context(), "alps"))
	must(t, s.InitCluster(t.Context(), "alps"))
	t.Log(want(t, fault.Exists, s.InitCluster(t.Context(), "andes")))
	name, err := s.Cluster(t.Context())
	must(t, err)
	if name != "alps" {
		t.Errorf("got %q", name)
	}
}
