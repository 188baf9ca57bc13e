package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Image returns the message of an image.
func Image(i inventory.Image) *godwitv1.Image {
	return &godwitv1.Image{
		File: File(i.File), Datastore: i.Datastore, Format: string(i.Format), Size: int64(i.Size), Used: int64(i.Used),
		Backing: File(i.Backing), Vm: i.VM, Changed: stamp(i.Changed),
	}
}

// FromImage returns the image of the message.
func FromImage(m *godwitv1.Image) inventory.Image {
	return inventory.Image{
		File: FromFile(m.GetFile()), Datastore: m.GetDatastore(), Format: inventory.DiskFormat(m.GetFormat()),
		Size: inventory.Bytes(m.GetSize()), Used: inventory.Bytes(m.GetUsed()), Backing: FromFile(m.GetBacking()), VM: m.GetVm(),
		Changed: fromStamp(m.GetChanged()),
	}
}

// Seed returns the message of a seed, nil for none.
func Seed(s *inventory.Seed) *godwitv1.Seed {
	if s == nil {
		return nil
	}
	return &godwitv1.Seed{
		SshKeys: s.SSHKeys, User: s.User, Hostname: s.Hostname, UserData: s.UserData, NetworkConfig: s.NetworkConfig,
	}
}

// FromSeed returns the seed of the message, nil for none.
func FromSeed(m *godwitv1.Seed) *inventory.Seed {
	if m == nil {
		return nil
	}
	return &inventory.Seed{
		SSHKeys: ids[string](m.GetSshKeys()), User: m.GetUser(), Hostname: m.GetHostname(), UserData: m.GetUserData(),
		NetworkConfig: m.GetNetworkConfig(),
	}
}
