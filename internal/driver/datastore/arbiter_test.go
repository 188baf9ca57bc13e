package datastore

import (
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
)

const mounts = `22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
61 22 0:52 / /mnt/v42 rw,relatime shared:30 - nfs4 nas:/vms rw,vers=4.2,rsize=1048576,hard,proto=tcp,sec=sys,local_lock=none,addr=10.0.0.9
62 22 0:53 / /mnt/v3 rw,relatime shared:31 - nfs nas:/vms rw,vers=3,hard,nolock,local_lock=all,addr=10.0.0.9
63 22 0:54 / /mnt/v40 rw - nfs4 nas:/vms rw,vers=4.0,hard,local_lock=none
64 22 0:55 / /mnt/flock rw - nfs4 nas:/vms rw,vers=4.1,local_lock=flock
65 22 0:56 / /mnt/fuse rw - fuse.oracle oracle rw,user_id=0,vers=4.2
66 22 0:57 / /mnt/old\040one rw - nfs4 nas:/vms rw,vers=4.2,nolock,local_lock=none
`

func TestArbiter(t *testing.T) {
	for _, c := range []struct {
		device, lost string
		want         inventory.Arbiter
		why          string
	}{
		{"0:52", "N", inventory.StorageArbitrates, "NFS 4.2 with locks: a write without its lock fails"},
		{"0:54", "N", inventory.StorageArbitrates, "NFS 4.0 with locks: a write without its lock fails"},
		{"0:52", "Y", inventory.LeaseArbitrates, "NFS 4.2, but the kernel takes lost locks again: set nfs.recover_lost_locks=0"},
		{"0:52", "", inventory.LeaseArbitrates, "NFS 4.2, but the kernel takes lost locks again: set nfs.recover_lost_locks=0"},
		{"0:53", "N", inventory.LeaseArbitrates, "NFS 3: a lock does not stop an old writer; mount it with vers=4.2"},
		{"0:55", "N", inventory.LeaseArbitrates, "NFS 4.1 mounted with local_lock=flock: hosts do not see each other's locks; mount it without"},
		{"0:57", "N", inventory.LeaseArbitrates, "NFS 4.2 mounted with nolock: hosts do not see each other's locks; mount it without"},
		{"0:56", "N", inventory.LeaseArbitrates, "fuse.oracle: nothing is known of what its locks do between hosts"},
		{"259:2", "N", inventory.LeaseArbitrates, "ext4: nothing is known of what its locks do between hosts"},
	} {
		m, err := findMount(mounts, c.device)
		if err != nil {
			t.Fatal(err)
		}
		if got, why := arbiterOf(m, c.lost); got != c.want || why != c.why {
			t.Errorf("%s with lost locks %q: %s, %q", c.device, c.lost, got, why)
		}
	}
	if _, err := findMount(mounts, "0:99"); err == nil {
		t.Error("a mount of a device that is not there")
	}
}

// On this machine: a folder that several hosts are said to share is the lease's, whatever disk it is on, and a local one nobody else's.
func TestArbiterHere(t *testing.T) {
	ds, err := Create(t.TempDir(), "images", KeepOwner)
	if err != nil {
		t.Fatal(err)
	}
	defer ds.Close()
	if got, why := ds.Arbiter(true); got != inventory.LeaseArbitrates || why == "" {
		t.Errorf("shared: %s, %q", got, why)
	}
	if got, why := ds.Arbiter(false); got != inventory.StorageArbitrates || why == "" {
		t.Errorf("local: %s, %q", got, why)
	}
}
