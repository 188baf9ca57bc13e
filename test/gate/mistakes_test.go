package gate

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

func unknownNames() []mistake {
	return []mistake{
		{"a VM that nobody made", 1, words("vm info web-9"), 3},
		{"starting it", 2, words("vm start web-9"), 3},
		{"migrating it", 1, words("vm migrate web-9 --to host-2"), 3},
		{"its console", 1, words("vm console web-9"), 3},
		{"a host that never joined", 1, words("host info host-9"), 3},
		{"migrating to it", 1, words("vm migrate runs --to host-9"), 3},
		{"a VM for it", 1, words("vm create web-9 --host host-9"), 3},
		{"a migration that never was", 1, words("migration show mig-9"), 3},
		{"canceling it", 1, words("migration cancel mig-9"), 3},
		{"a network that nobody made", 1, words("vm create web-9 --nic dmz"), 3},
		{"a datastore that nobody added", 1, words("vm create web-9 --disk size=1G,datastore=fast"), 3},
		{"a kernel that is not there", 1, words("vm create web-9 --kernel vmlinuz-9"), 3},
		{"a disk that is not there", 1, words("vm create web-9 --disk web-9.qcow2"), 3},
		{"a gateway on a host that never joined", 1, words("network create dmz --subnet 10.9.0.0/24 --gateway host-9"), 3},
		{"a command that does not exist", 1, words("vm teleport runs"), 2},
		{"a flag that does not exist", 1, words("vm migrate runs --target host-2"), 2},
	}
}

func malformedValues() []mistake {
	return []mistake{
		{"a size that is no size", 1, words("vm create web-9 --memory lots"), 2},
		{"a size with an unknown unit", 1, words("vm create web-9 --memory 2X"), 2},
		{"a negative size", 1, words("vm create web-9 --memory -512M"), 2},
		{"a size that is not whole", 1, words("vm create web-9 --memory 1.3"), 2},
		{"no memory, no CPU", 1, words("vm create web-9 --memory 0 --cpus 0"), 2},
		{"more memory than there can be", 1, words("vm create web-9 --memory 9999999T"), 2},
		{"more memory than the host has", 1, words("vm create web-9 --memory 900G"), 5},
		{"a disk with a malformed size", 1, words("vm create web-9 --disk size=big"), 2},
		{"a disk of no size", 1, words("vm create web-9 --disk size=0"), 2},
		{"a disk in an unknown format", 1, words("vm create web-9 --disk size=1G,format=vmdk"), 2},
		{"a name that is none", 1, words("vm create Web_9"), 2},
		{"no name", 1, words("vm create"), 2},
		{"a MAC address that is none", 1, words("vm create web-9 --nic lan,mac=banana"), 2},
		{"a CPU model that does not exist", 1, words("vm create web-9 --cpu-model Pentium9"), 5},
		{"a bandwidth that is none", 1, words("vm migrate runs --to host-2 --bandwidth fast"), 2},
		{"a pause that is none", 1, words("vm migrate runs --to host-2 --downtime-max soon"), 2},
		{"a migration to nowhere", 1, words("vm migrate runs"), 2},
		{"a subnet that is none", 1, words("network create dmz --subnet 10.9.0.0/99"), 2},
		{"a network of a name that is taken", 1, words("network create lan --subnet 10.9.0.0/24"), 4},
		{"a life of a token that is too long", 1, words("token create --life 10000h"), 2},
		{"a socket where nobody listens", 1, words("vm ls --socket /nowhere.sock"), 6},
		{"a data folder that is none", 1, words("run --data /nowhere"), 3},
	}
}

func badImages(m *mistakes) []mistake {
	return []mistake{
		{"a text file as disk", 1, words("vm create web-9 --disk note.txt"), 2},
		{"an empty file as disk", 1, words("vm create web-9 --disk empty.qcow2"), 2},
		{"a qcow2 image as raw", 1, words("vm create web-9 --disk rests-disk0.qcow2,format=raw"), 2},
		{"a disk of another VM", 1, words("vm create web-9 --disk rests-disk0.qcow2"), 4},
		{"a file outside the datastore", 1, words("vm create web-9 --disk ../../etc/passwd"), 2},
		{"the datastore's own file", 1, words("vm create web-9 --disk .godwit-datastore"), 2},
		{"a new disk in a file that is there", 1, words("vm create web-9 --disk size=1G,path=rests-disk0.qcow2"), 4},
		{"a second disk that cannot be made", 1, words("vm create web-9 --disk size=1G --disk size=1G,path=nodir/x.qcow2"), 3},
		{"a disk on a full datastore", 3, words("vm create web-9 --disk size=1G,datastore=full"), 5},
		{"starting a VM whose datastore is full", 3, words("vm start small"), 5}, // changes its record: see try
		{"a datastore without a folder", 1, words("datastore add fast=/nowhere/at/all --data " + filepath.Join(m.Dir, "h9")), 3},
		{"a datastore that the host has already", 1, words("datastore add shared=" + m.Datastore + " --data " + m.Hosts[0].Data), 4},
	}
}

