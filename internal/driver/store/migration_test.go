package store_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func aMigration(id inventory.MigrationID, vm inventory.VMID) inventory.Migration {
	return inventory.Migration{ID: id, Spec: inventory.MigrationSpec{
		VM: vm, VMName: "web-1", Source: "host-1", Target: "host-2", Requested: time.Now().UTC(), By: "test",
	}}
}

func TestVMHasOneMigrationAtATime(t *testing.T) {
	s, w := start(t)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	const askers = 6
	errs := make([]error, askers)
	var wg sync.WaitGroup
	for i := range askers {
		wg.Go(func() {
			errs[i] = w.CreateMigration(t.Context(), aMigration(inventory.MigrationID(fmt.Sprintf("mig-%d", i)), "vm-a"))
		})
	}
	wg.Wait()
	active, err := s.ActiveMigration(t.Context(), "vm-a")
	must(t, err)
	for i, err := range errs {
		if string(active) == fmt.Sprintf("mig-%d", i) {
			must(t, err)
		} else if text := want(t, fault.Conflict, err); !strings.Contains(text, string(active)) {
			t.Errorf("%q does not name %s", text, active)
		}
	}
	must(t, w.CreateMigration(t.Context(), aMigration(active, "vm-a"))) // its answer was lost: once more

	for _, phase := range []inventory.Phase{inventory.PreCopy, inventory.Undecided} {
		must(t, w.PutMigrationStatus(t.Context(), active, inventory.MigrationStatus{Phase: phase}))
		want(t, fault.Conflict, w.CreateMigration(t.Context(), aMigration("mig-next", "vm-a")))
	}
	must(t, w.PutMigrationStatus(t.Context(), active, inventory.MigrationStatus{Phase: inventory.Completed}))
	must(t, w.CreateMigration(t.Context(), aMigration("mig-next", "vm-a")))

	// What is over stays over, and does not free the VM of its next migration.
	t.Log(want(t, fault.Conflict, w.PutMigrationStatus(t.Context(), active, inventory.MigrationStatus{Phase: inventory.PreCopy})))
	must(t, w.PutMigrationStatus(t.Context(), active, inventory.MigrationStatus{Phase: inventory.Completed, Reason: "with result"}))
	now, err := s.ActiveMigration(t.Context(), "vm-a")
	must(t, err)
	if now != "mig-next" {
		t.Errorf("%q is active", now)
	}
	want(t, fault.NotFound, w.CreateMigration(t.Context(), aMigration("mig-x", "vm-x")))
	want(t, fault.NotFound, w.PutMigrationStatus(t.Context(), "mig-x", inventory.MigrationStatus{}))
	_, err = s.Migration(t.Context(), "mig-x")
	want(t, fault.NotFound, err)
}

func TestOnlyCancelChangesWhatWasAskedFor(t *testing.T) {
	s, w := start(t)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	must(t, w.CreateMigration(t.Context(), aMigration("mig-1", "vm-a")))
	_, err := w.UpdateMigrationSpec(t.Context(), "mig-1", func(m *inventory.MigrationSpec) error { m.Target = "host-3"; return nil })
	want(t, fault.Internal, err)
	spec, err := w.UpdateMigrationSpec(t.Context(), "mig-1", func(m *inventory.MigrationSpec) error { m.Canceled = true; return nil })
	must(t, err)
	m, err := s.Migration(t.Context(), "mig-1")
	must(t, err)
	if !spec.Canceled || !m.Spec.Canceled || m.Spec.Target != "host-2" {
		t.Errorf("got %+v", m)
	}
}

func TestOldestFinishedMigrationsAreForgotten(t *testing.T) {
	s, w := start(t)
	s.SetMigrationsKept(3)
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	must(t, w.CreateVM(t.Context(), aVM("vm-b", "web-2")))
	must(t, w.CreateMigration(t.Context(), aMigration("mig-running", "vm-b")))
	began := time.Now().Add(-time.Hour)
	for i := range 6 {
		id := inventory.MigrationID(fmt.Sprintf("mig-%d", i))
		must(t, w.CreateMigration(t.Context(), aMigration(id, "vm-a")))
		must(t, w.PutMigrationStatus(t.Context(), id, inventory.MigrationStatus{Phase: inventory.Failed, Ended: began.Add(time.Duration(i) * time.Minute)}))
	}
	all, err := s.Migrations(t.Context())
	must(t, err)
	var left []string
	for _, m := range all {
		left = append(left, string(m.ID))
	}
	if got := strings.Join(left, " "); got != "mig-running mig-3 mig-4 mig-5" {
		t.Errorf("left are %s", got)
	}
	must(t, w.Forget(t.Context(), began.Add(store.MigrationAgeMax+4*time.Minute+time.Second)))
	if all, err = s.Migrations(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("of all ages are left %v (%v)", all, err)
	}
}

