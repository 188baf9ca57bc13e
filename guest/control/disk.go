package control

import (
	"context"
	"encoding/binary"
	"strconv"
)

// Disk is one virtio disk of the guest.
type Disk struct {
	Name     string `json:"name"` // vda
	Size     int64  `json:"size"`
	ReadOnly bool   `json:"read_only"`
	SHA256   string `json:"sha256"` // of all that is on it
}

// Seed is what a guest finds on its cloud-init seed. Only what Godwit itself wrote, which is JSON, is read; of all files there is a sum.
type Seed struct {
	Disk     string            `json:"disk"`
	Files    map[string]string `json:"files"` // SHA-256 sums by name
	Instance string            `json:"instance-id"`
	Hostname string            `json:"local-hostname"`
	Keys     []string          `json:"ssh_authorized_keys"`
}

// PatternSize is how much a write to a disk writes.
const PatternSize = 64 << 10

// Pattern is what a guest writes at an offset of a disk: numbers that occur at no other place.
func Pattern(at int64) []byte {
	p := make([]byte, 0, PatternSize)
	for i := int64(0); i < PatternSize; i += 8 {
		p = binary.LittleEndian.AppendUint64(p, uint64(at+i)*0x9e3779b97f4a7c15+1) //nolint:gosec // an offset is not negative
	}
	return p
}

// Disk asks for a disk's size and sum, which an emulated guest reads at some 50 MiB a second.
func (c *Client) Disk(ctx context.Context, name string) (Disk, error) {
	var d Disk
	return d, c.call(ctx, "disk name="+name, &d)
}

// WriteDisk makes the guest write Pattern at an offset, a multiple of 4096, and returns the disk as it is then.
func (c *Client) WriteDisk(ctx context.Context, name string, at int64) (Disk, error) {
	var d Disk
	return d, c.call(ctx, "disk name="+name+" write="+strconv.FormatInt(at, 10), &d)
}

// Seed asks what is on the guest's cloud-init seed.
func (c *Client) Seed(ctx context.Context) (Seed, error) {
	var s Seed
	return s, c.call(ctx, "seed", &s)
}
