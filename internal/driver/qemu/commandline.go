package qemu

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// ReconnectMS is how long QEMU waits, in milliseconds, before it tries again to reach a switch that is gone.
const ReconnectMS = 200

// Slots on the root bus. They never change and never depend on what else a VM has, so source and target agree, and a
// guest keeps its device names. 0x1f is the chipset's.
const (
	slotDisplay = 0x01
	slotPanic   = 0x02
	slotSerial  = 0x03
	slotPointer = 0x05
	slotHot     = 0x07 // all functions: the root ports of inventory.LayoutPorts
	slotDisk    = 0x08 // to 0x0f: inventory.DisksMax
	slotNIC     = 0x10 // to 0x17: inventory.NICsMax
	slotSeed    = 0x18 // the disk named SeedDisk, behind the others: the guest's first disk is disk0
)

// SeedDisk is the name of a VM's cloud-init seed among its disks. It has a slot and a block node of its own.
const SeedDisk = inventory.SeedDisk

// Env is what a command line needs besides the spec: where things are on this host, and what its QEMU can do.
type Env struct {
	RunDir    RunDir
	Abilities Abilities
	Incoming  bool // wait for a migration stream instead of starting afresh
	// File returns the absolute path of a file on this host. Its error is passed on.
	File func(inventory.File) (string, error)
	// Firmware is the host's UEFI firmware; it is needed for a spec with UEFI only.
	Firmware Firmware
	// Ports holds, by NIC name, the path of the unix socket of the NIC's switch port. The socket must let QEMU's user connect.
	Ports map[string]string
	// Taps holds, by NIC name, the taps of the NICs that are on a Linux bridge; those have no entry in Ports.
	Taps map[string]Tap

	monitorFD int // listening socket that QEMU inherits; 0: QEMU makes the socket itself
}

// Tap is a NIC's tap as QEMU has it: open files that it inherits (Config.Files), by their numbers there.
type Tap struct {
	FD      int
	VhostFD int // of /dev/vhost-net; 0: QEMU carries the frames itself
	MTU     int // that the guest is told; 0: its own default. It is a part of the machine: the same on source and target
}

// Firmware is a build of UEFI firmware (OVMF): its code, which all VMs share, and the template of a VM's own variables.
type Firmware struct {
	Code string // absolute path of a raw image
	Vars string // absolute path of a raw image, as large as a VM's copy must be

	CodeSize, VarsSize inventory.Bytes // both decide whether a VM of another build can run here
}

// machineRE matches the versioned machine types whose slots are laid out above.
var machineRE = regexp.MustCompile(`^pc-q35-[0-9]+\.[0-9]+$`)