func wrongStates() []mistake {
	return []mistake{
		{"a VM of a name that is taken", 2, words("vm create runs --memory 48M"), 4},
		{"a second start", 1, words("vm start runs"), 4},
		{"a second start, asked at another host", 2, words("vm start runs"), 4},
		{"destroying a VM that runs", 1, words("vm destroy runs --delete-disks"), 4},
		{"resetting a VM that is stopped", 1, words("vm reset rests"), 4},
		{"pausing a VM that is stopped", 1, words("vm pause rests"), 4},
		{"the console of a VM that is stopped", 1, words("vm console rests"), 4},
		{"migrating a VM that is stopped", 1, words("vm migrate rests --to host-2"), 5},
		{"a guest that does not listen", 1, words("vm stop runs --grace 100ms"), 6},
	}
}

func wrongPlaces() []mistake {
	return []mistake{
		{"migrating to where it is", 1, words("vm migrate runs --to host-1"), 5},
		{"a datastore that only has the same name there", 1, words("vm migrate runs --to host-3"), 5},
		{"a datastore whose marker was copied", 1, words("vm migrate runs --to host-4"), 5},
		{"the same, dry", 1, words("vm migrate runs --to host-4 --dry-run"), 5},
		{"everything at once", 1, words("vm migrate rests --to host-3"), 5},
	}
}

// secondMigration makes mistakes with a VM that migrates.
func (m *mistakes) secondMigration(t *testing.T, try func(...mistake)) {
	t.Helper()
	source, target := m.Hosts[0], m.Hosts[1]
	id := begin(t, "runs", source, target, "--bandwidth", "1M")
	if err := source.WatchMigration(step(t), id, func(g *godwitv1.Migration) bool {
		return g.GetStatus().GetPhase() == inventory.PreCopy.String() && g.GetStatus().GetProgress().GetSent() > 0
	}); err != nil {
		t.Fatal(err)
	}
	heir := func() error {
		vm, err := source.VM(step(t), "runs")
		if err == nil && vm.GetRun().GetHeir().GetHost() == "" {
			err = fmt.Errorf("no heir yet")
		}
		return err
	}
	if err := lab.Until(t.Context(), stepMax, heir); err != nil { // then nothing changes until the switchover
		t.Fatal(err)
	}
	try(
		mistake{"a second migration while one runs", 1, words("vm migrate runs --to host-2"), 5},
		mistake{"stopping a VM that migrates", 1, words("vm stop runs --force"), 4},
		mistake{"destroying a VM that migrates", 2, words("vm destroy runs"), 4},
		mistake{"resetting a VM that migrates", 1, words("vm reset runs"), 4},
	)
	if _, err := source.Godwit(step(t), "migration", "cancel", id); err != nil {
		t.Fatal(err)
	}
	over := func() error { // as the store has it: the target's agent reads nothing else
		vm, err := target.VM(step(t), "runs")
		if err == nil && vm.GetStatus().GetState() != inventory.Running.String() {
			err = fmt.Errorf("the vm is %s", vm.GetStatus().GetState())
		}
		return err
	}
	if err := lab.Until(t.Context(), stepMax, over); err != nil {
		t.Fatal(err)
	}
	try(mistake{"canceling a migration twice", 1, words("migration cancel " + id), 4})
}

// tokens makes mistakes with joining.
func (m *mistakes) tokens(t *testing.T, try func(...mistake)) {
	t.Helper()
	token := func(flags ...string) string {
		out, err := m.Hosts[0].Godwit(step(t), append([]string{"token", "create"}, flags...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	fresh, used, short := token(), token(), token("--life", "1ms")
	host := func(name string) string {
		return " --data " + filepath.Join(m.Dir, name) + " --name " + name + " --address 127.9.9.9"
	}
	if _, err := m.Hosts[0].Godwit(step(t), words("join "+used+host("host-5"))...); err != nil {
		t.Fatal(err)
	}
	try(
		mistake{"a used token", 1, words("join " + used + host("host-6")), 5},
		mistake{"an expired token", 1, words("join " + short + host("host-6")), 5},
		mistake{"a token that was cut off", 1, words("join " + fresh[:len(fresh)-3] + host("host-6")), 2},
		mistake{"something else as token", 1, words("join let-me-in" + host("host-6")), 2},
		mistake{"a name that is taken", 1, words("join " + fresh + host("host-2")), 4},
		mistake{"a data folder that is a host's", 1, words("join " + fresh + " --name host-6 --address 127.9.9.9 --data " + m.Hosts[0].Data), 2},
		mistake{"no address", 1, words("join " + fresh + " --name host-6 --data " + filepath.Join(m.Dir, "host-6")), 2},
		mistake{"a second cluster on one host", 1, words("init --name host-6 --address 127.9.9.9 --data " + m.Hosts[0].Data), 2},
	)
	// After all those, the token that was never spent is still good.
	if _, err := m.Hosts[0].Godwit(step(t), words("join "+fresh+host("host-6"))...); err != nil {
		t.Error(err)
	}
}
