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
// guest keeps its device names. 0x1 is kept for a display; 0x1f is the chipset's.
const (
	slotPanic  = 0x02
	slotSerial = 0x03
	slotDisk   = 0x08 // to 0x0f: inventory.DisksMax
	slotNIC    = 0x10 // to 0x17: inventory.NICsMax
)

// Env is what a command line needs besides the spec: where things are on this host, and what its QEMU can do.
type Env struct {
	RunDir    RunDir
	Abilities Abilities
	Incoming  bool // wait for a migration stream instead of starting afresh
	// File returns the absolute path of a file on this host. Its error is passed on.
	File func(inventory.File) (string, error)
	// Ports holds, by NIC name, the path of the unix socket of the NIC's switch port. The socket must let QEMU's user connect.
	Ports map[string]string

	monitorFD int // listening socket that QEMU inherits; 0: QEMU makes the socket itself
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
	c.monitor()
	for _, part := range []func() error{c.boot, c.disks, c.nics} {
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
	for _, n := range spec.NICs {
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
// firmware talk to COM1, since there is no screen. vmport and usb are off as no guest of ours needs them.
func (c *commandLine) machine() {
	c.addf("-machine", "%s,usb=off,vmport=off,graphics=off,dump-guest-core=off,memory-backend=ram", c.spec.Machine)
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

// consoles are the serial port and the two virtio-serial ports of Godwit's own guest agent.
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
		c.addf("-blockdev", "driver=file,node-name=disk%d-file,filename=%s,cache.direct=on,cache.no-flush=off,locking=on,aio=%s,discard=unmap",
			i, escape(path), aio)
		c.addf("-blockdev", "driver=%s,node-name=disk%d,file=disk%d-file,cache.direct=on,cache.no-flush=off,discard=unmap", d.Format, i, i)
		boot := ""
		if fromDisk {
			boot = fmt.Sprintf(",bootindex=%d", i+1)
		}
		c.addf("-device", "virtio-blk-pci,id=vd%d,bus=pcie.0,addr=0x%x,drive=disk%d,werror=stop,rerror=stop%s", i, slotDisk+i, i, boot)
	}
	return nil
}

// NICDevice returns the device id of a VM's i-th network card, as QMP commands want it.
func NICDevice(i int) string { return fmt.Sprintf("nic%d", i) }

// NICBackend returns the path of that card's virtio backend in QEMU's object tree.
func NICBackend(i int) string { return fmt.Sprintf("/machine/peripheral/nic%d/virtio-backend", i) }

// nics connects every card to its switch port. romfile= leaves the network boot ROM out: it would have to be the same file on both sides.
func (c *commandLine) nics() error {
	reconnect := ""
	if c.env.Abilities.Has(FeatureReconnect) {
		reconnect = fmt.Sprintf(",reconnect-ms=%d", ReconnectMS)
	}
	for i, n := range c.spec.NICs {
		c.addf("-netdev", "stream,id=net%d,server=off,addr.type=unix,addr.path=%s%s", i, escape(c.env.Ports[n.Name]), reconnect)
		c.addf("-device", "virtio-net-pci,id=nic%d,bus=pcie.0,addr=0x%x,netdev=net%d,mac=%s,romfile=", i, slotNIC+i, i, n.MAC)
	}
	return nil
}
