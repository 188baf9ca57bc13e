package qemu_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

var rewrite = flag.Bool("rewrite", false, "write the command lines as they are now to testdata; review them as prose")

// modern is what QEMU 10.0 on a recent kernel has; old is what 7.2 lacks.
func modern(accelerator string) qemu.Abilities {
	return qemu.Abilities{
		Path: "/usr/bin/qemu-system-x86_64", Accelerator: accelerator,
		Features: []string{qemu.FeatureSandbox, qemu.FeatureIOUring, qemu.FeatureReconnect},
	}
}

func old(accelerator string) qemu.Abilities {
	return qemu.Abilities{Accelerator: accelerator, Features: []string{qemu.FeatureSandbox}}
}

// web is a VM with everything that a command line can have.
func web() inventory.VMSpec {
	ds := inventory.DatastoreID("ds-1")
	return inventory.VMSpec{
		Name: "web-1", UUID: "7c0f3c5e-3f1f-4a3e-9f47-0d8a6b1d2c3e", CPUs: 2, Memory: 512 * inventory.MiB,
		Machine: "pc-q35-10.0", CPUModel: "Westmere",
		Disks: []inventory.Disk{
			{Name: "disk0", File: inventory.File{Datastore: ds, Path: "web-1/disk0.qcow2"}, Format: inventory.Qcow2, Size: inventory.GiB},
			{Name: "disk1", File: inventory.File{Datastore: ds, Path: "web-1/data.raw"}, Format: inventory.Raw, Size: inventory.GiB},
		},
		NICs: []inventory.NIC{
			{Name: "nic0", MAC: "52:54:00:00:00:01", Network: "lan"},
			{Name: "nic1", MAC: "52:54:00:00:00:02", Network: "dmz"},
		},
		Boot: inventory.Boot{
			Kernel:  inventory.File{Datastore: ds, Path: "boot/vmlinuz"},
			Initrd:  inventory.File{Datastore: ds, Path: "boot/initrd"},
			Cmdline: "console=ttyS0 quiet, really",
		},
	}
}

func env(a qemu.Abilities) qemu.Env {
	return qemu.Env{
		RunDir: "/run/godwit/vm/vm-abc", Abilities: a,
		File: func(f inventory.File) (string, error) { return filepath.Join("/srv/godwit,shared", f.Path), nil },
		Ports: map[string]string{
			"nic0": "/run/godwit/switch/vm-abc.nic0.sock",
			"nic1": "/run/godwit/switch/vm-abc.nic1.sock",
		},
	}
}

func TestCommandLinesAreAsReviewed(t *testing.T) {
	fromDisk, firmware := web(), web()
	fromDisk.Boot = inventory.Boot{}
	firmware.Boot = inventory.Boot{Firmware: inventory.File{Datastore: "ds-1", Path: "tiny.rom"}}
	firmware.Disks, firmware.NICs = nil, nil
	incoming := env(modern(qemu.TCG))
	incoming.Incoming = true
	uefi := fromDisk
	uefi.Layout, uefi.Display = inventory.LayoutPorts, true
	uefi.Boot = inventory.Boot{UEFI: true, Vars: inventory.File{Datastore: "ds-1", Path: "web-1-vars.fd"}}
	flash := env(modern(qemu.KVM))
	flash.Firmware = qemu.Firmware{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"}
	bridged := env(modern(qemu.KVM)) // nic0 on the user-space switch, nic1 on a bridge with vhost-net; bridgedTCG has a bare one
	delete(bridged.Ports, "nic1")
	bridged.Taps = map[string]qemu.Tap{"nic1": {FD: 4, VhostFD: 5, MTU: 9000}}
	bridgedTCG := env(modern(qemu.TCG))
	bridgedTCG.Ports = nil
	bridgedTCG.Taps = map[string]qemu.Tap{"nic0": {FD: 4}, "nic1": {FD: 5}}
	bridgedTCG.Incoming = true
	for name, c := range map[string]struct {
		spec inventory.VMSpec
		env  qemu.Env
	}{
		"kernel-tcg":    {web(), env(modern(qemu.TCG))},
		"kernel-kvm":    {web(), env(modern(qemu.KVM))},
		"disk-kvm":      {fromDisk, env(modern(qemu.KVM))},
		"uefi-display":  {uefi, flash},
		"firmware-tcg":  {firmware, env(modern(qemu.TCG))},
		"kernel-target": {web(), incoming},
		"kernel-old":    {web(), env(old(qemu.TCG))},
		"bridge-vhost":  {web(), bridged},
		"bridge-target": {web(), bridgedTCG},
	} {
		t.Run(name, func(t *testing.T) {
			args, err := qemu.CommandLine(c.spec, c.env)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name+".args"), show(args))
		})
	}
}

