package cluster_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/control/cluster"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// startSmall starts a real member with a small quota, which ends with the test.
func startSmall(t *testing.T, quota inventory.Bytes) *store.Store {
	t.Helper()
	dir := t.TempDir()
	conf := store.ServerConfig{
		Name: "host-1", Dir: filepath.Join(dir, "store"), ClientURL: "http://127.0.0.1:0", PeerURL: "http://127.0.0.1:0",
		LogFile: filepath.Join(dir, "log"), Quota: quota,
	}
	stop, endpoint := serveStore(t, conf)
	stop() // a member tells others the address that it was given, so it is given one that can be dialled
	conf.ClientURL = endpoint
	stop, endpoint = serveStore(t, conf)
	t.Cleanup(stop)
	s, err := store.Open(t.Context(), store.Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func serveStore(t *testing.T, conf store.ServerConfig) (stop func(), endpoint string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	conf.Ready = func(endpoint string) { ready <- endpoint }
	go func() { ended <- store.Serve(ctx, conf) }()
	select {
	case endpoint = <-ready:
	case <-time.After(30 * time.Second):
		t.Error("the store does not get ready")
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}, endpoint
}

// leadUpkeep runs the loop as the leader's only one until the test ends, and returns the kinds of the events so far.
func leadUpkeep(t *testing.T, s *store.Store, host inventory.HostID) (w *store.Writer, kinds func() []string) {
	t.Helper()
	must(t, s.Admit(t.Context(), host))
	epoch, _, err := s.NextEpoch(t.Context(), host, "boot")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var told []string
	event := func(_ context.Context, e inventory.Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, e.Kind)
		t.Log(e.Kind, e.Message)
	}
	ctx, end := context.WithCancel(context.Background())
	over := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	go func() {
		over <- cluster.Run(ctx, cluster.Config{Host: host, Epoch: epoch.Epoch, Store: s, Log: log, Loops: func(*store.Term) []cluster.Loop {
			return []cluster.Loop{&cluster.Upkeep{Store: s, Event: event, Log: log, Every: 20 * time.Millisecond, History: 200 * time.Millisecond}}
		}})
	}()
	t.Cleanup(func() {
		end()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	return s.As(host, epoch.Epoch), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(told)
	}
}

func bigVM(i int) inventory.VM {
	return inventory.VM{
		ID: inventory.VMID(fmt.Sprintf("vm-%d", i)), Run: inventory.VMRun{Owner: "host-1"},
		Spec: inventory.VMSpec{Name: fmt.Sprintf("vm-%d", i), Boot: inventory.Boot{Cmdline: strings.Repeat("x", 32<<10)}},
	}
}

// The story: VMs fill the store. At half an alarm, then new VMs are refused in one line, while a host's renewals and a VM's run record go on. VMs
// are removed, and there is room again. All of it the loop does by itself.
func TestUpkeepOfAFillingStore(t *testing.T) {
	s := startSmall(t, 8<<20)
	ctx := t.Context()
	if err := s.InitCluster(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	w, kinds := leadUpkeep(t, s, "host-1")
	made := 0
	var refused error
	until(t, "the refusal", func() bool {
		if refused = w.CreateVM(ctx, bigVM(made)); refused == nil {
			made++
		}
		return refused != nil
	})
	if !fault.Is(refused, fault.NoResources) || !strings.Contains(refused.Error(), "nothing new is taken") || strings.Contains(refused.Error(), "\n") {
		t.Fatalf("refused with %v", refused)
	}
	t.Log(refused)
	if got := kinds(); len(got) < 2 || got[0] != "store.filling" || got[1] != "store.full" {
		t.Errorf("events are %v", got)
	}
	for range 50 {
		if err := w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog); err != nil {
			t.Fatalf("a renewal was refused: %v", err)
		}
	}
	if _, err := w.UpdateRun(ctx, "vm-0", func(r *inventory.VMRun) error { r.Generation++; return nil }); err != nil {
		t.Fatalf("a run record was refused: %v", err)
	}
	for i := range made {
		if err := w.DeleteVM(ctx, inventory.VMID(fmt.Sprintf("vm-%d", i)), nil); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "room", func() bool { return slices.Contains(kinds(), "store.room") })
	if err := w.CreateVM(ctx, bigVM(made)); err != nil {
		t.Fatal(err)
	}
}

// History that grows faster than anybody looks closes the store. The leader opens it again, and also whoever would lead when nobody does.
func TestUpkeepRescuesAFullStore(t *testing.T) {
	for _, led := range []bool{true, false} {
		t.Run(fmt.Sprintf("led=%v", led), func(t *testing.T) {
			s := startSmall(t, 6<<20)
			ctx := t.Context()
			if err := s.InitCluster(ctx, "test", "host-1", "host-2"); err != nil {
				t.Fatal(err)
			}
			epoch, _, err := s.NextEpoch(ctx, "host-2", "boot")
			if err != nil {
				t.Fatal(err)
			}
			other := s.As("host-2", epoch.Epoch)
			if _, _, err := s.NextEpoch(ctx, "host-1", "boot"); err != nil {
				t.Fatal(err)
			}
			var first *store.Term
			if led { // whose loop does not run yet
				if first, err = s.Lead(ctx, "host-2", epoch.Epoch); err != nil {
					t.Fatal(err)
				}
			}
			var full error
			for i := 0; full == nil; i++ {
				big := inventory.Task{ID: "task-1", Status: inventory.TaskStatus{Detail: fmt.Sprint(i, strings.Repeat("x", 100<<10))}}
				full = other.Record(ctx, []inventory.Task{big}, nil)
			}
			if !fault.Is(full, fault.NoResources) {
				t.Fatal(full)
			}
			began := time.Now()
			log := slog.New(slog.NewTextHandler(t.Output(), nil))
			running, end := context.WithCancel(ctx)
			over := make(chan error, 1)
			loop := &cluster.Upkeep{Store: s, Log: log, Every: 20 * time.Millisecond}
			go func() {
				if led {
					over <- loop.Run(running, first)
					return
				}
				over <- cluster.Run(running, cluster.Config{
					Host: "host-2", Epoch: epoch.Epoch, Store: s, Log: log, Loops: func(*store.Term) []cluster.Loop { return []cluster.Loop{loop} },
				})
			}()
			until(t, "a renewal", func() bool { return other.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog) == nil })
			t.Logf("host-2 renews again %v after its store was full", time.Since(began))
			end()
			if err := <-over; err != nil && running.Err() == nil {
				t.Error(err)
			}
		})
	}
}
