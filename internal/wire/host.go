package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Host returns the message of a whole host. Whether it is connected is filled in by the face that answers.
func Host(h inventory.Host) *godwitv1.Host {
	return &godwitv1.Host{Id: string(h.ID), Spec: HostSpec(h.Spec), Status: HostStatus(h.Status), Standing: HostStanding(h.Standing)}
}

// FromHost returns the host of the message.
func FromHost(m *godwitv1.Host) inventory.Host {
	return inventory.Host{
		ID:     inventory.HostID(m.GetId()),
		Spec:   FromHostSpec(m.GetSpec()),
		Status: FromHostStatus(m.GetStatus()),

		Standing: FromHostStanding(m.GetStanding()),
	}
}

// HostSpec returns the message of what a host says of itself.
func HostSpec(s inventory.HostSpec) *godwitv1.HostSpec {
	return &godwitv1.HostSpec{
		Address:    s.Address,
		Trunk:      s.Trunk,
		Version:    s.Version,
		Cpus:       narrow(s.CPUs),
		Memory:     int64(s.Memory),
		Epoch:      s.Epoch,
		Qemu:       QEMU(s.QEMU),
		Datastores: each(s.Datastores, datastoreMount),
		Networks:   texts(s.Networks),
		NetworkAll: s.NetworkAll,
		Uefi:       uefi(s.UEFI),
		Witness:    s.Witness, StoreClient: s.StoreClient, StorePeer: s.StorePeer,
		NetworksMissing: each(s.Missing, func(n inventory.NetworkMissing) *godwitv1.NetworkMissing {
			return &godwitv1.NetworkMissing{Network: string(n.Network), Why: n.Why}
		}),
	}
}

// FromHostSpec returns what the host of the message says of itself.
func FromHostSpec(m *godwitv1.HostSpec) inventory.HostSpec {
	return inventory.HostSpec{
		Address:    m.GetAddress(),
		Trunk:      m.GetTrunk(),
		Version:    m.GetVersion(),
		CPUs:       int(m.GetCpus()),
		Memory:     inventory.Bytes(m.GetMemory()),
		Epoch:      m.GetEpoch(),
		QEMU:       FromQEMU(m.GetQemu()),
		Datastores: each(m.GetDatastores(), fromDatastoreMount),
		Networks:   ids[inventory.NetworkID](m.GetNetworks()),
		NetworkAll: m.GetNetworkAll(),
		UEFI:       fromUEFI(m.GetUefi()),
		Witness:    m.GetWitness(), StoreClient: m.GetStoreClient(), StorePeer: m.GetStorePeer(),
		Missing: each(m.GetNetworksMissing(), func(n *godwitv1.NetworkMissing) inventory.NetworkMissing {
			return inventory.NetworkMissing{Network: inventory.NetworkID(n.GetNetwork()), Why: n.GetWhy()}
		}),
	}
}

// uefi returns the message of a host's firmware, nil when it has none.
func uefi(u inventory.UEFI) *godwitv1.Uefi {
	if u == (inventory.UEFI{}) {
		return nil
	}
	return &godwitv1.Uefi{Code: u.Code, CodeSize: int64(u.CodeSize), VarsSize: int64(u.VarsSize)}
}

func fromUEFI(m *godwitv1.Uefi) inventory.UEFI {
	return inventory.UEFI{Code: m.GetCode(), CodeSize: inventory.Bytes(m.GetCodeSize()), VarsSize: inventory.Bytes(m.GetVarsSize())}
}

// QEMU returns the message of what a host's emulator can do.
func QEMU(q inventory.QEMU) *godwitv1.Qemu {
	return &godwitv1.Qemu{
		Path:        q.Path,
		Version:     q.Version,
		Build:       q.Build,
		Accelerator: q.Accelerator,
		Why:         q.Why,
		Machines:    texts(q.Machines),
		CpuModels:   texts(q.CPUModels),
		Migration:   verdict(q.Migration),
	}
}

// FromQEMU returns what the emulator of the message can do.
func FromQEMU(m *godwitv1.Qemu) inventory.QEMU {
	return inventory.QEMU{
		Path:        m.GetPath(),
		Version:     m.GetVersion(),
		Build:       m.GetBuild(),
		Accelerator: m.GetAccelerator(),
		Why:         m.GetWhy(),
		Machines:    ids[string](m.GetMachines()),
		CPUModels:   ids[string](m.GetCpuModels()),
		Migration:   fromVerdict(m.GetMigration()),
	}
}

func verdict(v inventory.Verdict) *godwitv1.Verdict {
	m := &godwitv1.Verdict{Detail: v.Detail}
	switch v.State {
	case inventory.VerdictGood:
		m.State = godwitv1.Verdict_STATE_GOOD
	case inventory.VerdictBad:
		m.State = godwitv1.Verdict_STATE_BAD
	case inventory.VerdictUnknown:
		m.State = godwitv1.Verdict_STATE_UNSPECIFIED
	}
	return m
}

