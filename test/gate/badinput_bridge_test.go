package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

// The story: mistakes about networks on bridges and about MAC addresses are answered like all others. The answers are in
// testdata/bad-input-bridge.txt.
func TestBadInputBridge(t *testing.T) {
	t.Parallel()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 1, Run: []string{"--network", "dmz=bridge:br-none"}})}
	m.full = filepath.Join(m.Dir, "full")
	for _, dir := range []string{"full", "other", "copied"} { // that state looks at
		if err := os.Mkdir(filepath.Join(m.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{
		"network create lan", "network create dmz --driver bridge", "network create vmotion --driver bridge --vlan 20",
		"vm create web-1 --memory 48M --nic lan,mac=52:54:00:00:00:01", "vm create web-2 --memory 48M --nic lan,mac=52:54:00:00:00:02",
	} {
		if _, err := m.Hosts[0].Godwit(step(t), words(args)...); err != nil {
			t.Fatal(err)
		}
	}
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes about networks: $ the command, its exit code, its standard error. Made by -rewrite.\n")
	for _, c := range []mistake{
		{"a driver that nobody wrote", 1, words("network create x --driver vxlan"), 2},
		{"a VLAN on the user-space switch", 1, words("network create x --vlan 20"), 2},
		{"a VLAN out of range", 1, words("network create x --driver bridge --vlan 4095"), 2},
		{"all that can be wrong with one", 1, words("network create X --driver bridge --vlan -1 --mtu 100 --subnet 10.1.0.0/24"), 2},
		{"a VLAN that is no number", 1, words("network create x --driver bridge --vlan blue"), 2},
		{"an MTU that no switch carries", 1, words("network create x --driver bridge --mtu 65000"), 2},
		{"a name that is taken", 1, words("network create dmz --driver bridge"), 4},
		{"a network that nobody made", 1, words("network info attic"), 3},
		{"no network at all", 1, words("network info"), 2},
		{"a host told of no carrier", 1, words("run --network lan"), 2},
		{"a host told of nonsense", 1, words("run --network lan=br0 --network X=bridge:br0 --network dmz=uplink:a/b --network dmz=bridge:br0"), 2},
		{"a VM on networks that the host lacks", 1, words("vm create x --memory 48M --nic dmz --nic vmotion"), 5},
		{"a card on one, for a VM that is there", 1, words("vm nic add web-1 dmz"), 5},
		{"a MAC address that another VM has", 1, words("vm create x --memory 48M --nic lan,mac=52:54:00:00:00:01 --nic lan,mac=52:54:00:00:00:02"), 4},
		{"the same for another card", 1, words("vm nic add web-1 lan --mac 52:54:00:00:00:02"), 4},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
	}
	compare(t, "testdata/bad-input-bridge.txt", file.String())
}
