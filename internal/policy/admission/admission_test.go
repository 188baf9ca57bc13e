package admission

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/inventory"
)

var rewrite = flag.Bool("rewrite", false, "write what the stories say now into testdata; review it as prose")

// healthy returns facts that no reason stands against: web-1 runs on host-1 with a disk on a shared datastore and one NIC.
func healthy() Facts {
	qemu := inventory.QEMU{
		Version: "10.0.2", Accelerator: "tcg", Machines: []string{"pc-q35-9.2", "pc-q35-10.0"}, CPUModels: []string{"Nehalem", "Westmere"},
		Migration: inventory.Verdict{State: inventory.VerdictGood},
	}
	host := func(id inventory.HostID) inventory.Host {
		return inventory.Host{
			ID: id,
			Spec: inventory.HostSpec{
				QEMU:       qemu,
				Datastores: []inventory.DatastoreMount{{ID: "ds-1", Name: "main", Path: "/srv/main", Shared: true}},
				Networks:   []inventory.NetworkID{"lan"},
			},
			Status: inventory.HostStatus{MemoryFree: 4 * inventory.GiB},
		}
	}
	return Facts{
		VM: inventory.VM{
			ID: "vm-1",
			Spec: inventory.VMSpec{
				Name: "web-1", CPUs: 1, Memory: 512 * inventory.MiB, Machine: "pc-q35-10.0", CPUModel: "Westmere",
				Disks: []inventory.Disk{{Name: "disk0", File: inventory.File{Datastore: "ds-1", Path: "web-1.qcow2"}, Format: inventory.Qcow2}},
				NICs:  []inventory.NIC{{Name: "nic0", MAC: "52:54:00:00:00:01", Network: "lan"}},
			},
			Run:    inventory.VMRun{Owner: "host-1", Generation: 1, Wanted: inventory.PowerOn},
			Status: inventory.VMStatus{State: inventory.Running, Host: "host-1"},
		},
		Source: host("host-1"), Asked: "host-2", Target: host("host-2"),
		Locks: map[inventory.DatastoreID]bool{"ds-1": true},
	}
}

// defect is one thing that is wrong. Those of one group exclude each other: they are values of the same fact.
type defect struct {
	name, group string
	do          func(f *Facts)
}

