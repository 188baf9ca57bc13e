package agent

import (
	"context"
	"errors"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// drawMax bounds how often a random MAC address is drawn again. There are 16 million; a cluster that has used up half of them
// fails once in 250.
const drawMax = 8

// macs returns the MAC addresses of all VMs of the cluster and whose they are. The store refuses one that is taken (store.ErrMACTaken) also
// to whoever did not ask; VMs of before it did so are found here only.
func (a *Agent) macs(ctx context.Context) (map[string]string, error) {
	all, err := a.Store.VMs(ctx)
	if err != nil {
		return nil, err
	}
	taken := map[string]string{}
	for _, vm := range all {
		for _, n := range vm.Spec.NICs {
			taken[n.MAC] = vm.Spec.Name
		}
	}
	return taken, nil
}

// freeMAC gives a NIC that has no MAC address a random one that no VM of the cluster has, and refuses one that another has. It becomes the
// VM's with the transaction that stores the NIC.
func (a *Agent) freeMAC(ctx context.Context, n *inventory.NIC) error {
	taken, err := a.macs(ctx)
	if err != nil {
		return err
	}
	if n.MAC == "" {
		n.MAC, err = drawMAC(taken)
		return err
	}
	if owner := taken[n.MAC]; owner != "" {
		return macTaken(*n, owner)
	}
	return nil
}

func macTaken(n inventory.NIC, owner string) error {
	return fault.New(fault.Exists, "%s: MAC address %s belongs to vm %s: choose another, or leave it out", n.Name, n.MAC, owner)
}

func drawMAC(taken map[string]string) (string, error) {
	for range drawMax {
		if mac := inventory.NewMAC(); taken[mac] == "" {
			return mac, nil
		}
	}
	return "", fault.New(fault.NoResources, "no free MAC address was found in %d draws: try again, or give one", drawMax)
}

// freeMACs refuses MAC addresses that the user gave and that other VMs have, and draws the others anew where they are taken.
func (a *Agent) freeMACs(ctx context.Context, want CreateVM, spec *inventory.VMSpec) error {
	if len(spec.NICs) == 0 {
		return nil
	}
	taken, err := a.macs(ctx)
	if err != nil {
		return err
	}
	var bad []string
	for i := range spec.NICs {
		n := &spec.NICs[i]
		switch owner := taken[n.MAC]; {
		case owner == "":
		case want.NICs[i].MAC != "":
			bad = append(bad, macTaken(*n, owner).Error())
		default:
			if n.MAC, err = drawMAC(taken); err != nil {
				return err
			}
		}
	}
	return fault.Refuse(fault.Exists, bad)
}

// record stores a new VM. When another host was faster with a random MAC address, it draws again.
func (a *Agent) record(ctx context.Context, want CreateVM, vm *inventory.VM) error {
	for range drawMax {
		err := a.writer.CreateVM(ctx, *vm)
		random := false
		for i := range vm.Spec.NICs {
			random = random || want.NICs[i].MAC == ""
		}
		if !errors.Is(err, store.ErrMACTaken) || !random {
			return err
		}
		for i := range vm.Spec.NICs {
			if want.NICs[i].MAC == "" {
				vm.Spec.NICs[i].MAC = inventory.NewMAC()
			}
		}
	}
	return fault.New(fault.Conflict, "others take MAC addresses all the time: try again")
}
