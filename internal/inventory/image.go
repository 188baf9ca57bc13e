package inventory

import (
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// SeedDisk is the name of a VM's cloud-init seed among its disks. It does not count among DisksMax.
const SeedDisk = "seed"

// Image is a disk image, seed or other file on a datastore, as a host that has mounted it sees it.
type Image struct {
	File      File
	Datastore string // its name
	Format    DiskFormat
	Size      Bytes  // as a guest sees it
	Used      Bytes  // on the datastore
	Backing   File   // the image that it is a thin clone of
	VM        string // name of the VM whose disk it is
	Changed   time.Time
}

// Seed is what cloud-init's NoCloud data source is given (cloud-init documentation, "NoCloud").
type Seed struct {
	SSHKeys       []string
	User          string // that the keys are for; empty: the image's default user
	Hostname      string // empty: the VM's name
	UserData      string // whole; excludes SSHKeys and User
	NetworkConfig string // version 2; empty: DHCP on every NIC
}

// CheckImagePath returns fault.Invalid unless an image may have the path on its datastore. Names that begin with a dot are hidden, and "@" stands
// between a path and its datastore on the command line.
func CheckImagePath(path string) error {
	if err := (File{Path: path}).check(); err != nil {
		return err
	}
	if strings.Contains(path, "@") {
		return fault.New(fault.Invalid, "path %q has an @, which image paths cannot have", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(part, ".") {
			return fault.New(fault.Invalid, "path %q has a part that begins with a dot, which image paths cannot have", path)
		}
	}
	return nil
}
