package store_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// expect reads events until the wanted one comes.
func expect(t *testing.T, events <-chan store.Event, want store.Event) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the watch ended before %v", want)
			}
			if e == want {
				return
			}
		case <-timeout:
			t.Fatalf("no event %v", want)
		}
	}
}

func TestWatchTellsWhatThereIsAndWhatChanges(t *testing.T) {
	s, w := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	events := s.Watch(ctx, store.VMs, store.Migrations, store.Networks, store.Hosts)
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-a"}) // was there before
	must(t, w.CreateMigration(t.Context(), aMigration("mig-1", "vm-a")))
	expect(t, events, store.Event{Kind: store.Migrations, ID: "mig-1"})
	must(t, w.PutMigrationStatus(t.Context(), "mig-1", inventory.MigrationStatus{Phase: inventory.Failed}))
	expect(t, events, store.Event{Kind: store.Migrations, ID: "mig-1"})
	must(t, w.PutNetwork(t.Context(), inventory.Network{ID: "lan"}))
	expect(t, events, store.Event{Kind: store.Networks, ID: "lan"})
	must(t, w.PutHostSpec(t.Context(), inventory.HostSpec{CPUs: 1}))
	expect(t, events, store.Event{Kind: store.Hosts, ID: "host-1"})
	must(t, w.DeleteVM(t.Context(), "vm-a", nil))
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-a"})
	cancel()
	for range events { // ends when the watch's goroutine is gone
	}
}

func TestWatchJoinsEventsOfASlowReaderAndLeavesOutStatuses(t *testing.T) {
	s, w := start(t)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	events := s.Watch(t.Context(), store.VMs)
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-a"})
	for i := range 30 {
		_, err := w.UpdateRun(t.Context(), "vm-a", func(r *inventory.VMRun) error { r.Generation++; return nil })
		must(t, err)
		must(t, w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{PID: i}))
	}
	// The last change is seen for sure, so after it everything earlier must have been joined.
	must(t, w.CreateVM(t.Context(), aVM("vm-b", "web-2")))
	n := 0
	for e := range events {
		if e.ID == "vm-b" {
			break
		}
		n++
	}
	if n > 3 {
		t.Errorf("%d events for one VM that nobody read in between", n)
	}
	must(t, w.PutVMStatus(t.Context(), "vm-a", inventory.VMStatus{PID: 99}))
	must(t, w.CreateVM(t.Context(), aVM("vm-c", "web-3")))
	for e := range events {
		if e.ID == "vm-a" {
			t.Error("a status made an event")
		}
		if e.ID == "vm-c" {
			break
		}
	}
}

func TestWatchMissesNothingWhileTheStoreIsAway(t *testing.T) {
	m := startMember(t)
	s, other := m.open(t), m.open(t)
	w := writer(t, other, "host-1")
	for i := range 3 {
		must(t, w.CreateVM(t.Context(), aVM(inventory.VMID(fmt.Sprintf("vm-%d", i)), fmt.Sprintf("web-%d", i))))
	}
	events := s.Watch(t.Context(), store.VMs)
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-2"})
	m.halt(t)
	m.start(t)
	must(t, w.DeleteVM(t.Context(), "vm-1", nil))
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-1"})
	must(t, w.CreateVM(t.Context(), aVM("vm-9", "web-9")))
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-9"})
}

// proxy stands between a client and the store, and can be cut like a cable.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	down  bool
	conns []net.Conn
	all   sync.WaitGroup
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{listener: listener, target: strings.TrimPrefix(target, "https://")}
	p.all.Go(p.run)
	t.Cleanup(func() {
		_ = listener.Close()
		p.set(true)
		p.all.Wait()
	})
	return p
}

func (p *proxy) run() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil || !p.keep(in, out) {
			_ = in.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			p.all.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
				_ = pair[1].Close()
			})
		}
	}
}

func (p *proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.down {
		p.conns = append(p.conns, conns...)
		return true
	}
	for _, c := range conns {
		_ = c.Close()
	}
	return false
}

func (p *proxy) set(down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = down
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

func TestWatchSurvivesCompactionOfWhatItMissed(t *testing.T) {
	m := startMember(t)
	other := m.open(t)
	w := writer(t, other, "host-1")
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	must(t, w.CreateVM(t.Context(), aVM("vm-b", "web-2")))
	cable := newProxy(t, m.endpoint)
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{"https://" + cable.listener.Addr().String()}, TLS: m.identity.StoreTLS()})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	events := s.Watch(t.Context(), store.VMs)
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-b"})

	cable.set(true)
	must(t, w.DeleteVM(t.Context(), "vm-a", nil))
	must(t, w.CreateVM(t.Context(), aVM("vm-c", "web-3")))
	must(t, other.CompactNow(t.Context()))
	cable.set(false)

	seen := map[string]bool{}
	timeout := time.After(20 * time.Second)
	for !seen["vm-a"] || !seen["vm-c"] { // vm-a is gone: only who remembers it can tell
		select {
		case e := <-events:
			seen[e.ID] = true
		case <-timeout:
			t.Fatalf("after the compaction only %v were seen", seen)
		}
	}
	must(t, w.CreateVM(t.Context(), aVM("vm-d", "web-4")))
	expect(t, events, store.Event{Kind: store.VMs, ID: "vm-d"})
}