// fromVerdict reads a verdict that this version does not know as not probed: nothing is allowed on its word.
func fromVerdict(m *godwitv1.Verdict) inventory.Verdict {
	v := inventory.Verdict{Detail: m.GetDetail()}
	switch m.GetState() {
	case godwitv1.Verdict_STATE_GOOD:
		v.State = inventory.VerdictGood
	case godwitv1.Verdict_STATE_BAD:
		v.State = inventory.VerdictBad
	case godwitv1.Verdict_STATE_UNSPECIFIED:
		v.State = inventory.VerdictUnknown
	}
	return v
}

func datastoreMount(d inventory.DatastoreMount) *godwitv1.DatastoreMount {
	return &godwitv1.DatastoreMount{Id: string(d.ID), Name: d.Name, Path: d.Path, Shared: d.Shared, Arbiter: string(d.Arbiter), ArbiterWhy: d.Why}
}

func fromDatastoreMount(m *godwitv1.DatastoreMount) inventory.DatastoreMount {
	return inventory.DatastoreMount{
		ID:     inventory.DatastoreID(m.GetId()),
		Name:   m.GetName(),
		Path:   m.GetPath(),
		Shared: m.GetShared(),

		Arbiter: inventory.Arbiter(m.GetArbiter()), Why: m.GetArbiterWhy(),
	}
}

// HostStatus returns the message of what changes while a host runs.
func HostStatus(s inventory.HostStatus) *godwitv1.HostStatus {
	return &godwitv1.HostStatus{Started: stamp(s.Started), MemoryFree: int64(s.MemoryFree), Vms: narrow(s.VMs)}
}

// FromHostStatus returns the status of the message.
func FromHostStatus(m *godwitv1.HostStatus) inventory.HostStatus {
	return inventory.HostStatus{
		Started:    fromStamp(m.GetStarted()),
		MemoryFree: inventory.Bytes(m.GetMemoryFree()),
		VMs:        int(m.GetVms()),
	}
}

// Network returns the message of a whole network.
func Network(n inventory.Network) *godwitv1.Network {
	return &godwitv1.Network{
		Id: string(n.ID), Spec: NetworkSpec(n.Spec),
		Hosts: each(n.Hosts, func(h inventory.NetworkHost) *godwitv1.NetworkHost {
			return &godwitv1.NetworkHost{Host: string(h.Host), Why: h.Why}
		}),
	}
}

// FromNetwork returns the network of the message.
func FromNetwork(m *godwitv1.Network) inventory.Network {
	return inventory.Network{
		ID: inventory.NetworkID(m.GetId()), Spec: FromNetworkSpec(m.GetSpec()),
		Hosts: each(m.GetHosts(), func(h *godwitv1.NetworkHost) inventory.NetworkHost {
			return inventory.NetworkHost{Host: inventory.HostID(h.GetHost()), Why: h.GetWhy()}
		}),
	}
}

// NetworkSpec returns the message of what the user asked of a network.
func NetworkSpec(s inventory.NetworkSpec) *godwitv1.NetworkSpec {
	return &godwitv1.NetworkSpec{
		Subnet:   s.Subnet,
		Gateway:  string(s.Gateway),
		Forwards: each(s.Forwards, portForward),
		Driver:   string(s.Driver),
		Vlan:     narrow(s.VLAN),
		Mtu:      narrow(s.MTU),
	}
}

// FromNetworkSpec returns the spec of the message.
func FromNetworkSpec(m *godwitv1.NetworkSpec) inventory.NetworkSpec {
	return inventory.NetworkSpec{
		Subnet:   m.GetSubnet(),
		Gateway:  inventory.HostID(m.GetGateway()),
		Forwards: each(m.GetForwards(), fromPortForward),
		Driver:   inventory.NetworkDriver(m.GetDriver()),
		VLAN:     int(m.GetVlan()),
		MTU:      int(m.GetMtu()),
	}
}

func portForward(f inventory.PortForward) *godwitv1.PortForward {
	return &godwitv1.PortForward{Listen: f.Listen, Guest: f.Guest}
}

func fromPortForward(m *godwitv1.PortForward) inventory.PortForward {
	return inventory.PortForward{Listen: m.GetListen(), Guest: m.GetGuest()}
}

// HostStanding returns the message of what the leader says of a host.
func HostStanding(s inventory.HostStanding) *godwitv1.HostStanding {
	if s == (inventory.HostStanding{}) {
		return nil
	}
	return &godwitv1.HostStanding{State: s.State, Why: s.Why, Since: stamp(s.Since)}
}

// FromHostStanding returns what the leader says of a host according to the message.
func FromHostStanding(m *godwitv1.HostStanding) inventory.HostStanding {
	return inventory.HostStanding{State: m.GetState(), Why: m.GetWhy(), Since: fromStamp(m.GetSince())}
}
