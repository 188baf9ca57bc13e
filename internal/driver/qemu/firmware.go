package qemu

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// firmwareDirs are where descriptors of firmware lie, in rising precedence: a file hides those of its name in the folders before
// it, an empty one hides them without a substitute (QEMU, docs/interop/firmware.json).
var firmwareDirs = []string{"/usr/share/qemu/firmware", "/usr/local/share/qemu/firmware", "/etc/qemu/firmware"}

// firmwareKnown are the files of distributions that ship no descriptor that we can use.
var firmwareKnown = []Firmware{
	{Code: "/usr/share/OVMF/OVMF_CODE_4M.fd", Vars: "/usr/share/OVMF/OVMF_VARS_4M.fd"},                 // Debian, Ubuntu
	{Code: "/usr/share/edk2/x64/OVMF_CODE.4m.fd", Vars: "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},         // Arch
	{Code: "/usr/share/qemu/ovmf-x86_64-4m-code.bin", Vars: "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"}, // openSUSE
	{Code: "/usr/share/edk2/ovmf/OVMF_CODE.fd", Vars: "/usr/share/edk2/ovmf/OVMF_VARS.fd"},             // Fedora
	{Code: "/usr/share/OVMF/OVMF_CODE.fd", Vars: "/usr/share/OVMF/OVMF_VARS.fd"},                       // older Debian
}

// descriptor is what is used of a firmware descriptor.
type descriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string `json:"device"`
		Mode       string `json:"mode"`
		Executable struct{ Filename, Format string }
		Template   struct{ Filename, Format string } `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

// unwanted are features of builds that our machines cannot run: they want system management mode and signed boot loaders, or an
// encrypted guest.
var unwanted = []string{"requires-smm", "secure-boot", "enrolled-keys", "intel-tdx"}

// machineProbe is a machine type as the patterns of descriptors must match it.
const machineProbe = "pc-q35-10.0"

// fits reports whether the descriptor is of a plain UEFI build for our machines, in two flash images.
func (d descriptor) fits() bool {
	m := d.Mapping
	if !slices.Contains(d.Interfaces, "uefi") || m.Device != "flash" || m.Mode != "" && m.Mode != "split" ||
		m.Executable.Format != "raw" || m.Template.Format != "raw" {
		return false
	}
	if slices.ContainsFunc(d.Features, func(f string) bool { return slices.Contains(unwanted, f) }) {
		return false
	}
	for _, t := range d.Targets {
		if t.Architecture == "x86_64" && slices.ContainsFunc(t.Machines, func(pattern string) bool {
			ok, err := path.Match(pattern, machineProbe)
			return ok && err == nil
		}) {
			return true
		}
	}
	return false
}

// FindFirmware returns the host's UEFI firmware: the first by name of those that its descriptors offer for our machines, without
// secure boot and in raw images, else one at a place that is known. It is fault.NotFound when there is none. It reads a few small files
// each time, so that firmware that was just installed is seen.
func FindFirmware() (Firmware, error) { return findFirmware("/") }

// findFirmware is FindFirmware below another root, for tests.
func findFirmware(root string) (Firmware, error) {
	descriptors := map[string]string{} // by base name
	for _, dir := range firmwareDirs {
		found, err := filepath.Glob(filepath.Join(root, dir, "*.json"))
		if err != nil {
			return Firmware{}, fault.New(fault.Internal, "%w", err)
		}
		for _, file := range found {
			descriptors[filepath.Base(file)] = file
		}
	}
	for _, name := range slices.Sorted(maps.Keys(descriptors)) {
		text, err := os.ReadFile(descriptors[name])
		var d descriptor
		if err != nil || json.Unmarshal(text, &d) != nil || !d.fits() {
			continue // an empty one, or one that a newer QEMU may understand
		}
		if f, err := (Firmware{Code: d.Mapping.Executable.Filename, Vars: d.Mapping.Template.Filename}).measure(root); err == nil {
			return f, nil
		}
	}
	for _, known := range firmwareKnown {
		if f, err := known.measure(root); err == nil {
			return f, nil
		}
	}
	return Firmware{}, fault.New(fault.NotFound, "this host has no UEFI firmware for its VMs: install the ovmf package")
}

// measure takes the sizes of the files.
func (f Firmware) measure(root string) (Firmware, error) {
	for _, file := range []struct {
		path string
		size *inventory.Bytes
	}{{f.Code, &f.CodeSize}, {f.Vars, &f.VarsSize}} {
		info, err := os.Stat(filepath.Join(root, file.path))
		if err != nil {
			return f, err
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return f, fs.ErrInvalid
		}
		*file.size = inventory.Bytes(info.Size())
	}
	return f, nil
}

// varsMax bounds a template of UEFI variables; those of OVMF have 132 to 528 KiB.
const varsMax = 64 << 20

// MakeVars makes a VM's own UEFI variables at to, a copy of the firmware's template that belongs to the user. Errors: fault.Exists when
// there is a file already, which is left alone; on any other error no file is left.
func (f Firmware) MakeVars(to string, user *User) (err error) {
	defer func() { err = fault.Wrap("UEFI variables", filepath.Base(to), err) }()
	from, err := os.Open(f.Vars)
	if err != nil {
		return fault.New(fault.NotFound, "%w", err)
	}
	defer func() { _ = from.Close() }() // only read
	file, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Exists, "%s is there already", to)
	case err != nil:
		return fault.New(fault.Unavailable, "%w", err)
	}
	_, err = io.Copy(file, io.LimitReader(from, varsMax))
	// On the disk before a VM's record says so: a firmware that finds half of its variables does not start.
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = user.Own(to)
	}
	if err != nil && !fault.Is(err, fault.Denied) {
		return errors.Join(fault.New(fault.NoResources, "%w", err), os.Remove(to))
	}
	return nil
}

// CheckVars returns fault.Incompatible unless the variables at path are of the size that the firmware needs; those of another
// build would not even be found by it.
func (f Firmware) CheckVars(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fault.New(fault.NotFound, "UEFI variables: %w: is its datastore mounted here?", err)
	}
	if got := inventory.Bytes(info.Size()); got != f.VarsSize {
		return fault.New(fault.Incompatible, "UEFI variables %s have %d bytes, and this host's firmware (%s) needs %d: install the same build of the ovmf package as on the host that made the VM",
			filepath.Base(path), got, f.Code, f.VarsSize)
	}
	return nil
}
