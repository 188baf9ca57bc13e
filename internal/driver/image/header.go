package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The formats of others that can be imported. Raw and Qcow2 are inventory's.
const (
	VMDK inventory.DiskFormat = "vmdk" // VMware
	VDI  inventory.DiskFormat = "vdi"  // VirtualBox
	VHDX inventory.DiskFormat = "vhdx" // Hyper-V
	VPC  inventory.DiskFormat = "vpc"  // Hyper-V and Azure, .vhd
)

// magics are the first bytes of formats, by the names that qemu-img gives them. A file that begins with none of them is raw, as far as its
// header tells.
var magics = []struct {
	format inventory.DiskFormat
	at     int
	magic  string
}{
	{inventory.Qcow2, 0, "QFI\xfb\x00\x00\x00\x02"},
	{inventory.Qcow2, 0, "QFI\xfb\x00\x00\x00\x03"},
	{"qcow", 0, "QFI\xfb"},
	{VMDK, 0, "KDMV"},
	{VMDK, 0, "COWD"},
	{VMDK, 0, "# Disk DescriptorFile"},
	{VDI, 64, "\x7f\x10\xda\xbe"},
	{VHDX, 0, "vhdxfile"},
	{VPC, 0, "conectix"},
	{"qed", 0, "QED\x00"},
	{"luks", 0, "LUKS\xba\xbe"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"bochs", 0, "Bochs Virtual HD Image"},
	{"cloop", 0, "#!/bin/sh\n#V2.0 Format\n"},
	{"gzip", 0, "\x1f\x8b"},
	{"xz", 0, "\xfd7zXZ\x00"},
	{"zstd", 0, "\x28\xb5\x2f\xfd"},
	{"bzip2", 0, "BZh"},
	{"zip", 0, "PK\x03\x04"},
}

// sniffMax is how much of a file is looked at to know its format.
const sniffMax = 512

// header is what the first bytes of an image say of it. They were written by whoever made the image: nothing in it is to be believed
// before check has looked at it.
type header struct {
	format        inventory.DiskFormat
	virtual       int64 // as the guest sees it; 0 where only qemu-img can tell
	backing       string
	backingFormat inventory.DiskFormat
	refused       string // why no VM may have it, however it is looked at
}

