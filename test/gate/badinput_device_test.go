package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

const badDeviceFile = "testdata/bad-input-device.txt"

// makeDeviceMistakes is a cluster for people who make mistakes with clones, moves and devices:
//
//	host-1  has the datastore "shared", and "small" of 512 KiB
//	host-2  has the datastore "own"
//	runs, rests, gold, thin   VMs on host-1: one runs, one does not, one is a template, and one is its thin clone
func makeDeviceMistakes(t *testing.T) *mistakes {
	t.Helper()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	m.full = filepath.Join(m.Dir, "full")
	own := filepath.Join(m.Dir, "other")
	for _, dir := range []string{m.full, own, filepath.Join(m.Dir, "copied")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The cluster's end unmounts it.
	if err := unix.Mount("godwit-gate", m.full, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mount a small tmpfs: %v", err)
	}
	if _, err := m.AddHost(step(t), "own="+own+",local", "small="+m.full+",local"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{Rate: 64}), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"note.txt": "this is no image\n", "rests-disk1.qcow2": "nor this"} {
		if err := os.WriteFile(filepath.Join(m.Datastore, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{
		"network create lan --subnet 10.14.0.0/24",
		"vm create runs --memory 48M --firmware tiny.rom --disk size=16M --nic lan", "vm start runs",
		"vm create rests --memory 48M --firmware tiny.rom --disk size=16M",
		"vm create gold --memory 48M --disk size=16M", "vm template gold", "vm clone gold thin",
	} {
		if _, err := m.Hosts[0].Godwit(step(t), words(command)...); err != nil {
			t.Fatal(err)
		}
	}
	m.fill(t)
	return m
}

// The story: people make mistakes with clones, moves and devices, and read what TestBadInput promises: one clear line, or one for each
// reason, the right exit code, and nothing has changed.
func TestBadInputDevice(t *testing.T) {
	t.Parallel()
	m := makeDeviceMistakes(t)
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes with clones, moves and devices. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"a disk that is nothing", 1, words("vm disk add rests"), 2},
		{"a disk that is new and is there already", 1, words("vm disk add rests --size 1G --disk note.txt"), 2},
		{"a disk for nobody", 1, words("vm disk add web-9 --size 1G"), 3},
		{"a size that is none", 1, words("vm disk add rests --size big"), 2},
		{"a size of nothing", 1, words("vm disk add rests --size 0"), 2},
		{"a format that nobody knows", 1, words("vm disk add rests --size 1G --format vmdk"), 2},
		{"a datastore of another host", 1, words("vm disk add rests --size 1G --datastore own"), 3},
		{"a file that is there already", 1, words("vm disk add rests --size 1G"), 4},
		{"a disk of another VM", 1, words("vm disk add rests --disk runs-disk0.qcow2"), 4},
		{"a text as a disk", 1, words("vm disk add runs --disk note.txt"), 2},
		{"a disk outside the datastore", 1, words("vm disk add runs --disk ../../etc/passwd"), 2},
		{"a disk for a template", 1, words("vm disk add gold --size 1G"), 4},
		{"taking away a disk that is not there", 1, words("vm disk rm runs disk7"), 3},
		{"taking away the disk that a running VM was made with", 1, words("vm disk rm runs disk0"), 4},
		{"making a disk smaller", 1, words("vm disk grow rests disk0 --size 8M"), 2},
		{"making one of a running VM smaller", 1, words("vm disk grow runs disk0 --size 8M"), 2},
		{"growing to no whole number of sectors", 1, words("vm disk grow rests disk0 --size 99999999"), 2},
		{"growing to nothing in particular", 1, words("vm disk grow rests disk0"), 2},
		{"growing a disk that is not there", 1, words("vm disk grow rests disk7 --size 1G"), 3},
		{"a card on a network that nobody made", 1, words("vm nic add runs dmz"), 3},
		{"a card without a network", 1, words("vm nic add runs"), 2},
		{"a MAC address that is none", 1, words("vm nic add runs lan --mac banana"), 2},
		{"taking away a card that is not there", 1, words("vm nic rm rests nic0"), 3},
		{"taking away the card that a running VM was made with", 1, words("vm nic rm runs nic0"), 4},
		{"a clone of nobody", 1, words("vm clone web-9 web-10"), 3},
		{"a clone of a running VM", 1, words("vm clone runs web-9"), 4},
		{"a clone without a name", 1, words("vm clone rests"), 2},
		{"a clone of a name that is none", 1, words("vm clone rests Web_9"), 2},
		{"a clone of a name that is taken", 1, words("vm clone rests runs"), 4},
		{"a clone on a datastore that is not there", 1, words("vm clone rests web-9 --datastore fast"), 2},
		{"a key that is no file", 1, words("vm clone rests web-9 --ssh-key /nowhere.pub"), 3},
		{"a template of a running VM", 1, words("vm template runs"), 4},
		{"starting a template", 1, words("vm start gold"), 4},
		{"destroying a template that a clone stands on", 1, words("vm destroy gold"), 4},
		{"a VM again that a clone stands on", 1, words("vm template gold --undo"), 4},
		{"a move to nowhere", 1, words("vm move rests"), 2},
		{"a move of nobody", 1, words("vm move web-9 --to host-2"), 3},
		{"a move to a host that never joined", 1, words("vm move rests --to host-9"), 3},
		{"a move of a running VM", 1, words("vm move runs --to host-2 --datastore own"), 4},
		{"a move to where it is", 1, words("vm move rests --to host-1"), 5},
		{"a move to a host that has not its datastore", 1, words("vm move rests --to host-2"), 5},
		{"a move to a datastore that is not there", 1, words("vm move rests --to host-2 --datastore fast"), 5},
		{"a move to a datastore that is too small", 1, words("vm move rests --to host-2 --datastore small"), 5},
		{"a move of a thin clone away from its template", 1, words("vm move thin --to host-2 --datastore own"), 5},
		{"a move of a template away from its clone", 1, words("vm move gold --to host-2 --datastore own"), 5},
		{"changing nothing", 1, words("vm set rests"), 2},
		{"no CPU", 1, words("vm set rests --cpus 0"), 2},
		{"memory that is none", 1, words("vm set rests --memory lots"), 2},
		{"more memory than the host has", 1, words("vm set rests --memory 900G"), 5},
		{"a screen and none", 1, words("vm set rests --display --no-display"), 2},
		{"more CPUs for a VM that runs", 1, words("vm set runs --cpus 2"), 4},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
	}
	compare(t, badDeviceFile, file.String())
}
