package inventory

import "time"

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
