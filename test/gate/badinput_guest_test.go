package gate

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: mistakes with firmware, displays and screenshots are answered like all others. The answers are in
// testdata/bad-input-guest.txt, to be read.
func TestBadInputGuest(t *testing.T) {
	t.Parallel()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	m.full = filepath.Join(m.Dir, "full")
	for _, dir := range []string{"other", "copied", "full"} { // that state looks at
		if err := os.Mkdir(filepath.Join(m.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string][]byte{"tiny.rom": tiny.Heartbeat(tiny.Options{}), "old-vars.fd": []byte("of another firmware")} {
		if err := os.WriteFile(filepath.Join(m.Datastore, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range []string{
		"vm create blind --memory 32M --firmware tiny.rom", "vm start blind",
		"vm create shown --memory 32M --firmware tiny.rom --display", "vm start shown",
		"vm create rests --memory 32M --disk size=16M",
	} {
		if _, err := m.Hosts[0].Godwit(step(t), words(command)...); err != nil {
			t.Fatal(err)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	taken := busy.Addr().String()

	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes with firmware and displays, as bad-input.txt has it for all else. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"UEFI and a firmware image", 1, words("vm create web-9 --uefi --firmware tiny.rom"), 2},
		{"UEFI, where a file is in the way", 1, words("vm create old --uefi"), 4},
		{"UEFI, perhaps", 1, words("vm create web-9 --uefi=perhaps"), 2},
		{"a display, perhaps", 1, words("vm create web-9 --display=perhaps"), 2},
		{"a picture of a VM that nobody made", 1, words("vm screenshot web-9 --output x.png"), 3},
		{"a picture of nothing", 1, words("vm screenshot"), 2},
		{"a picture for nobody", 1, words("vm screenshot shown"), 2},
		{"a picture into a folder that is not there", 1, words("vm screenshot shown --output /nowhere/x.png"), 3},
		{"a picture without a display", 1, words("vm screenshot blind --output x.png"), 4},
		{"a picture of a VM that does not run", 1, words("vm screenshot rests --output x.png"), 4},
		{"the display of a VM that nobody made", 1, words("vm console web-9 --vnc"), 3},
		{"a display that is none", 1, words("vm console blind --vnc"), 4},
		{"the display of a VM that does not run", 1, words("vm console rests --vnc"), 4},
		{"a display for everybody", 1, words("vm console shown --vnc --listen 0.0.0.0:5901"), 2},
		{"a display for another machine", 1, words("vm console shown --vnc --listen 192.0.2.7:5901"), 2},
		{"a display at no address", 1, words("vm console shown --vnc --listen here"), 2},
		{"a display at an address that is taken", 1, words("vm console shown --vnc --listen " + taken), 4},
		{"a display in a folder that is not there", 1, words("vm console shown --vnc --listen /nowhere/x.sock"), 3},
		{"a serial console that listens", 1, words("vm console blind --listen 127.0.0.1:5901"), 2},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(strings.ReplaceAll(m.try(t, c), taken, "127.0.0.1:PORT")) })
	}
	compare(t, "testdata/bad-input-guest.txt", file.String())
}
