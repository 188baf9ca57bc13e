package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// startSmall gives a store whose member may hold little.
func startSmall(t *testing.T, quota inventory.Bytes) (*member, *store.Store, *store.Writer) {
	t.Helper()
	m := startMember(t)
	m.halt(t)
	m.config.Quota = quota
	m.start(t)
	s := m.open(t)
	return m, s, writer(t, s, "host-1")
}

// note writes tasks of a known size: always the same ones, so that only the history grows.
func note(ctx context.Context, w *store.Writer, round int) error {
	var tasks []inventory.Task
	for i := range store.RecordMax {
		id := inventory.TaskID(fmt.Sprintf("task-%d", i))
		tasks = append(tasks, inventory.Task{ID: id, Status: inventory.TaskStatus{Detail: strings.Repeat("x", 4<<10) + fmt.Sprint(round)}})
	}
	return w.Record(ctx, tasks, nil)
}

// A full store takes no write from anybody: no renewal, and no fence either, so that nobody looks dead. What made it full was history: once
// that is forgotten and the file is made smaller, the same host renews under the same epoch as if nothing had been.
func TestAFullStoreIsRescued(t *testing.T) {
	const quota = 8 << 20
	_, s, w := startSmall(t, quota)
	dead := writer(t, s, "host-2")
	ctx := t.Context()
	must(t, s.InitCluster(ctx, "test"))
	must(t, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	must(t, dead.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	term, err := s.Lead(ctx, "host-1", w.Epoch())
	must(t, err)
	defer term.End()

	var full error
	for round := 0; full == nil; round++ {
		if full = note(ctx, w, round); round > 1000 {
			t.Fatal("the store is never full")
		}
	}
	t.Log(want(t, fault.NoResources, full))
	want(t, fault.NoResources, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	renewals, err := s.Renewals(ctx)
	must(t, err)
	want(t, fault.NoResources, term.Fence(ctx, "host-2", renewals[1].Revision, "it was silent"))
	h, err := s.Health(ctx)
	must(t, err)
	if !h.NoSpace() || h.Percent() < 90 || len(h.Members) != 1 || !h.Members[0].Leader {
		t.Errorf("health of a full store: %+v", h)
	}

	// Nobody can become leader of a full store, which is why whoever tries rescues it.
	again := s.As("host-1", w.Epoch())
	within, done := context.WithTimeout(ctx, 2*time.Second)
	defer done()
	_, err = s.Lead(within, "host-1", w.Epoch())
	want(t, fault.NoResources, err)

	must(t, s.Rescue(ctx))
	must(t, again.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	must(t, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	h, err = s.Health(ctx)
	must(t, err)
	if h.NoSpace() || h.Percent() > 20 {
		t.Errorf("health after the rescue: %+v", h)
	}
	must(t, s.Rescue(ctx)) // may be repeated
}

// What cannot be freed stays refused, and the line says who holds how much.
func TestRescueSaysWhatItCannotFree(t *testing.T) {
	_, s, w := startSmall(t, 4<<20)
	ctx := t.Context()
	must(t, s.InitCluster(ctx, "test"))
	var full error
	for i := 0; full == nil; i++ {
		spec := inventory.VMSpec{Name: fmt.Sprintf("vm-%d", i), Boot: inventory.Boot{Cmdline: strings.Repeat("x", 32<<10)}}
		full = w.CreateVM(ctx, inventory.VM{ID: inventory.VMID(fmt.Sprintf("vm-%d", i)), Spec: spec, Run: inventory.VMRun{Owner: "host-1"}})
	}
	want(t, fault.NoResources, full)
	t.Log(want(t, fault.NoResources, s.Rescue(ctx)))
	// Removal makes room also then: it adds nothing.
	for i := range 60 {
		must(t, w.DeleteVM(ctx, inventory.VMID(fmt.Sprintf("vm-%d", i)), nil))
	}
	must(t, s.Rescue(ctx))
	must(t, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
}

// Close to the quota, what adds is refused in one line, and everything that keeps VMs safe goes on.
func TestAnAlmostFullStoreTakesNothingNew(t *testing.T) {
	s, w := start(t)
	ctx := t.Context()
	vm := inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "web-1"}, Run: inventory.VMRun{Owner: "host-1"}}
	with := vm
	with.Spec.NICs = []inventory.NIC{{Network: "old", MAC: "52:54:00:00:00:01"}}
	must(t, w.CreateVM(ctx, with))
	must(t, w.CreateNetwork(ctx, inventory.Network{ID: "old", Spec: inventory.NetworkSpec{Gateway: "host-1"}}))
	must(t, w.CreateToken(ctx, store.Token{ID: "used", SecretHash: []byte("x"), Expires: time.Now().Add(time.Hour)}))
	must(t, w.UseToken(ctx, "used", []byte("x"), store.Joining{Host: "host-3"}))
	term, err := s.Lead(ctx, "host-1", w.Epoch())
	must(t, err)
	defer term.End()
	must(t, term.SetFull(ctx, "410 MiB of 512 MiB"))

	for what, err := range map[string]error{
		"a VM":      w.CreateVM(ctx, inventory.VM{ID: "vm-b", Spec: inventory.VMSpec{Name: "web-2"}, Run: inventory.VMRun{Owner: "host-1"}}),
		"a network": w.CreateNetwork(ctx, inventory.Network{ID: "lan"}),
		"a token":   w.CreateToken(ctx, store.Token{ID: "t", SecretHash: []byte("x"), Expires: time.Now().Add(time.Hour)}),
		"a migration": w.CreateMigration(ctx, inventory.Migration{
			ID: "mig-a", Spec: inventory.MigrationSpec{VM: "vm-a", VMName: "web-1"},
		}),
	} {
		if text := want(t, fault.NoResources, err); !strings.Contains(text, "410 MiB of 512 MiB") {
			t.Errorf("%s: %s", what, text)
		} else {
			t.Log(text)
		}
	}
	must(t, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	_, err = w.UpdateRun(ctx, "vm-a", func(r *inventory.VMRun) error { r.Generation++; return nil })
	must(t, err)
	must(t, w.PutVMStatus(ctx, "vm-a", inventory.VMStatus{State: inventory.Running}))
	must(t, w.PutHostStatus(ctx, inventory.HostStatus{VMs: 1}))
	must(t, term.PutPlace(ctx, "vm-a", func(p *inventory.VMPlace) error { return nil }))
	must(t, note(ctx, w, 1))
	writer(t, s, "host-2") // a host's agent starts
	nic := func(n ...inventory.NIC) func(*inventory.VM) error {
		return func(vm *inventory.VM) error { vm.Spec.NICs = n; return nil }
	}
	want(t, fault.NoResources, third(w.UpdateVM(ctx, "vm-a", nil, nic(inventory.NIC{Network: "old", MAC: "52:54:00:00:00:01"}, inventory.NIC{Network: "old", MAC: "52:54:00:00:00:02"}))))
	must(t, third(w.UpdateVM(ctx, "vm-a", nil, nic())))
	must(t, w.PutNetwork(ctx, inventory.Network{ID: "old", Spec: inventory.NetworkSpec{Gateway: "host-2"}})) // its gateway's host leaves the cluster
	must(t, w.ReturnToken(ctx, "used", []byte("x"), store.Joining{Host: "host-3"}))
	must(t, w.DeleteVM(ctx, "vm-a", nil))

	must(t, term.SetFull(ctx, ""))
	vm.ID = "vm-c"
	must(t, w.CreateVM(ctx, vm))
}

// A compaction and a defragmentation leave the inventory as it is.
func TestCompactAndDefragment(t *testing.T) {
	_, s, w := startSmall(t, 16<<20)
	ctx := t.Context()
	must(t, s.InitCluster(ctx, "test"))
	for round := range 30 {
		must(t, note(ctx, w, round))
	}
	before, err := s.Health(ctx)
	must(t, err)
	for tick := time.Tick(20 * time.Millisecond); before.Members[0].Size < 100<<10; <-tick { // etcd writes to its file a little later
		before, err = s.Health(ctx)
		must(t, err)
	}
	must(t, s.Compact(ctx, before.Revision))
	must(t, s.Compact(ctx, before.Revision-5)) // further back than what is gone
	h, err := s.Health(ctx)
	must(t, err)
	done, err := s.Defragment(ctx, h, h.Members[0])
	must(t, err)
	after, err := s.Health(ctx)
	must(t, err)
	if !done || after.Members[0].Size*2 > before.Members[0].Size {
		t.Errorf("%v became %v (%v)", before.Members[0].Size, after.Members[0].Size, done)
	}
	tasks, err := s.Tasks(ctx)
	must(t, err)
	if len(tasks) != store.RecordMax || !strings.HasSuffix(tasks[0].Status.Detail, "x29") {
		t.Errorf("%d tasks are left", len(tasks))
	}
}