// show puts an option and its value on one line.
func show(args []string) string {
	var b strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func compare(t *testing.T, path, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with -rewrite", err)
	}
	if got != string(want) {
		t.Errorf("%s differs; rewrite it with -rewrite and review the change\n--- is\n%s--- was\n%s", path, got, want)
	}
}

// The guest must not see on which side of a migration, or with which QEMU, it runs.
func TestSourceAndTargetGiveTheSameMachine(t *testing.T) {
	source, err := qemu.CommandLine(web(), env(old(qemu.TCG)))
	if err != nil {
		t.Fatal(err)
	}
	targetEnv := env(modern(qemu.TCG))
	targetEnv.Incoming, targetEnv.RunDir = true, "/run/godwit/other"
	target, err := qemu.CommandLine(web(), targetEnv)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"-device", "-machine", "-cpu", "-smp", "-m", "-object", "-uuid", "-accel", "-rtc"} {
		if a, b := values(source, option), values(target, option); !slices.Equal(a, b) {
			t.Errorf("%s differs:\nsource %v\ntarget %v", option, a, b)
		}
	}
	if !slices.Contains(target, "-incoming") || slices.Contains(source, "-incoming") {
		t.Error("only the target waits for a stream")
	}
}

// values returns all values of an option.
func values(args []string, option string) []string {
	var v []string
	for i, a := range args {
		if a == option {
			v = append(v, args[i+1])
		}
	}
	return v
}

func TestEveryReasonAgainstASpecIsGiven(t *testing.T) {
	spec, e := web(), env(modern("xen"))
	spec.Machine, spec.CPUModel, spec.UUID, spec.Memory = "q35", "Westmere,-drive file=/etc/shadow", "", 3*inventory.MiB
	e.Ports = map[string]string{"nic0": "/" + strings.Repeat("x", qemu.SocketPathMax)}
	e.RunDir = "run/godwit"
	_, err := qemu.CommandLine(spec, e)
	if !fault.Is(err, fault.Invalid) {
		t.Fatalf("kind %v of %v", fault.KindOf(err), err)
	}
	reasons := strings.Join(fault.Reasons(err), "\n")
	for _, part := range []string{"machine \"q35\"", "cpu model", "UUID", "memory", "accelerator \"xen\"", "socket", "nic1 has no switch port", "absolute"} {
		if !strings.Contains(reasons, part) {
			t.Errorf("no word of %s in\n%s", part, reasons)
		}
	}
}

func TestFilesThatAreNowhereAndDevicesThatCannotBeGiven(t *testing.T) {
	e := env(modern(qemu.TCG))
	e.File = func(inventory.File) (string, error) {
		return "", fault.New(fault.NotFound, "datastore ds-1 is not mounted here")
	}
	if _, err := qemu.CommandLine(web(), e); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "ds-1") {
		t.Errorf("got %v", err)
	}
	spec := web()
	spec.Devices = []inventory.HostDevice{{Host: "host-1", Address: "0000:01:00.0"}}
	if _, err := qemu.CommandLine(spec, env(modern(qemu.TCG))); !fault.Is(err, fault.Incompatible) {
		t.Errorf("got %v", err)
	}
}

// Whatever the spec's strings are, they never become an option of their own nor a second key of one.
func TestNoValueEscapesItsOption(t *testing.T) {
	plain, err := qemu.CommandLine(web(), env(modern(qemu.TCG)))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		spec, e := web(), env(modern(qemu.TCG))
		spec.CPUModel = rapid.OneOf(rapid.Just("Westmere"), rapid.String()).Draw(t, "cpu")
		spec.Machine = rapid.OneOf(rapid.Just("pc-q35-9.2"), rapid.String()).Draw(t, "machine")
		root := rapid.StringMatching(`/[a-z,=-]{1,40}`).Draw(t, "root")
		e.RunDir = qemu.RunDir(root)
		e.File = func(f inventory.File) (string, error) { return filepath.Join(root, f.Path), nil }
		args, err := qemu.CommandLine(spec, e)
		if err != nil {
			return // refused: nothing escapes
		}
		if len(args) != len(plain) {
			t.Fatalf("%d arguments, with harmless values %d", len(args), len(plain))
		}
		whole := []string{"-kernel", "-initrd", "-append"} // QEMU does not split their values
		for i, a := range args {
			if i == 0 || slices.Contains(whole, args[i-1]) || args[i-1] == "-cpu" {
				continue
			}
			if keys(a) != keys(plain[i]) {
				t.Fatalf("argument %q has other keys than %q", a, plain[i])
			}
		}
	})
}

// keys counts the parts of a key=value list as QEMU does: two commas in a row are one comma of a value.
func keys(arg string) int {
	return strings.Count(strings.ReplaceAll(arg, ",,", ""), ",") + 1
}
