package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: people take hosts for dead that are not. The answers are in testdata/bad-input-fencing.txt.
func TestBadInputFencing(t *testing.T) {
	t.Parallel()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 2})}
	m.full = filepath.Join(m.Dir, "full")
	for _, name := range []string{"full", "other", "copied"} { // that state looks at
		if err := os.Mkdir(filepath.Join(m.Dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes about hosts that are said to be dead. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"a host that there is not", 1, words("host confirm-dead host-9 --yes"), 3},
		{"no host", 1, words("host confirm-dead --yes"), 2},
		{"two hosts at once", 1, words("host confirm-dead host-1 host-2 --yes"), 2},
		{"nobody to ask whether that is so", 1, words("host confirm-dead host-2"), 2},
		{"a host that is up", 1, words("host confirm-dead host-2 --yes"), 4},
		{"the host that is asked", 1, words("host confirm-dead host-1 --yes"), 4},
		{"a name that cannot be one", 1, []string{"host", "confirm-dead", "host/1", "--yes"}, 3},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
	}
	compare(t, "testdata/bad-input-fencing.txt", file.String())
}