var defects = []defect{
	{"target unknown", "target", func(f *Facts) { f.Asked, f.Target = "host-9", inventory.Host{} }},
	{"target is the source", "target", func(f *Facts) { f.Asked, f.Target = "host-1", f.Source }},
	{"target silent", "target", func(f *Facts) { f.Silent = "connection refused" }},
	{"vm stopped", "state", func(f *Facts) { f.VM.Status.State = inventory.Stopped }},
	{"vm starting", "state", func(f *Facts) { f.VM.Status.State = inventory.Starting }},
	{"vm paused", "state", func(f *Facts) { f.VM.Status.State = inventory.Paused }},
	{"vm crashed", "state", func(f *Facts) { f.VM.Status.State = inventory.Crashed }},
	{"vm unknown", "state", func(f *Facts) { f.VM.Status.State = inventory.Unknown }},
	{"vm migrating", "state", func(f *Facts) { f.VM.Status.State = inventory.Migrating }},
	{"vm owned elsewhere", "owner", func(f *Facts) { f.VM.Run.Owner = "host-3" }},
	{"other migration", "other", func(f *Facts) { f.Other = "mig-7" }},
	{"heir stands", "other", func(f *Facts) { f.VM.Run.Heir = inventory.Heir{Host: "host-3", Generation: 2, Migration: "mig-6"} }},
	{"host device", "device", func(f *Facts) {
		f.VM.Spec.Devices = []inventory.HostDevice{{Host: "host-1", Address: "0000:03:00.0"}}
	}},
	{"cpu model host", "cpu", func(f *Facts) {
		f.VM.Spec.CPUModel = "host"
		f.Target.Spec.QEMU.CPUModels = append(slices.Clone(f.Target.Spec.QEMU.CPUModels), "host")
	}},
	{"target lacks cpu model", "cpu", func(f *Facts) { f.Target.Spec.QEMU.CPUModels = []string{"Nehalem"} }},
	{"target lacks machine", "machine", func(f *Facts) { f.Target.Spec.QEMU.Machines = []string{"pc-q35-9.2"} }},
	{"source qemu bad", "source qemu", func(f *Facts) {
		f.Source.Spec.QEMU.Migration = inventory.Verdict{State: inventory.VerdictBad, Detail: "3 of 4096 pages differ"}
	}},
	{"source qemu unproven", "source qemu", func(f *Facts) { f.Source.Spec.QEMU.Migration = inventory.Verdict{} }},
	{"target qemu bad", "target qemu", func(f *Facts) {
		f.Target.Spec.QEMU.Migration = inventory.Verdict{State: inventory.VerdictBad, Detail: "3 of 4096 pages differ"}
	}},
	{"target qemu unproven", "target qemu", func(f *Facts) { f.Target.Spec.QEMU.Migration = inventory.Verdict{} }},
	{"source lacks ability", "source ability", func(f *Facts) { f.SourceLacks = []string{"pause-before-switchover", "return-path"} }},
	{"target lacks ability", "target ability", func(f *Facts) { f.TargetLacks = []string{"return-path"} }},
	{"source has kvm", "accelerator", func(f *Facts) { f.Source.Spec.QEMU.Accelerator = "kvm" }},
	{"target lacks uefi", "uefi", func(f *Facts) { f.withUEFI(1, 0) }},
	{"target has other uefi", "uefi", func(f *Facts) { f.withUEFI(1, 2) }},
	{"target memory short", "memory", func(f *Facts) { f.Target.Status.MemoryFree = 639 * inventory.MiB }},
	{"target not mounted", "mount", func(f *Facts) { f.Target.Spec.Datastores = nil }},
	{"target has another datastore of the name", "mount", func(f *Facts) {
		f.Target.Spec.Datastores = []inventory.DatastoreMount{{ID: "ds-2", Name: "main", Path: "/srv/main", Shared: true}}
	}},
	{"target mount is local", "mount", func(f *Facts) {
		f.Target.Spec.Datastores = []inventory.DatastoreMount{{ID: "ds-1", Name: "main", Path: "/srv/main"}}
	}},
	{"target does not see the lock", "mount", func(f *Facts) { f.Locks = nil }},
	{"source mount is local", "source mount", func(f *Facts) {
		f.Source.Spec.Datastores = []inventory.DatastoreMount{{ID: "ds-1", Name: "main", Path: "/srv/main"}}
	}},
	{"target lacks network", "network", func(f *Facts) { f.Target.Spec.Networks = nil }},
	{"target's cable is out", "network", func(f *Facts) {
		f.Target.Spec.Networks, f.Target.Spec.NetworkAll = nil, true // it has all others
		f.Target.Spec.Missing = []inventory.NetworkMissing{{Network: "lan", Why: "no port of bridge br0 has a carrier (eth1): plug the cable in, or take the port up"}}
	}},
}

// withUEFI lets the VM start from UEFI, with firmware of that many MiB on both sides; 0 is none.
func (f *Facts) withUEFI(source, target inventory.Bytes) {
	f.VM.Spec.Boot.UEFI = true
	for host, size := range map[*inventory.Host]inventory.Bytes{&f.Source: source, &f.Target: target} {
		if size > 0 {
			host.Spec.UEFI = inventory.UEFI{Code: "/usr/share/OVMF/OVMF_CODE.fd", CodeSize: size * inventory.MiB, VarsSize: 128 * inventory.KiB}
		}
	}
}

func TestTheSameFirmwareOnBothSidesIsNoReason(t *testing.T) {
	f := healthy()
	f.withUEFI(1, 1)
	if reasons := Check(f); len(reasons) > 0 {
		t.Error(reasons)
	}
}

// TestStories walks testdata/*.txt: each block names what is wrong with healthy facts, and after the dashes the reasons follow.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	told := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var blocks []string
		for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
			names, _, _ := strings.Cut(block, "\n----")
			f := healthy()
			for name := range strings.Lines(names) {
				name = strings.TrimSpace(name)
				if strings.HasPrefix(name, "#") || name == "healthy" {
					continue
				}
				i := slices.IndexFunc(defects, func(d defect) bool { return d.name == name })
				if i < 0 {
					t.Fatalf("%s: nobody knows the defect %q", file, name)
				}
				defects[i].do(&f)
				told[name] = true
			}
			reasons := Check(f)
			if reasons == nil {
				reasons = []string{"admitted"}
			}
			blocks = append(blocks, names+"\n----\n"+strings.Join(reasons, "\n"))
		}
		now := strings.Join(blocks, "\n\n") + "\n"
		if *rewrite {
			if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if now != string(text) {
			t.Errorf("%s says something else now; go test -rewrite writes it down for review. Now:\n%s", file, now)
		}
	}
	for _, d := range defects {
		if !told[d.name] {
			t.Errorf("no story tells of %q", d.name)
		}
	}
}

