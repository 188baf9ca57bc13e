package qmp

import (
	"context"
	"strings"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// BlockdevAdd opens a node of the block graph (QAPI "BlockdevOptions"); options hold at least driver and node-name. A name that
// is in use is an error of kind fault.Conflict or fault.Invalid with QEMU's own words.
func (c *Conn) BlockdevAdd(ctx context.Context, options map[string]any) error {
	return c.Do(ctx, "blockdev-add", options, nil)
}

// BlockdevDel closes a node that no device and no other node uses any more.
func (c *Conn) BlockdevDel(ctx context.Context, node string) error {
	return c.Do(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
}

// BlockResize makes a node, and the disk of which it is the top, larger; the guest is told.
func (c *Conn) BlockResize(ctx context.Context, node string, size inventory.Bytes) error {
	return c.Do(ctx, "block_resize", map[string]any{"node-name": node, "size": int64(size)}, nil)
}

// BlockSize returns the size of a node as a guest sees it, and false when there is no such node.
func (c *Conn) BlockSize(ctx context.Context, node string) (inventory.Bytes, bool, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			VirtualSize int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := c.Do(ctx, "query-named-block-nodes", nil, &nodes); err != nil {
		return 0, false, err
	}
	for _, n := range nodes {
		if n.Name == node {
			return inventory.Bytes(n.Image.VirtualSize), true, nil
		}
	}
	return 0, false, nil
}

// NetdevAdd makes a network backend (QAPI "Netdev"); options hold at least type and id.
func (c *Conn) NetdevAdd(ctx context.Context, options map[string]any) error {
	return c.Do(ctx, "netdev_add", options, nil)
}

// NetdevDel removes a network backend that no device uses any more.
func (c *Conn) NetdevDel(ctx context.Context, id string) error {
	return c.Do(ctx, "netdev_del", map[string]any{"id": id}, nil)
}

// Peripherals lists the ids of the devices that were given one, on the command line or by DeviceAdd.
func (c *Conn) Peripherals(ctx context.Context) (map[string]bool, error) {
	properties, err := c.QOMList(ctx, "/machine/peripheral")
	ids := map[string]bool{}
	for _, p := range properties {
		if strings.HasPrefix(p.Type, "child<") {
			ids[p.Name] = true
		}
	}
	return ids, err
}

// Device returns the id of the device that a DEVICE_DELETED event is about, "" for one without an id, such as a part of a device.
func (e Event) Device() string {
	var d struct {
		Device string `json:"device"`
	}
	if e.Name != EventDeviceDeleted || e.Decode(&d) != nil {
		return ""
	}
	return d.Device
}
