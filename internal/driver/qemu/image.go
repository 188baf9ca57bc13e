package qemu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// DefaultImageTool is where Debian and most others put qemu-img.
const DefaultImageTool = "/usr/bin/qemu-img"

// imageTimeMax bounds one run of qemu-img; making and reading headers takes milliseconds, a storage that hangs takes for ever.
const imageTimeMax = 30 * time.Second

// Image is what an image file is.
type Image struct {
	Format  inventory.DiskFormat
	Virtual inventory.Bytes // what the guest sees
	Actual  inventory.Bytes // what the file takes on disk
}

// imageInfo is the answer of qemu-img info --output=json (QAPI "ImageInfo").
type imageInfo struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	ActualSize  int64  `json:"actual-size"`
	Backing     string `json:"backing-filename"`
	Encrypted   bool   `json:"encrypted"`
	Specific    struct {
		Data struct {
			DataFile string `json:"data-file"`
			Corrupt  bool   `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// CheckImage looks at the image at path, also while a VM uses it, and refuses what no VM may have. The format is the one that the
// user said, and only a header that says so too is accepted: a raw image that starts like another format is refused, since a guest can write such
// a header to make QEMU open files of the host (QEMU documentation, "Disk image file formats"). Backing files and external data files are
// refused for the same reason, and because they would have to move with the VM.
//
// Errors: fault.NotFound without a file, fault.Invalid for a file that is no image of that format, fault.Denied when it cannot be read.
func CheckImage(ctx context.Context, path string, format inventory.DiskFormat) (Image, error) {
	image, err := checkImage(ctx, path, format)
	return image, fault.Wrap("image", path, err)
}

func checkImage(ctx context.Context, path string, format inventory.DiskFormat) (Image, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Image{}, fault.New(fault.NotFound, "there is no such file: check the path, or have it made by giving a size")
	case errors.Is(err, fs.ErrPermission):
		return Image{}, fault.New(fault.Denied, "%w", err)
	case err != nil:
		return Image{}, fault.New(fault.Unavailable, "%w", err)
	case !st.Mode().IsRegular():
		return Image{}, fault.New(fault.Invalid, "it is no regular file")
	case st.Size() == 0:
		return Image{}, fault.New(fault.Invalid, "the file is empty: make an image with godwit vm create --disk or qemu-img create")
	}
	// Let qemu-img guess, which is safe for a look at the header, and compare with what was said.
	var found imageInfo
	out, err := runImageTool(ctx, "info", "--output=json", "--force-share", path)
	if err != nil {
		return Image{}, err
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return Image{}, fault.New(fault.Internal, "qemu-img: %w", err)
	}
	switch {
	case found.Format == string(format):
	case found.Format == string(inventory.Raw):
		return Image{}, fault.New(fault.Invalid, "it is no %s image: its header is missing. Say raw if its bytes are the disk's", format)
	default:
		return Image{}, fault.New(fault.Invalid, "it is a %s image, not %s: say its format, or convert it with qemu-img convert", found.Format, format)
	}
	switch {
	case found.Backing != "":
		return Image{}, fault.New(fault.Invalid, "it has the backing file %s: flatten it with qemu-img convert -O %s", found.Backing, format)
	case found.Specific.Data.DataFile != "":
		return Image{}, fault.New(fault.Invalid, "its data is in another file, %s: copy it with qemu-img convert -O %s", found.Specific.Data.DataFile, format)
	case found.Encrypted:
		return Image{}, fault.New(fault.Invalid, "it is encrypted, which VMs of Godwit cannot have yet: copy it with qemu-img convert")
	case found.Specific.Data.Corrupt:
		return Image{}, fault.New(fault.Invalid, "it is marked corrupt: repair it with qemu-img check -r all")
	case found.VirtualSize <= 0:
		return Image{}, fault.New(fault.Invalid, "its size is 0")
	}
	return Image{Format: format, Virtual: inventory.Bytes(found.VirtualSize), Actual: inventory.Bytes(found.ActualSize)}, nil
}

// CreateImage makes a new sparse image that belongs to user. It never touches a file that is there already.
//
// Errors: fault.Exists, fault.NotFound without the folder, fault.NoResources when the disk is full, fault.Denied. A file
// that was begun is removed.
func CreateImage(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes, user *User) error {
	return fault.Wrap("create image", path, createImage(ctx, path, format, size, user))
}

func createImage(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes, user *User) (err error) {
	if format != inventory.Raw && format != inventory.Qcow2 {
		return fault.New(fault.Invalid, "format %q is unknown: take raw or qcow2", string(format))
	}
	if size <= 0 {
		return fault.New(fault.Invalid, "a size of %d bytes is not possible: say how large the disk is, like 10G", int64(size))
	}
	// qemu-img create replaces what is there, so the name is taken first, by us alone.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fault.New(fault.Exists, "there is such a file already: choose another name")
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "the folder does not exist")
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "%w", err)
	case err != nil:
		return spaceOr(fault.Internal, err)
	}
	_ = f.Close() // nothing was written to it
	defer func() {
		if err != nil {
			_ = os.Remove(path) // the error that counts is err
		}
	}()
	if _, err := runImageTool(ctx, "create", "-q", "-f", string(format), path, strconv.FormatInt(int64(size), 10)); err != nil {
		return err
	}
	if err := user.Own(path); err != nil && !fault.Is(err, fault.Denied) {
		return err
	}
	return nil
}

// spaceOr returns err with the kind NoResources if it is about space, else with the given kind.
func spaceOr(kind fault.Kind, err error) error {
	if strings.Contains(err.Error(), "No space left") || strings.Contains(err.Error(), "no space left") {
		return fault.New(fault.NoResources, "%w: free some space on the datastore", err)
	}
	return fault.New(kind, "%w", err)
}

// runImageTool runs qemu-img and returns what it prints.
func runImageTool(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, imageTimeMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, DefaultImageTool, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "%w: run make setup, or install qemu-utils", err)
	case ctx.Err() != nil:
		return nil, fault.New(fault.Unavailable, "the storage does not answer: %w", ctx.Err())
	}
	said := strings.ReplaceAll(strings.TrimSpace(stderr.String()), "\n", "; ")
	for _, arg := range args { // the caller names the file
		said = strings.ReplaceAll(said, arg+": ", "")
	}
	return nil, spaceOr(fault.Invalid, errors.New(strings.TrimPrefix(cmp.Or(said, err.Error()), "qemu-img: ")))
}