// readHeader reads the header of an open image. Errors are fault.Invalid for a header that cannot be one, and what the reader says.
func readHeader(f io.ReaderAt, size int64) (header, error) {
	first := make([]byte, sniffMax)
	n, err := f.ReadAt(first, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	first, err = first[:n], nil // a short file is no error yet
	h := header{format: inventory.Raw, virtual: size}
	for _, m := range magics {
		if len(first) >= m.at && bytes.HasPrefix(first[m.at:], []byte(m.magic)) {
			h = header{format: m.format}
			break
		}
	}
	switch h.format { //nolint:exhaustive // the others name no other file
	case inventory.Qcow2:
		err = h.qcow2(f, first)
	case VMDK:
		err = h.vmdk(f, first)
	case VPC:
		// Hard disk footer, "Disk Type" at byte 60 (Virtual Hard Disk Image Format Specification, 2006).
		if len(first) >= 64 && binary.BigEndian.Uint32(first[60:]) == 4 {
			h.refused = "it is a differencing disk, whose data is in another file: merge it where it comes from"
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return h, err
	}
	if errors.Is(err, io.EOF) {
		return h, fault.New(fault.Invalid, "it is cut off: its header is not whole")
	}
	return h, nil
}

// The qcow2 header (QEMU, docs/interop/qcow2.txt).
const (
	qcow2HeaderMin     = 72
	qcow2BackingMax    = 1023
	qcow2ExtensionsMax = 64 // no image has more than a handful

	qcow2Corrupt      = 1 << 1 // incompatible features
	qcow2DataFile     = 1 << 2
	qcow2KnownFeature = 1<<5 - 1

	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionDataFile      = 0x44415441
)

func (h *header) qcow2(f io.ReaderAt, first []byte) error {
	if len(first) < qcow2HeaderMin {
		return io.EOF
	}
	big := binary.BigEndian
	version, backingAt, backingLen := big.Uint32(first[4:]), big.Uint64(first[8:]), big.Uint32(first[16:])
	clusterBits, virtual, crypt := big.Uint32(first[20:]), big.Uint64(first[24:]), big.Uint32(first[32:])
	if clusterBits < 9 || clusterBits > 21 {
		return fault.New(fault.Invalid, "its header is damaged: clusters of 2^%d bytes", clusterBits)
	}
	if virtual > 1<<62 {
		return fault.New(fault.Invalid, "its header is damaged: %d bytes", virtual)
	}
	cluster := uint64(1) << clusterBits
	h.virtual = int64(virtual)
	length := uint64(qcow2HeaderMin)
	if version == 3 {
		if len(first) < 104 {
			return io.EOF
		}
		features := big.Uint64(first[72:])
		length = uint64(big.Uint32(first[100:]))
		switch {
		case features&qcow2DataFile != 0:
			h.refused = "its data is in another file: copy it with qemu-img convert where it comes from"
		case features&qcow2Corrupt != 0:
			h.refused = "it is marked corrupt: repair it with qemu-img check -r all"
		case features&^uint64(qcow2KnownFeature) != 0:
			h.refused = fmt.Sprintf("it has features that this version does not know (%#x): copy it with qemu-img convert", features)
		}
		if length < 104 || length > cluster {
			return fault.New(fault.Invalid, "its header is damaged: %d bytes long", length)
		}
	}
	if crypt != 0 {
		h.refused = "it is encrypted, which VMs of Godwit cannot have yet: copy it with qemu-img convert"
	}
	if backingAt != 0 {
		if backingLen == 0 || backingLen > qcow2BackingMax || backingAt > cluster-uint64(backingLen) {
			return fault.New(fault.Invalid, "its header is damaged: the name of its backing file lies outside")
		}
		name := make([]byte, backingLen)
		if _, err := f.ReadAt(name, int64(backingAt)); err != nil { //nolint:gosec // at most a cluster
			return err
		}
		h.backing = string(name)
	}
	end := cluster
	if backingAt != 0 {
		end = backingAt
	}
	return h.extensions(f, length, end)
}

// extensions reads the header's extensions: type, length, data padded to 8 bytes.
func (h *header) extensions(f io.ReaderAt, at, end uint64) error {
	var head [8]byte
	for range qcow2ExtensionsMax {
		if at+8 > end {
			return nil
		}
		if _, err := f.ReadAt(head[:], int64(at)); err != nil { //nolint:gosec // below a cluster
			return err
		}
		kind, length := binary.BigEndian.Uint32(head[:]), uint64(binary.BigEndian.Uint32(head[4:]))
		at += 8
		if kind == extensionEnd {
			return nil
		}
		if length > end-at {
			return fault.New(fault.Invalid, "its header is damaged: an extension leads outside")
		}
		switch kind {
		case extensionBackingFormat:
			name := make([]byte, min(length, 64))
			if _, err := f.ReadAt(name, int64(at)); err != nil { //nolint:gosec // below a cluster
				return err
			}
			h.backingFormat = inventory.DiskFormat(name)
		case extensionDataFile:
			h.refused = "its data is in another file: copy it with qemu-img convert where it comes from"
		}
		at += (length + 7) &^ 7
	}
	return fault.New(fault.Invalid, "its header is damaged: it has more than %d extensions", qcow2ExtensionsMax)
}

// vmdkDescriptorMax bounds the text in a VMDK's header; QEMU itself takes 20 sectors at most.
const vmdkDescriptorMax = 20 * 512

// vmdk takes sparse images that hold their data themselves (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extent Header"). All others
// name their extents in a text, which QEMU would open whatever they are.
func (h *header) vmdk(f io.ReaderAt, first []byte) error {
	const apart = "it is a description of other files: export it as one file (monolithicSparse or streamOptimized) where it comes from"
	if !bytes.HasPrefix(first, []byte("KDMV")) {
		h.refused = apart
		return nil
	}
	if len(first) < 44 {
		return io.EOF
	}
	little := binary.LittleEndian
	capacity, descriptorAt, descriptorSize := little.Uint64(first[12:]), little.Uint64(first[28:]), little.Uint64(first[36:])
	if capacity == 0 {
		h.refused = apart
		return nil
	}
	if descriptorAt == 0 || descriptorSize == 0 {
		return nil
	}
	if descriptorAt > 1<<32 || descriptorSize > vmdkDescriptorMax/512 {
		return fault.New(fault.Invalid, "its header is damaged: its description lies outside")
	}
	text := make([]byte, descriptorSize*512)
	n, err := f.ReadAt(text, int64(descriptorAt)*512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// What follows the end of the text is padding.
	said, _, _ := strings.Cut(strings.ToLower(string(text[:n])), "\x00")
	switch {
	case strings.Contains(said, "parentfilenamehint"):
		h.refused = "it is the difference to another file: export it as one file where it comes from"
	case !strings.Contains(said, `createtype="monolithicsparse"`) && !strings.Contains(said, `createtype="streamoptimized"`):
		h.refused = apart
	}
	return nil
}

// headerOf reads the header of the file at path.
func headerOf(path string) (header, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, nil, fileError(err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return header{}, nil, fileError(err)
	}
	if !info.Mode().IsRegular() {
		return header{}, nil, fault.New(fault.Invalid, "it is no regular file")
	}
	h, err := readHeader(f, info.Size())
	if err != nil && fault.KindOf(err) == fault.Unknown {
		err = fileError(err)
	}
	return h, info, err
}
