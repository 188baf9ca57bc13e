package wire

import (
	"reflect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// VM returns the message of a whole VM, usage included.
func VM(vm inventory.VM) *godwitv1.VM {
	return &godwitv1.VM{Id: string(vm.ID), Spec: VMSpec(vm.Spec), Run: VMRun(vm.Run), Status: VMStatus(vm.Status), Place: VMPlace(vm.Place)}
}

// FromVM returns the VM of the message.
func FromVM(m *godwitv1.VM) inventory.VM {
	return inventory.VM{
		ID:     inventory.VMID(m.GetId()),
		Spec:   FromVMSpec(m.GetSpec()),
		Run:    FromVMRun(m.GetRun()),
		Status: FromVMStatus(m.GetStatus()),
		Place:  FromVMPlace(m.GetPlace()),
	}
}

// VMSpec returns the message of what the user asked for.
func VMSpec(s inventory.VMSpec) *godwitv1.VMSpec {
	return &godwitv1.VMSpec{
		Name:     s.Name,
		Uuid:     s.UUID,
		Cpus:     narrow(s.CPUs),
		Memory:   int64(s.Memory),
		Machine:  s.Machine,
		CpuModel: s.CPUModel,
		Disks:    each(s.Disks, Disk),
		Nics:     each(s.NICs, NIC),
		Boot:     Boot(s.Boot),
		Devices:  each(s.Devices, hostDevice),
		Created:  stamp(s.Created),
		Layout:   narrow(s.Layout),
		Display:  s.Display,
		Template: s.Template,
		Request:  s.Request,
	}
}

// FromVMSpec returns the spec of the message.
func FromVMSpec(m *godwitv1.VMSpec) inventory.VMSpec {
	return inventory.VMSpec{
		Name:     m.GetName(),
		UUID:     m.GetUuid(),
		CPUs:     int(m.GetCpus()),
		Memory:   inventory.Bytes(m.GetMemory()),
		Machine:  m.GetMachine(),
		CPUModel: m.GetCpuModel(),
		Disks:    each(m.GetDisks(), FromDisk),
		NICs:     each(m.GetNics(), FromNIC),
		Boot:     FromBoot(m.GetBoot()),
		Devices:  each(m.GetDevices(), fromHostDevice),
		Created:  fromStamp(m.GetCreated()),
		Layout:   int(m.GetLayout()),
		Display:  m.GetDisplay(),
		Template: m.GetTemplate(),
		Request:  m.GetRequest(),
	}
}

// Boot returns the message of what a VM starts from.
func Boot(b inventory.Boot) *godwitv1.Boot {
	return &godwitv1.Boot{
		Firmware: File(b.Firmware), Kernel: File(b.Kernel), Initrd: File(b.Initrd), Cmdline: b.Cmdline, Uefi: b.UEFI, Vars: File(b.Vars),
	}
}

// FromBoot returns what the message starts a VM from.
func FromBoot(m *godwitv1.Boot) inventory.Boot {
	return inventory.Boot{
		Firmware: FromFile(m.GetFirmware()),
		Kernel:   FromFile(m.GetKernel()),
		Initrd:   FromFile(m.GetInitrd()),
		Cmdline:  m.GetCmdline(),
		UEFI:     m.GetUefi(),
		Vars:     FromFile(m.GetVars()),
	}
}

// File returns the message of a file on a datastore, nil when no file is meant.
func File(f inventory.File) *godwitv1.File {
	if f.IsZero() {
		return nil
	}
	return &godwitv1.File{Datastore: string(f.Datastore), Path: f.Path}
}

// FromFile returns the file of the message.
func FromFile(m *godwitv1.File) inventory.File {
	return inventory.File{Datastore: inventory.DatastoreID(m.GetDatastore()), Path: m.GetPath()}
}

// Disk returns the message of a disk.
func Disk(d inventory.Disk) *godwitv1.Disk {
	return &godwitv1.Disk{
		Name: d.Name, File: File(d.File), Format: string(d.Format), Size: int64(d.Size), ReadOnly: d.ReadOnly, Port: narrow(d.Port),
	}
}

// FromDisk returns the disk of the message.
func FromDisk(m *godwitv1.Disk) inventory.Disk {
	return inventory.Disk{
		Name:     m.GetName(),
		File:     FromFile(m.GetFile()),
		Format:   inventory.DiskFormat(m.GetFormat()),
		Size:     inventory.Bytes(m.GetSize()),
		ReadOnly: m.GetReadOnly(),
		Port:     int(m.GetPort()),
	}
}

// NIC returns the message of a virtual network card.
func NIC(n inventory.NIC) *godwitv1.NIC {
	return &godwitv1.NIC{Name: n.Name, Mac: n.MAC, Network: string(n.Network), Port: narrow(n.Port)}
}

// FromNIC returns the virtual network card of the message.
func FromNIC(m *godwitv1.NIC) inventory.NIC {
	return inventory.NIC{
		Name: m.GetName(), MAC: m.GetMac(), Network: inventory.NetworkID(m.GetNetwork()), Port: int(m.GetPort()),
	}
}

func hostDevice(d inventory.HostDevice) *godwitv1.HostDevice {
	return &godwitv1.HostDevice{Host: string(d.Host), Address: d.Address}
}

func fromHostDevice(m *godwitv1.HostDevice) inventory.HostDevice {
	return inventory.HostDevice{Host: inventory.HostID(m.GetHost()), Address: m.GetAddress()}
}

// VMRun returns the message of who may run a VM.
func VMRun(r inventory.VMRun) *godwitv1.VMRun {
	m := &godwitv1.VMRun{
		Owner:      string(r.Owner),
		Generation: uint64(r.Generation),
		Wanted:     power(r.Wanted),
		Restored:   uint64(r.Restored),
		GivenUp:    uint64(r.GivenUp),
	}
	if !r.Heir.IsZero() {
		m.Heir = &godwitv1.Heir{
			Host:       string(r.Heir.Host),
			Generation: uint64(r.Heir.Generation),
			Migration:  string(r.Heir.Migration),
			BootId:     r.Heir.BootID,
		}
	}
	return m
}

// FromVMRun returns who may run the VM according to the message.
func FromVMRun(m *godwitv1.VMRun) inventory.VMRun {
	return inventory.VMRun{
		Owner:      inventory.HostID(m.GetOwner()),
		Generation: inventory.Generation(m.GetGeneration()),
		Heir: inventory.Heir{
			Host:       inventory.HostID(m.GetHeir().GetHost()),
			Generation: inventory.Generation(m.GetHeir().GetGeneration()),
			Migration:  inventory.MigrationID(m.GetHeir().GetMigration()),
			BootID:     m.GetHeir().GetBootId(),
		},
		Wanted:   fromPower(m.GetWanted()),
		Restored: inventory.Generation(m.GetRestored()),
		GivenUp:  inventory.Generation(m.GetGivenUp()),
	}
}

func power(p inventory.Power) godwitv1.Power {
	switch p {
	case inventory.PowerOn:
		return godwitv1.Power_POWER_ON
	case inventory.PowerOff:
		return godwitv1.Power_POWER_OFF
	default:
		return godwitv1.Power_POWER_UNSPECIFIED
	}
}

// fromPower reads everything but "on" as off: a wish that this version does not understand starts nothing.
func fromPower(p godwitv1.Power) inventory.Power {
	if p == godwitv1.Power_POWER_ON {
		return inventory.PowerOn
	}
	return inventory.PowerOff
}

// VMStatus returns the message of how a VM is.
func VMStatus(s inventory.VMStatus) *godwitv1.VMStatus {
	m := &godwitv1.VMStatus{
		State:  s.State.String(),
		Host:   string(s.Host),
		Pid:    narrow(s.PID),
		Since:  stamp(s.Since),
		Detail: s.Detail,
	}
	if s.Heartbeat != (inventory.Heartbeat{}) {
		m.Heartbeat = &godwitv1.Heartbeat{
			Count:  s.Heartbeat.Count,
			Uptime: span(s.Heartbeat.Uptime),
			BootId: s.Heartbeat.BootID,
			Ip:     s.Heartbeat.IP,
			Seen:   stamp(s.Heartbeat.Seen),
		}
	}
	if s.Usage != (inventory.Usage{}) {
		m.Usage = &godwitv1.Usage{Cpu: span(s.Usage.CPU), Resident: int64(s.Usage.Resident)}
	}
	m.Guest = guest(s.Guest)
	return m
}

// guest returns the message of what a guest says of itself, nil when it says nothing.
func guest(g inventory.Guest) *godwitv1.Guest {
	if reflect.DeepEqual(g, inventory.Guest{}) {
		return nil
	}
	return &godwitv1.Guest{
		Agent: g.Agent, Version: g.Version, Hostname: g.Hostname, System: g.System, Seen: stamp(g.Seen),
		Nics: each(g.NICs, func(n inventory.GuestNIC) *godwitv1.GuestNIC {
			return &godwitv1.GuestNIC{Name: n.Name, Mac: n.MAC, Addresses: texts(n.Addresses)}
		}),
	}
}

func fromGuest(m *godwitv1.Guest) inventory.Guest {
	return inventory.Guest{
		Agent: m.GetAgent(), Version: m.GetVersion(), Hostname: m.GetHostname(), System: m.GetSystem(), Seen: fromStamp(m.GetSeen()),
		NICs: each(m.GetNics(), func(n *godwitv1.GuestNIC) inventory.GuestNIC {
			return inventory.GuestNIC{Name: n.GetName(), MAC: n.GetMac(), Addresses: ids[string](n.GetAddresses())}
		}),
	}
}

// FromVMStatus returns how the VM of the message is. An empty state is Stopped, one that this version does not know is
// Unknown.
func FromVMStatus(m *godwitv1.VMStatus) inventory.VMStatus {
	hb, usage := m.GetHeartbeat(), m.GetUsage()
	return inventory.VMStatus{
		State:  fromVMState(m.GetState()),
		Host:   inventory.HostID(m.GetHost()),
		PID:    int(m.GetPid()),
		Since:  fromStamp(m.GetSince()),
		Detail: m.GetDetail(),
		Heartbeat: inventory.Heartbeat{
			Count:  hb.GetCount(),
			Uptime: fromSpan(hb.GetUptime()),
			BootID: hb.GetBootId(),
			IP:     hb.GetIp(),
			Seen:   fromStamp(hb.GetSeen()),
		},
		Usage: inventory.Usage{CPU: fromSpan(usage.GetCpu()), Resident: inventory.Bytes(usage.GetResident())},
		Guest: fromGuest(m.GetGuest()),
	}
}

func fromVMState(name string) inventory.VMState {
	if name == "" {
		return inventory.Stopped
	}
	for s := range inventory.Unknown {
		if s.String() == name {
			return s
		}
	}
	return inventory.Unknown
}

// VMPlace returns the message of what the leader says of a VM.
func VMPlace(p inventory.VMPlace) *godwitv1.VMPlace {
	if p == (inventory.VMPlace{}) {
		return nil
	}
	m := &godwitv1.VMPlace{Blocked: p.Blocked, Since: stamp(p.Since), Restarts: p.Restarts}
	if r := p.Restart; r != (inventory.Restart{}) {
		m.Restart = &godwitv1.Restart{Generation: uint64(r.Generation), From: string(r.From), Why: r.Why, At: stamp(r.At)}
	}
	return m
}

// FromVMPlace returns what the leader says of a VM according to the message.
func FromVMPlace(m *godwitv1.VMPlace) inventory.VMPlace {
	r := m.GetRestart()
	return inventory.VMPlace{Blocked: m.GetBlocked(), Since: fromStamp(m.GetSince()), Restarts: m.GetRestarts(), Restart: inventory.Restart{
		Generation: inventory.Generation(r.GetGeneration()), From: inventory.HostID(r.GetFrom()), Why: r.GetWhy(), At: fromStamp(r.GetAt()),
	}}
}