// TestEveryDefectIsAReason draws defects and adds one: all reasons of before stand, in the same order, and there is one more. Only
// what hides the target hides its reasons with it.
func TestEveryDefectIsAReason(t *testing.T) {
	if got := Check(healthy()); got != nil {
		t.Fatalf("healthy facts are refused: %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		chosen := map[string]bool{}
		f := healthy()
		var names []string
		for _, d := range rapid.Permutation(defects).Draw(t, "defects") {
			if d.group == "target" || chosen[d.group] || !rapid.Bool().Draw(t, d.name) {
				continue
			}
			chosen[d.group] = true
			before := Check(f)
			d.do(&f)
			names = append(names, d.name)
			after := Check(f)
			if len(after) <= len(before) && !chosen["other"] { // a migrating VM with a migration under way is one reason
				t.Fatalf("%q gives no reason of its own:\n%s", names, strings.Join(after, "\n"))
			}
			rest := after
			for _, reason := range before {
				i := slices.Index(rest, reason)
				if i < 0 && !strings.Contains(reason, "is migrating") {
					t.Fatalf("%q removes or moves the reason %q:\n%s", names, reason, strings.Join(after, "\n"))
				}
				rest = rest[i+1:]
			}
		}
		hidden := rapid.SampledFrom(defects[:3]).Draw(t, "hides")
		before := Check(f)
		hidden.do(&f)
		after := Check(f)
		if len(after) == 0 {
			t.Fatalf("%s gives no reason", hidden.name)
		}
		for _, reason := range after[1:] {
			if !slices.Contains(before, reason) {
				t.Fatalf("%s brings %q up, which was no reason before", hidden.name, reason)
			}
		}
		for _, reason := range after {
			if strings.Contains(reason, "\n") || strings.HasSuffix(reason, ".") || !strings.Contains(reason, ":") && !strings.Contains(reason, ";") {
				t.Fatalf("%q is not one line that says what to do", reason)
			}
		}
	})
}

func TestCreate(t *testing.T) {
	for _, c := range []struct {
		name  string
		wrong func(s *inventory.VMSpec, h *inventory.Host)
		want  []string // a piece of each reason, in order
	}{
		{"healthy", func(*inventory.VMSpec, *inventory.Host) {}, nil},
		{"exactly enough memory", func(s *inventory.VMSpec, h *inventory.Host) { h.Status.MemoryFree = s.Memory + Overhead }, nil},
		{"one byte too little", func(s *inventory.VMSpec, h *inventory.Host) { h.Status.MemoryFree = s.Memory + Overhead - 1 }, []string{"memory free"}},
		{"any network on a user-space switch", func(_ *inventory.VMSpec, h *inventory.Host) { h.Spec.Networks, h.Spec.NetworkAll = nil, true }, nil},
		{"the spec's own problems come first", func(s *inventory.VMSpec, h *inventory.Host) {
			s.CPUs, s.CPUModel, h.Spec.Networks = 0, "Skylake-Server", nil
		}, []string{"0 CPUs", "Skylake-Server", "lan"}},
		{"everything at once", func(s *inventory.VMSpec, h *inventory.Host) {
			s.Machine, s.CPUModel = "pc-q35-11.1", "EPYC"
			s.Devices = []inventory.HostDevice{{Host: "host-7", Address: "0000:03:00.0"}}
			s.Boot.Kernel = inventory.File{Datastore: "ds-3", Path: "vmlinuz"}
			h.Status.MemoryFree, h.Spec.Datastores, h.Spec.Networks = 0, nil, nil
		}, []string{"0000:03:00.0", "pc-q35-11.1", "EPYC", "memory free", "ds-1", "ds-3", "lan"}},
		{"no verdict is needed to start", func(_ *inventory.VMSpec, h *inventory.Host) { h.Spec.QEMU.Migration = inventory.Verdict{} }, nil},
		{"a local datastore is good enough to start", func(_ *inventory.VMSpec, h *inventory.Host) {
			h.Spec.Datastores = []inventory.DatastoreMount{{ID: "ds-1", Name: "main", Path: "/srv/main"}}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			spec, host := f.VM.Spec, f.Target
			c.wrong(&spec, &host)
			got := Create(spec, host)
			if len(got) != len(c.want) {
				t.Fatalf("reasons:\n%s\nwant %d of them", strings.Join(got, "\n"), len(c.want))
			}
			for i, piece := range c.want {
				if !strings.Contains(got[i], piece) {
					t.Errorf("reason %d is %q, want one about %q", i, got[i], piece)
				}
			}
		})
	}
}