// cpuRE matches names of CPU models. Flags may follow: "Westmere,+aes". It keeps options of other parts of the command line out.
var cpuRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(,[+-]?[A-Za-z0-9][A-Za-z0-9._=-]*)*$`)

// CommandLine returns the arguments of the QEMU that runs the VM, without the binary. It is pure: same spec and env, same
// arguments. Source and target of a migration call it with the same spec and get the same guest-visible machine; only paths and host-side
// abilities may differ. Errors: fault.Invalid with every reason if the spec cannot be run, what env.File returns, and
// fault.Incompatible for a device that this version cannot give to a VM.
func CommandLine(spec inventory.VMSpec, env Env) ([]string, error) {
	if err := checkSpec(spec, env); err != nil {
		return nil, fault.Wrap("command line", "vm "+spec.Name, err)
	}
	c := &commandLine{spec: spec, env: env}
	c.process()
	c.machine()
	c.consoles()
	c.display()
	c.hotPorts()
	c.monitor()
	for _, part := range []func() error{c.boot, c.uefi, c.disks, c.nics} {
		if err := part(); err != nil {
			return nil, fault.Wrap("command line", "vm "+spec.Name, err)
		}
	}
	if env.Incoming {
		c.add("-incoming", "defer")
	}
	return c.args, nil
}

// checkSpec lists what CommandLine cannot express, beyond what the spec itself finds.
func checkSpec(spec inventory.VMSpec, env Env) error {
	bad := spec.Problems()
	if !machineRE.MatchString(spec.Machine) {
		bad = append(bad, fmt.Sprintf("machine %q is not a versioned q35 type: take one like pc-q35-10.0", spec.Machine))
	}
	if !cpuRE.MatchString(spec.CPUModel) {
		bad = append(bad, fmt.Sprintf("cpu model %q is not usable: take a name that godwit host info lists, like Westmere", spec.CPUModel))
	}
	if spec.UUID == "" {
		bad = append(bad, "it has no UUID")
	}
	if a := env.Abilities.Accelerator; a != KVM && a != TCG {
		bad = append(bad, fmt.Sprintf("accelerator %q is unknown: kvm or tcg", a))
	}
	if err := env.RunDir.check(); err != nil {
		bad = append(bad, err.Error())
	}
	if spec.Boot.UEFI && env.Firmware.Code == "" {
		bad = append(bad, "this host has no UEFI firmware: install the ovmf package")
	}
	for _, d := range spec.Disks {
		if d.Name != SeedDisk && (d.Number() < 0 || d.Number() >= inventory.DisksMax+inventory.HotPortsMax) {
			bad = append(bad, fmt.Sprintf("disk name %q has no number that a slot could be given to", d.Name))
		}
	}
	for _, n := range spec.NICs {
		if n.Number() < 0 || n.Number() >= inventory.NICsMax+inventory.HotPortsMax {
			bad = append(bad, fmt.Sprintf("nic name %q has no number that a slot could be given to", n.Name))
		}
		if tap, ok := env.Taps[n.Name]; ok {
			if tap.FD < FirstFile || tap.VhostFD != 0 && tap.VhostFD < FirstFile {
				bad = append(bad, fmt.Sprintf("nic %s: a tap's descriptors begin at %d", n.Name, FirstFile))
			}
			continue
		}
		path := env.Ports[n.Name]
		if path == "" {
			bad = append(bad, fmt.Sprintf("nic %s has no switch port", n.Name))
		} else if err := checkSocket(path); err != nil {
			bad = append(bad, fmt.Sprintf("nic %s: %v", n.Name, err))
		}
	}
	if err := fault.Refuse(fault.Invalid, bad); err != nil {
		return err
	}
	if len(spec.Devices) > 0 {
		return fault.New(fault.Incompatible, "host device %s cannot be given to a VM by this version", spec.Devices[0].Address)
	}
	return nil
}

// commandLine collects arguments.
type commandLine struct {
	spec inventory.VMSpec
	env  Env
	args []string
}

func (c *commandLine) add(args ...string) { c.args = append(c.args, args...) }

// addf adds an option with a formatted value; paths in it must have gone through escape.
func (c *commandLine) addf(option, format string, args ...any) {
	c.add(option, fmt.Sprintf(format, args...))
}

// escape doubles commas, as QEMU's key=value parser wants them (qemu(1), "-drive").
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// process is what the process is, before any hardware.
func (c *commandLine) process() {
	c.addf("-name", "guest=%s,debug-threads=on", escape(c.spec.Name))
	c.add("-uuid", c.spec.UUID)
	c.add("-nodefaults", "-no-user-config", "-display", "none", "-S", "-msg", "timestamp=on")
	if c.env.Abilities.Has(FeatureSandbox) {
		c.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
}

// machine is board, CPU and memory. The memory is a memfd that QEMU could share with another process. graphics=off makes the
// firmware talk to COM1 where there is no screen. vmport and usb are off as no guest of ours needs them.
func (c *commandLine) machine() {
	flags := ",graphics=off"
	if c.spec.Display {
		flags = ""
	}
	if c.spec.Boot.UEFI {
		flags += ",pflash0=uefi-code,pflash1=uefi-vars"
	}
	c.addf("-machine", "%s,usb=off,vmport=off%s,dump-guest-core=off,memory-backend=ram", c.spec.Machine, flags)
	if c.env.Abilities.Accelerator == KVM {
		c.add("-accel", "kvm")
	} else {
		c.add("-accel", "tcg,thread=multi")
	}
	c.addf("-cpu", "%s,enforce", c.spec.CPUModel)
	c.addf("-smp", "cpus=%d,sockets=1,cores=%d,threads=1", c.spec.CPUs, c.spec.CPUs)
	mib := int64(c.spec.Memory / inventory.MiB)
	c.addf("-m", "size=%dM", mib)
	c.addf("-object", "memory-backend-memfd,id=ram,size=%dM,share=on", mib)
	c.add("-rtc", "base=utc")
	// A guest that powers itself off or panics stays as it is until the agent has seen it; a reboot is the guest's own affair.
	c.add("-action", "panic=pause,shutdown=pause,reboot=reset")
	c.addf("-device", "pvpanic-pci,id=panic,bus=pcie.0,addr=0x%x", slotPanic)
}

// consoles are the serial port, the two virtio-serial ports of Godwit's own guest agent, and the one of qemu-guest-agent.
func (c *commandLine) consoles() {
	socket := func(id, path string) {
		c.addf("-chardev", "socket,id=%s,path=%s,server=on,wait=off", id, escape(path))
	}
	socket("serial", c.env.RunDir.Serial())
	c.add("-device", "isa-serial,id=com1,index=0,chardev=serial")
	c.addf("-device", "virtio-serial-pci,id=ports,bus=pcie.0,addr=0x%x,max_ports=4", slotSerial)
	socket("heartbeat", c.env.RunDir.Heartbeat())
	c.addf("-device", "virtserialport,id=port1,bus=ports.0,nr=1,chardev=heartbeat,name=%s", HeartbeatPort)
	socket("control", c.env.RunDir.Control())
	c.addf("-device", "virtserialport,id=port2,bus=ports.0,nr=2,chardev=control,name=%s", ControlPort)
	if c.spec.Layout >= inventory.LayoutPorts {
		socket(AgentChardev, c.env.RunDir.Agent())
		c.addf("-device", "virtserialport,id=%s,bus=ports.0,nr=3,chardev=%s,name=%s", AgentDevice, AgentChardev, AgentPort)
	}
}

// displayROM is the size of the memory that the VGA BIOS is in. It is said, so that a source and a target whose VGA BIOS differ in
// length agree: its content moves with the VM. Without a VGA BIOS (romfile=) a BIOS shows nothing at all (seen with QEMU 7.2 and 10.0).
const displayROM = 64 << 10

// display is a plain VGA adapter, which every firmware and system can drive, with a pointer that needs no grabbing (a guest without
// a driver for it has the PS/2 mouse). VNC listens on a unix socket of the run directory only: its protocol has no protection worth
// the name (RFC 6143, section 7.2). Viewers share whatever they ask for: one that asks to be alone must
// neither cut off the others (allow-exclusive) nor be turned away (force-shared).
func (c *commandLine) display() {
	if !c.spec.Display {
		return
	}
	c.addf("-device", "VGA,id=display,bus=pcie.0,addr=0x%x,romsize=%d,vgamem_mb=16", slotDisplay, displayROM)
	c.addf("-device", "virtio-tablet-pci,id=pointer,bus=pcie.0,addr=0x%x", slotPointer)
	c.addf("-vnc", "unix:%s,share=ignore", escape(c.env.RunDir.Display()))
}

// hotPorts are the root ports that devices can be plugged into while the VM runs; the root bus itself takes none (QEMU,
// docs/pcie.txt, section 5). They reserve no I/O space: 64 KiB of it are not enough for many ports, and virtio needs none behind one.
func (c *commandLine) hotPorts() {
	if c.spec.Layout < inventory.LayoutPorts {
		return
	}
	for i := range inventory.HotPortsMax {
		multi := ""
		if i == 0 {
			multi = ",multifunction=on"
		}
		c.addf("-device", "pcie-root-port,id=%s,bus=pcie.0,addr=0x%x.0x%x%s,chassis=%d,slot=%d,io-reserve=0", hotPort(i+1), slotHot, i, multi, i+1, i+1)
	}
}

// hotPort returns the device id of the n-th hot-plug port, from 1; it is the name of its bus too.
func hotPort(n int) string { return fmt.Sprintf("hot%d", n) }

// where returns the bus and the address on it of a device in a hot-plug port, or in a fixed slot when port is 0.
func where(port, slot int) string {
	if port > 0 {
		return fmt.Sprintf("bus=%s,addr=0x0", hotPort(port))
	}
	return fmt.Sprintf("bus=pcie.0,addr=0x%x", slot)
}

func (c *commandLine) monitor() {
	if c.env.monitorFD > 0 {
		c.addf("-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", c.env.monitorFD)
	} else {
		c.addf("-chardev", "socket,id=qmp,path=%s,server=on,wait=off", escape(c.env.RunDir.Monitor()))
	}
	c.add("-mon", "chardev=qmp,mode=control")
}

// boot is where the guest comes from: a firmware image of its own, a kernel, or the first disk. Strict: never anything else.
func (c *commandLine) boot() error {
	file := func(option string, f inventory.File) error {
		path, err := c.env.File(f)
		if err == nil {
			c.add(option, path)
		}
		return err
	}
	b := c.spec.Boot
	if !b.Firmware.IsZero() {
		return file("-bios", b.Firmware)
	}
	if b.Kernel.IsZero() {
		c.add("-boot", "strict=on")
		return nil
	}
	if err := file("-kernel", b.Kernel); err != nil {
		return err
	}
	if !b.Initrd.IsZero() {
		if err := file("-initrd", b.Initrd); err != nil {
			return err
		}
	}
	if b.Cmdline != "" {
		c.add("-append", b.Cmdline)
	}
	return nil
}

// disks opens every image with O_DIRECT, so that the target of a migration never reads what its page cache remembers, and
// with QEMU's locks on. The format is said, never probed: a guest could write a foreign header into a raw image. An I/O
// error stops the VM rather than reach the guest: a datastore that comes back should find file systems still writable.
func (c *commandLine) disks() error {
	aio := "threads"
	if c.env.Abilities.Has(FeatureIOUring) {
		aio = "io_uring"
	}
	fromDisk := c.spec.Boot.Kernel.IsZero() && c.spec.Boot.Firmware.IsZero()
	for i, d := range c.spec.Disks {
		path, err := c.env.File(d.File)
		if err != nil {
			return fault.Wrap("", "disk "+d.Name, err)
		}
		node, readOnly, boot := DiskNode(d), "", ""
		if d.ReadOnly {
			readOnly = ",read-only=on"
		}
		c.addf("-blockdev", "driver=file,node-name=%s-file,filename=%s,cache.direct=on,cache.no-flush=off,locking=on,aio=%s,discard=unmap%s",
			node, escape(path), aio, readOnly)
		c.addf("-blockdev", "driver=%s,node-name=%s,file=%s-file,cache.direct=on,cache.no-flush=off,discard=unmap%s", d.Format, node, node, readOnly)
		if fromDisk && d.Name != SeedDisk {
			boot = fmt.Sprintf(",bootindex=%d", i+1)
		}
		slot := slotSeed
		if d.Name != SeedDisk {
			slot = slotDisk + d.Number()
		}
		c.addf("-device", "virtio-blk-pci,id=%s,%s,drive=%s,werror=stop,rerror=stop%s", DiskDevice(d), where(d.Port, slot), node, boot)
	}
	return nil
}

// uefi is the firmware's code and the VM's own variables, in two flash chips. Their nodes are opened like disks: the variables
// belong to one running VM only.
func (c *commandLine) uefi() error {
	if !c.spec.Boot.UEFI {
		return nil
	}
	vars, err := c.env.File(c.spec.Boot.Vars)
	if err != nil {
		return fault.Wrap("", "UEFI variables", err)
	}
	c.addf("-blockdev", "driver=file,node-name=uefi-code-file,filename=%s,read-only=on", escape(c.env.Firmware.Code))
	c.add("-blockdev", "driver=raw,node-name=uefi-code,file=uefi-code-file,read-only=on")
	c.addf("-blockdev", "driver=file,node-name=uefi-vars-file,filename=%s,locking=on", escape(vars))
	c.add("-blockdev", "driver=raw,node-name=uefi-vars,file=uefi-vars-file")
	return nil
}

// DiskDevice returns the device id of a disk, as QMP commands want it.
func DiskDevice(d inventory.Disk) string {
	if d.Name == SeedDisk {
		return "vdseed"
	}
	return fmt.Sprintf("vd%d", d.Number())
}

// DiskNode returns the name of a disk's top block node. The node of its file is called the same with "-file" behind it.
func DiskNode(d inventory.Disk) string { return d.Name }

// NICDevice returns the device id of the network card of that number, as QMP commands want it.
func NICDevice(number int) string { return fmt.Sprintf("nic%d", number) }

// NICBackend returns the path of that card's virtio backend in QEMU's object tree.
func NICBackend(number int) string {
	return fmt.Sprintf("/machine/peripheral/nic%d/virtio-backend", number)
}

// nics connects every card to its switch port or tap. romfile= leaves the network boot ROM out: it would have to be the same file on both sides.
func (c *commandLine) nics() error {
	reconnect := ""
	if c.env.Abilities.Has(FeatureReconnect) {
		reconnect = fmt.Sprintf(",reconnect-ms=%d", ReconnectMS)
	}
	for _, n := range c.spec.NICs {
		i, mtu := n.Number(), ""
		if tap, ok := c.env.Taps[n.Name]; ok {
			vhost := ""
			if tap.VhostFD > 0 {
				vhost = fmt.Sprintf(",vhost=on,vhostfd=%d", tap.VhostFD)
			}
			c.addf("-netdev", "tap,id=%s,fd=%d%s", nicNetdev(n), tap.FD, vhost)
			if tap.MTU > 0 {
				mtu = fmt.Sprintf(",host_mtu=%d", tap.MTU)
			}
		} else {
			c.addf("-netdev", "stream,id=%s,server=off,addr.type=unix,addr.path=%s%s", nicNetdev(n), escape(c.env.Ports[n.Name]), reconnect)
		}
		c.addf("-device", "virtio-net-pci,id=%s,%s,netdev=%s,mac=%s,romfile=%s", NICDevice(i), where(n.Port, slotNIC+i), nicNetdev(n), n.MAC, mtu)
	}
	return nil
}