func TestTokenAdmitsOneHostOnce(t *testing.T) {
	s, w := start(t)
	secret := []byte("hash of the secret")
	hour := time.Now().Add(time.Hour)
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t1", SecretHash: secret, Expires: hour}))
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t2", SecretHash: secret, Expires: time.Now().Add(-time.Minute)}))
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t3", SecretHash: secret, Expires: hour}))
	want(t, fault.Exists, w.CreateToken(t.Context(), store.Token{ID: "t1", SecretHash: secret, Expires: hour}))

	t.Log(want(t, fault.Denied, w.UseToken(t.Context(), "t9", secret, store.Joining{Host: "host-2"})))
	t.Log(want(t, fault.Denied, w.UseToken(t.Context(), "t1", []byte("guess"), store.Joining{Host: "host-2"})))
	t.Log(want(t, fault.Denied, w.UseToken(t.Context(), "t2", secret, store.Joining{Host: "host-2"})))
	t.Log(want(t, fault.Exists, w.UseToken(t.Context(), "t1", secret, store.Joining{Host: "host-1"}))) // spends nothing
	must(t, w.UseToken(t.Context(), "t1", secret, store.Joining{Host: "host-2"}))
	if text := want(t, fault.Denied, w.UseToken(t.Context(), "t1", secret, store.Joining{Host: "host-3"})); !strings.Contains(text, "used by host-2") {
		t.Error(text)
	}
	t.Log(want(t, fault.Exists, w.UseToken(t.Context(), "t3", secret, store.Joining{Host: "host-2"})))

	// The new host is a member before its agent starts for the first time.
	epoch, err := s.Epoch(t.Context(), "host-2")
	must(t, err)
	first, _, err := s.NextEpoch(t.Context(), "host-2", "boot")
	must(t, err)
	if epoch.Epoch != 0 || first.Epoch != 1 {
		t.Errorf("epochs %d and %d", epoch.Epoch, first.Epoch)
	}
}

func TestTwoHostsWithOneTokenAtOnce(t *testing.T) {
	_, w := start(t)
	must(t, w.CreateToken(t.Context(), store.Token{ID: "t1", SecretHash: []byte("h"), Expires: time.Now().Add(time.Hour)}))
	errs := make([]error, 5)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			errs[i] = w.UseToken(t.Context(), "t1", []byte("h"), store.Joining{Host: inventory.HostID(fmt.Sprintf("host-%d", i+2))})
		})
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
		} else {
			want(t, fault.Denied, err)
		}
	}
	if in != 1 {
		t.Errorf("%d hosts got in: %v", in, errs)
	}
}

func TestHostsAndNetworks(t *testing.T) {
	s, w := start(t)
	_, err := s.Host(t.Context(), "host-1")
	t.Log(want(t, fault.NotFound, err)) // a member that has not said what it is
	must(t, w.PutHostSpec(t.Context(), inventory.HostSpec{Address: "127.0.0.11:7443", CPUs: 4, Datastores: []inventory.DatastoreMount{{ID: "ds-1"}}}))
	must(t, w.PutHostStatus(t.Context(), inventory.HostStatus{VMs: 3}))
	h, err := s.Host(t.Context(), "host-1")
	must(t, err)
	if h.Spec.CPUs != 4 || h.Spec.Epoch != w.Epoch() || h.Status.VMs != 3 {
		t.Errorf("got %+v", h)
	}
	hosts, err := s.Hosts(t.Context())
	must(t, err)
	if len(hosts) != 1 {
		t.Errorf("got %+v", hosts)
	}
	must(t, w.CreateNetwork(t.Context(), inventory.Network{ID: "lan", Spec: inventory.NetworkSpec{Subnet: "10.1.0.0/24"}}))
	t.Log(want(t, fault.Exists, w.CreateNetwork(t.Context(), inventory.Network{ID: "lan"})))
	must(t, w.PutNetwork(t.Context(), inventory.Network{ID: "lan", Spec: inventory.NetworkSpec{Subnet: "10.2.0.0/24", Gateway: "host-1"}}))
	t.Log(want(t, fault.Invalid, w.PutNetwork(t.Context(), inventory.Network{ID: "a/b"})))
	networks, err := s.Networks(t.Context())
	must(t, err)
	if len(networks) != 1 || networks[0].Spec.Subnet != "10.2.0.0/24" {
		t.Errorf("got %+v", networks)
	}
}

func TestDumpShowsEverything(t *testing.T) {
	s, w := start(t)
	must(t, s.InitCluster(t.Context(), "alps"))
	must(t, w.CreateVM(t.Context(), aVM("vm-a", "web-1")))
	must(t, w.CreateMigration(t.Context(), aMigration("mig-1", "vm-a")))
	b, err := s.Dump(t.Context())
	must(t, err)
	var dump struct {
		Records []struct {
			Key, Kind string
			Schema    int
			Record    any
		}
	}
	must(t, json.Unmarshal(b, &dump))
	kinds := map[string]bool{}
	for _, r := range dump.Records {
		kinds[r.Kind] = true
		if r.Record == nil || r.Schema != 1 {
			t.Errorf("%s: %+v", r.Key, r)
		}
	}
	if len(dump.Records) != 9 || !kinds["vm/spec"] || !kinds["migration/status"] || !strings.Contains(string(b), "pc-q35-10.0") {
		t.Errorf("got %s", b)
	}
}
