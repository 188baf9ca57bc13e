package qmp

import (
	"context"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// BlockNode is a node of QEMU's block graph (QAPI "BlockDeviceInfo").
type BlockNode struct {
	Name     string `json:"node-name"`
	Driver   string `json:"drv"`
	File     string `json:"file"`
	ReadOnly bool   `json:"ro"`
	Active   *bool  `json:"active"` // false: inactive, holds no lock; nil: this QEMU does not say (before 10.0)
	Cache    struct {
		Direct bool `json:"direct"`
	} `json:"cache"`
}

// BlockNodes lists the named nodes of the block graph.
func (c *Conn) BlockNodes(ctx context.Context) ([]BlockNode, error) {
	var nodes []BlockNode
	err := c.Do(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	return nodes, err
}

// BlockDevice is a disk as the guest sees it (QAPI "BlockInfo").
type BlockDevice struct {
	Device   string     `json:"device"` // empty for -blockdev
	QOMPath  string     `json:"qdev"`
	Inserted *BlockNode `json:"inserted"`
	IOStatus string     `json:"io-status"` // "ok", "failed", "nospace"
}

// BlockDevices lists the guest's disks.
func (c *Conn) BlockDevices(ctx context.Context) ([]BlockDevice, error) {
	var devices []BlockDevice
	err := c.Do(ctx, "query-block", nil, &devices)
	return devices, err
}

// BlockStats is what a disk has done since QEMU started.
type BlockStats struct {
	QOMPath string `json:"qdev"`
	Node    string `json:"node-name"`
	Stats   struct {
		ReadBytes    int64 `json:"rd_bytes"`
		WrittenBytes int64 `json:"wr_bytes"`
		Reads        int64 `json:"rd_operations"`
		Writes       int64 `json:"wr_operations"`
		Flushes      int64 `json:"flush_operations"`
		ReadNS       int64 `json:"rd_total_time_ns"`
		WriteNS      int64 `json:"wr_total_time_ns"`
		FailedReads  int64 `json:"failed_rd_operations"`
		FailedWrites int64 `json:"failed_wr_operations"`
	} `json:"stats"`
}

// BlockStats returns the figures of all disks.
func (c *Conn) BlockStats(ctx context.Context) ([]BlockStats, error) {
	var stats []BlockStats
	err := c.Do(ctx, "query-blockstats", nil, &stats)
	return stats, err
}

// CharDevice is a character device (QAPI "ChardevInfo").
type CharDevice struct {
	ID       string `json:"label"`
	Filename string `json:"filename"`
	Open     bool   `json:"frontend-open"` // the guest's side
}

// CharDevices lists the character devices.
func (c *Conn) CharDevices(ctx context.Context) ([]CharDevice, error) {
	var devices []CharDevice
	err := c.Do(ctx, "query-chardev", nil, &devices)
	return devices, err
}

// CPU is a vCPU of the running VM.
type CPU struct {
	Index    int    `json:"cpu-index"`
	QOMPath  string `json:"qom-path"`
	ThreadID int    `json:"thread-id"`
}

// CPUs lists the vCPUs and their threads without disturbing them.
func (c *Conn) CPUs(ctx context.Context) ([]CPU, error) {
	var cpus []CPU
	err := c.Do(ctx, "query-cpus-fast", nil, &cpus)
	return cpus, err
}

// CPUModel is a CPU model as this QEMU, accelerator and host know it (QAPI "CpuDefinitionInfo").
type CPUModel struct {
	Name          string   `json:"name"`
	AliasOf       string   `json:"alias-of"`
	MigrationSafe bool     `json:"migration-safe"`
	Static        bool     `json:"static"`
	Deprecated    bool     `json:"deprecated"`
	Unavailable   []string `json:"unavailable-features"` // empty: enforce would accept it here
}

// CPUModels lists the CPU models.
func (c *Conn) CPUModels(ctx context.Context) ([]CPUModel, error) {
	var models []CPUModel
	err := c.Do(ctx, "query-cpu-definitions", nil, &models)
	return models, err
}

// ExpandCPUModel returns the properties of a model. Static gives a base model and what differs from it, the form to store; else every property is given.
func (c *Conn) ExpandCPUModel(ctx context.Context, model string, static bool) (name string, props map[string]any, err error) {
	kind := "full"
	if static {
		kind = "static"
	}
	var r struct {
		Model struct {
			Name  string         `json:"name"`
			Props map[string]any `json:"props"`
		} `json:"model"`
	}
	err = c.Do(ctx, "query-cpu-model-expansion", map[string]any{"type": kind, "model": map[string]any{"name": model}}, &r)
	return r.Model.Name, r.Model.Props, err
}

// QOMGet reads a property of QEMU's object tree into result.
func (c *Conn) QOMGet(ctx context.Context, path, property string, result any) error {
	return c.Do(ctx, "qom-get", map[string]any{"path": path, "property": property}, result)
}

// QOMProperty is one property of an object.
type QOMProperty struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// QOMList lists the properties of the object at path.
func (c *Conn) QOMList(ctx context.Context, path string) ([]QOMProperty, error) {
	var list []QOMProperty
	err := c.Do(ctx, "qom-list", map[string]any{"path": path}, &list)
	return list, err
}

// DeviceAdd plugs a device in; properties hold at least driver and id.
func (c *Conn) DeviceAdd(ctx context.Context, properties map[string]any) error {
	return c.Do(ctx, "device_add", properties, nil)
}

// DeviceDel asks the guest to let go of a device; the DEVICE_DELETED event says when it has.
func (c *Conn) DeviceDel(ctx context.Context, id string) error {
	return c.Do(ctx, "device_del", map[string]any{"id": id}, nil)
}

// ObjectTypes lists the types of QEMU's object model that implement the named one ("device": all that -device can make).
func (c *Conn) ObjectTypes(ctx context.Context, implements string) (map[string]bool, error) {
	var list []struct {
		Name string `json:"name"`
	}
	err := c.Do(ctx, "qom-list-types", map[string]any{"implements": implements}, &list)
	names := make(map[string]bool, len(list))
	for _, l := range list {
		names[l.Name] = true
	}
	return names, err
}

// DeviceProperties lists the properties that -device typename takes.
func (c *Conn) DeviceProperties(ctx context.Context, typename string) (map[string]bool, error) {
	var list []struct {
		Name string `json:"name"`
	}
	err := c.Do(ctx, "device-list-properties", map[string]any{"typename": typename}, &list)
	names := make(map[string]bool, len(list))
	for _, l := range list {
		names[l.Name] = true
	}
	return names, err
}

// GetFD gives QEMU a duplicate of file under name, for "fd:name" addresses; a name in use is replaced. The file stays the caller's.
func (c *Conn) GetFD(ctx context.Context, name string, file *os.File) error {
	if _, ok := c.conn.(*net.UnixConn); !ok {
		return fault.Wrap("qmp", "getfd", fault.New(fault.Invalid, "a file can only be passed over a unix socket"))
	}
	dup, err := duplicate(file)
	if err != nil {
		return fault.Wrap("qmp", "getfd", fault.New(fault.Internal, "%w", err))
	}
	return c.do(ctx, "getfd", map[string]any{"fdname": name}, dup, nil)
}

// AddFD gives QEMU a duplicate of file, which commands that take a file name can then use as "/dev/fdset/N" with the returned number,
// if they open it with file's own access mode. RemoveFD takes it away again.
func (c *Conn) AddFD(ctx context.Context, file *os.File) (set int, err error) {
	if _, ok := c.conn.(*net.UnixConn); !ok {
		return 0, fault.Wrap("qmp", "add-fd", fault.New(fault.Invalid, "a file can only be passed over a unix socket"))
	}
	dup, err := duplicate(file)
	if err != nil {
		return 0, fault.Wrap("qmp", "add-fd", fault.New(fault.Internal, "%w", err))
	}
	var added struct {
		Set int `json:"fdset-id"`
	}
	err = c.do(ctx, "add-fd", map[string]any{}, dup, &added)
	return added.Set, err
}

// RemoveFD takes away what AddFD gave.
func (c *Conn) RemoveFD(ctx context.Context, set int) error {
	return c.Do(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil)
}

// Screendump writes a picture of the first display to the file, as PNG (QEMU 7.1 on).
func (c *Conn) Screendump(ctx context.Context, file string) error {
	return c.Do(ctx, "screendump", map[string]any{"filename": file, "format": "png"}, nil)
}

// duplicate returns a file of its own over the same open file, so that a call that was given up but not yet sent does not depend on the caller's.
func duplicate(file *os.File) (*os.File, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}
