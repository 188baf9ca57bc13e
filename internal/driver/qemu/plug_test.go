package qemu

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// flat writes QMP options as the command line does.
func flat(options map[string]any, prefix string) map[string]string {
	all := map[string]string{}
	for key, value := range options {
		switch v := value.(type) {
		case map[string]any:
			maps.Copy(all, flat(v, prefix+key+"."))
		case bool:
			all[prefix+key] = map[bool]string{true: "on", false: "off"}[v]
		default:
			all[prefix+key] = fmt.Sprint(v)
		}
	}
	return all
}

// said finds the option of the command line that has the key and value, and splits it.
func said(t *testing.T, args []string, option, key, value string) map[string]string {
	t.Helper()
	for i, a := range args[:len(args)-1] {
		if a != option {
			continue
		}
		kind, rest, _ := strings.Cut(args[i+1], ",")
		if !strings.Contains(kind, "=") {
			kind = map[string]string{"-device": "driver=", "-netdev": "type="}[option] + kind
		}
		found := map[string]string{}
		for part := range strings.SplitSeq(kind+","+rest, ",") {
			k, v, _ := strings.Cut(part, "=")
			found[k] = v
		}
		if found[key] == value {
			return found
		}
	}
	t.Fatalf("no %s with %s=%s", option, key, value)
	return nil
}

// The story: a disk and a card are plugged into a running VM, which then migrates. The target's command line must have made the very
// same devices, whatever the VM boots from and whatever QEMU can do.
func TestWhatIsPluggedInIsWhatTheCommandLineSays(t *testing.T) {
	for _, kernel := range []string{"", "vmlinuz"} {
		for _, features := range [][]string{nil, {FeatureIOUring, FeatureReconnect}} {
			spec := inventory.VMSpec{
				Name: "web-1", UUID: inventory.NewUUID(), CPUs: 1, Memory: 64 * inventory.MiB, Machine: "pc-q35-10.0", CPUModel: "Westmere",
				Layout: inventory.LayoutPorts,
				Disks: []inventory.Disk{
					{Name: "disk0", File: inventory.File{Datastore: "ds", Path: "0.raw"}, Format: inventory.Raw},
					{Name: "disk7", File: inventory.File{Datastore: "ds", Path: "1.qcow2"}, Format: inventory.Qcow2, Port: 3, ReadOnly: true},
				},
				NICs: []inventory.NIC{{Name: "nic2", MAC: "52:54:00:00:00:02", Network: "lan", Port: 1}},
			}
			if kernel != "" {
				spec.Boot.Kernel = inventory.File{Datastore: "ds", Path: kernel}
			}
			env := Env{
				RunDir: "/run/vm", Ports: map[string]string{"nic2": "/run/nic2.sock"}, Abilities: Abilities{Accelerator: TCG, Features: features},
				File: func(f inventory.File) (string, error) { return "/ds/" + f.Path, nil },
			}
			args, err := CommandLine(spec, env)
			if err != nil {
				t.Fatal(err)
			}
			file, top := diskNodes(spec.Disks[1], "/ds/1.qcow2", env.Abilities)
			for _, c := range []struct {
				plugged    map[string]any
				option     string
				key, value string
			}{
				{file, "-blockdev", "node-name", "disk7-file"},
				{top, "-blockdev", "node-name", "disk7"},
				{diskDevice(spec, 1), "-device", "id", "vd7"},
				{nicBackend(spec.NICs[0], NICPlug{Socket: "/run/nic2.sock"}, false, env.Abilities), "-netdev", "id", "net2"},
				{nicDevice(spec.NICs[0], 0), "-device", "id", "nic2"},
			} {
				if got, want := flat(c.plugged, ""), said(t, args, c.option, c.key, c.value); !maps.Equal(got, want) {
					t.Errorf("kernel %q, features %v: %s=%s is plugged in as\n%v, and the command line says\n%v", kernel, features, c.key, c.value, got, want)
				}
			}
		}
	}
}
