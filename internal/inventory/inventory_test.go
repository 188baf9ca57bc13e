package inventory_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func TestSizesAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]inventory.Bytes{
		"512M": 512 * inventory.MiB, "2G": 2 * inventory.GiB, "1.5GiB": 1536 * inventory.MiB, "4096": 4096, "20 MB": 20 * inventory.MiB,
		"1t": inventory.TiB, " 64k ": 64 * inventory.KiB, "0": 0, "17B": 17,
	} {
		got, err := inventory.ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "-1G", "1e9", "2X", "0.3", "1.2.3M", "12 34", "9999999T", "NaN", "inf", "0x10"} {
		if got, err := inventory.ParseBytes(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q was taken for %d (%v)", text, got, err)
		}
	}
}

func TestSizesSurviveTheirText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom([]inventory.Bytes{1, inventory.KiB, inventory.MiB, inventory.GiB, inventory.TiB}).Draw(t, "unit")
		want := inventory.Bytes(rapid.Int64Range(0, 1023).Draw(t, "n")) * unit
		got, err := inventory.ParseBytes(want.String())
		if err != nil || got != want {
			t.Fatalf("%d became %q and then %d (%v)", want, want, got, err)
		}
	})
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512M", "1.5G", "", "-1", "99999999999999999999T"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := inventory.ParseBytes(s); err == nil && b < 0 {
			t.Errorf("%q became %d", s, b)
		}
	})
}

// good is a spec that nothing is wrong with.
func good() inventory.VMSpec {
	return inventory.VMSpec{
		Name: "web-1", CPUs: 2, Memory: inventory.GiB,
		Disks: []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds", Path: "web-1.qcow2"}, Format: inventory.Qcow2}},
		NICs:  []inventory.NIC{{Name: "nic0", MAC: "52:54:00:12:34:56", Network: "lan"}},
		Boot:  inventory.Boot{Kernel: inventory.File{Datastore: "ds", Path: "boot/vmlinuz"}, Cmdline: "quiet"},
	}
}

func TestEveryProblemIsNamedAtOnce(t *testing.T) {
	if bad := good().Problems(); len(bad) > 0 {
		t.Fatalf("a good spec has problems: %q", bad)
	}
	defects := map[string]func(*inventory.VMSpec){
		"vm name":          func(s *inventory.VMSpec) { s.Name = "Web 1" },
		"CPUs":             func(s *inventory.VMSpec) { s.CPUs = 0 },
		"memory":           func(s *inventory.VMSpec) { s.Memory = inventory.MiB },
		"format":           func(s *inventory.VMSpec) { s.Disks[0].Format = "vmdk" },
		"inside its datas": func(s *inventory.VMSpec) { s.Disks[0].File.Path = "../etc/shadow" },
		"MAC address":      func(s *inventory.VMSpec) { s.NICs[0].MAC = "01:00:5e:00:00:01" },
		"firmware":         func(s *inventory.VMSpec) { s.Boot.Firmware = inventory.File{Datastore: "ds", Path: "a,b"} },
		"choose one":       func(s *inventory.VMSpec) { s.Boot.Firmware = inventory.File{Datastore: "ds", Path: "rom"} },
	}
	all := good()
	for what, spoil := range defects {
		one := good()
		spoil(&one)
		if !strings.Contains(strings.Join(one.Problems(), "\n"), what) {
			t.Errorf("%q is not among %q", what, one.Problems())
		}
		if what != "firmware" { // that and "choose one" set the same field
			spoil(&all)
		}
	}
	if got := len(all.Problems()); got != len(defects)-1 {
		t.Errorf("%d problems of %d were named: %q", got, len(defects)-1, all.Problems())
	}
}

func TestKernelWordsNeedAKernel(t *testing.T) {
	s := good()
	s.Boot.Kernel = inventory.File{}
	if bad := s.Problems(); len(bad) != 1 || !strings.Contains(bad[0], "needs a kernel") {
		t.Errorf("problems %q", bad)
	}
}

func TestPathsNeverLeaveTheirDatastore(t *testing.T) {
	for _, path := range []string{"", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a\nb", "a,file=/etc/shadow"} {
		s := good()
		s.Disks[0].File.Path = path
		if len(s.Problems()) == 0 {
			t.Errorf("path %q was taken", path)
		}
	}
}

func TestNamesCanBeHostNames(t *testing.T) {
	for _, name := range []string{"a", "web-1", "0", strings.Repeat("x", 63)} {
		if err := inventory.CheckName("vm", name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-a", "a-", "A", "a_b", "a.b", "ä", strings.Repeat("x", 64), "a b", "../x"} {
		if err := inventory.CheckName("vm", name); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestFreshIdentities(t *testing.T) {
	seen := map[string]bool{}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for range 100 {
		for _, id := range []string{string(inventory.NewVMID()), string(inventory.NewMigrationID()), string(inventory.NewDatastoreID()), inventory.NewUUID(), inventory.NewMAC()} {
			if seen[id] {
				t.Fatalf("%s came twice", id)
			}
			seen[id] = true
		}
		s := good()
		s.NICs[0].MAC = inventory.NewMAC()
		if bad := s.Problems(); len(bad) > 0 {
			t.Fatal(bad)
		}
		if u := inventory.NewUUID(); !uuid.MatchString(u) {
			t.Fatalf("%s is no random UUID", u)
		}
	}
}

// What a VM's former host wrote last says nothing of it under another owner; a migration's words do, and so does that it is off.
func TestStatusNow(t *testing.T) {
	for _, c := range []struct {
		owner, by inventory.HostID
		was, is   inventory.VMState
	}{
		{"host-1", "host-1", inventory.Running, inventory.Running},
		{"host-1", "host-2", inventory.Running, inventory.Unknown},
		{"host-1", "host-2", inventory.Paused, inventory.Unknown},
		{"host-1", "host-2", inventory.Starting, inventory.Unknown},
		{"host-1", "host-2", inventory.Migrating, inventory.Migrating},
		{"host-1", "host-2", inventory.Stopped, inventory.Stopped},
		{"host-1", "host-2", inventory.Crashed, inventory.Crashed},
		{"host-1", "", inventory.Running, inventory.Running},
	} {
		now := inventory.VM{Run: inventory.VMRun{Owner: c.owner}, Status: inventory.VMStatus{State: c.was, Host: c.by, PID: 7}}.StatusNow()
		if now.State != c.is || (now.PID == 0) != (c.is != c.was) || (now.Detail == "") != (c.is == c.was) {
			t.Errorf("%s by %s under %s: %+v", c.was, c.by, c.owner, now)
		}
	}
}
