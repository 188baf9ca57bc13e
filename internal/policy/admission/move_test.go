package admission

import (
	"slices"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// leaving is a VM that may go: off, from host-1 with the datastore ds-1 to host-2.
func leaving() Departure {
	return Departure{
		VM: inventory.VM{
			Spec:   inventory.VMSpec{Name: "web-1"},
			Run:    inventory.VMRun{Owner: "host-1", Wanted: inventory.PowerOff},
			Status: inventory.VMStatus{State: inventory.Stopped},
		},
		Source: inventory.Host{ID: "host-1"}, Asked: "host-2",
		Target: inventory.Host{ID: "host-2", Spec: inventory.HostSpec{Datastores: []inventory.DatastoreMount{{ID: "ds-2", Name: "own"}}}},
	}
}

func TestEveryReasonAgainstADepartureIsTold(t *testing.T) {
	if bad := CheckDeparture(leaving()); len(bad) > 0 {
		t.Errorf("nothing is wrong, but: %q", bad)
	}
	for what, c := range map[string]struct {
		change func(*Departure)
		says   string
	}{
		"nobody of that name": {func(d *Departure) { d.Target, d.Asked = inventory.Host{}, "host-9" }, `no host "host-9"`},
		"silent":              {func(d *Departure) { d.Silent = "no route" }, "host-2 does not answer (no route)"},
		"nowhere else":        {func(d *Departure) { d.Target = d.Source }, "is there already"},
		"the same datastore":  {func(d *Departure) { d.Target, d.Datastore, d.Found = d.Source, "own", true }, "is there already"},
		"running":             {func(d *Departure) { d.VM.Status.State = inventory.Running }, "is running, and only a VM that is off is moved"},
		"crashed":             {func(d *Departure) { d.VM.Status.State = inventory.Crashed }, "vm stop web-1 --force"},
		"wanted on":           {func(d *Departure) { d.VM.Run.Wanted = inventory.PowerOn }, "wanted on"},
		"migrating":           {func(d *Departure) { d.VM.Run.Heir = inventory.Heir{Host: "host-2", Migration: "mig-1"} }, "mig-1"},
		"a device":            {func(d *Departure) { d.VM.Spec.Devices = []inventory.HostDevice{{Host: "host-1", Address: "01:00.0"}} }, "01:00.0"},
		"no such datastore":   {func(d *Departure) { d.Datastore = "fast" }, `host-2 has no datastore "fast": it has own`},
		"a thin clone":        {func(d *Departure) { d.Leaves, d.Thin = []string{"disk0"}, []string{"disk0"} }, "disk0 is a thin clone"},
		"a template":          {func(d *Departure) { d.Clones = []string{"a", "b"} }, "destroy a, b first"},
	} {
		d := leaving()
		c.change(&d)
		if bad := CheckDeparture(d); len(bad) != 1 || !strings.Contains(bad[0], c.says) {
			t.Errorf("%s: %q, not one reason with %q", what, bad, c.says)
		}
	}
	all := leaving()
	all.Silent, all.Datastore, all.Clones, all.VM.Status.State = "no route", "fast", []string{"a"}, inventory.Paused
	if bad := CheckDeparture(all); len(bad) != 4 {
		t.Errorf("four things are wrong: %q", bad)
	}
}

func TestEveryReasonAgainstFilesIsTold(t *testing.T) {
	a := Arrival{
		Target: leaving().Target, Source: "host-1",
		Need: map[inventory.DatastoreID]inventory.Bytes{"ds-2": inventory.GiB}, Free: map[inventory.DatastoreID]inventory.Bytes{"ds-2": inventory.GiB},
	}
	if bad := CheckFiles(a); len(bad) > 0 {
		t.Errorf("nothing is wrong, but: %q", bad)
	}
	a.Free["ds-2"]--
	a.Taken = []inventory.File{{Datastore: "ds-2", Path: "a.qcow2"}}
	a.Unseen = []inventory.DatastoreID{"ds-2"}
	bad := CheckFiles(a)
	want := []string{"datastore own on host-2 has", "there is a file a.qcow2 on datastore own already", "datastore own is not shared: host-2 does not see what host-1"}
	if !slices.EqualFunc(bad, want, func(got, want string) bool { return strings.Contains(got, want) }) {
		t.Errorf("the reasons are %q", bad)
	}
	host, _ := mount(a.Target, "ds-2")
	if host.Name != "own" {
		t.Error("the target lost its datastore")
	}
	// Memory is asked for at the start, not at the move.
	spec := inventory.VMSpec{
		Name: "web-1", CPUs: 1, Memory: inventory.GiB, Machine: "pc-q35-10.0", CPUModel: "Westmere",
		Disks: []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds-3", Path: "a.qcow2"}, Format: inventory.Qcow2}},
	}
	target := a.Target
	target.Spec.QEMU.Machines, target.Spec.QEMU.CPUModels = []string{"pc-q35-10.0"}, []string{"Westmere"}
	if bad := CheckArrival(Arrival{Spec: spec, Target: target}); len(bad) != 1 || !strings.Contains(bad[0], "has not mounted datastore ds-3") {
		t.Errorf("the reasons are %q", bad)
	}
}
