package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Image is what an image file is.
type Image struct {
	Path    string // relative to the folder's root
	Format  inventory.DiskFormat
	Virtual inventory.Bytes // what the guest sees
	Actual  inventory.Bytes // what the file takes on disk
	Backing string          // the image that it is a thin clone of, relative to the folder's root; empty: none
	Changed time.Time
}

// chainMax bounds how many images a thin clone may stand on. Every read of what nobody wrote goes down the whole chain.
const chainMax = 16

// modes of images. A disk is written by its VM; a seed is not, and may hold what only the guest should know.
const (
	modeDisk     = 0o600
	modeReadOnly = 0o400
)

// Check looks at an image, also while a VM uses it, and refuses what no VM may have. The format is the one that the caller says, and only a
// header that says so too is accepted: a raw image that starts like another format is refused, since a guest can write such a header to
// make QEMU open files of the host (QEMU documentation, "Disk image file formats"). A backing file is taken only where Clone would have put
// it: in the same folder, with its format said, and all the way down.
//
// Errors: fault.NotFound without a file, fault.Invalid for a file that is no image of that format, fault.Denied when it cannot be read.
func (f Folder) Check(ctx context.Context, path string, format inventory.DiskFormat) (Image, error) {
	image, err := f.check(ctx, path, format)
	return image, fault.Wrap("image", path, err)
}

func (f Folder) check(ctx context.Context, path string, format inventory.DiskFormat) (Image, error) {
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
		return Image{}, fault.New(fault.Invalid, "the file is empty: make an image with godwit vm create --disk or godwit image create")
	}
	h, info, err := headerOf(path)
	switch {
	case err != nil:
		return Image{}, err
	case h.format == format:
	case h.format == inventory.Raw:
		return Image{}, fault.New(fault.Invalid, "it is no %s image: its header is missing. Say raw if its bytes are the disk's", format)
	default:
		return Image{}, fault.New(fault.Invalid, "it is a %s image, not %s: say its format, or convert it with godwit image import", h.format, format)
	}
	if h.refused != "" {
		return Image{}, fault.New(fault.Invalid, "%s", h.refused)
	}
	image := Image{Path: f.relative(path), Format: format, Virtual: inventory.Bytes(h.virtual), Actual: used(info), Changed: info.ModTime()}
	if h.backing != "" {
		chain, err := f.chain(path)
		if err != nil {
			return Image{}, err
		}
		image.Backing = f.relative(chain[1].path)
	}
	seen, err := look(ctx, f.asOwner(info), path, format)
	if err != nil {
		return Image{}, err
	}
	if image.Virtual = inventory.Bytes(seen.VirtualSize); image.Virtual <= 0 {
		return Image{}, fault.New(fault.Invalid, "its size is 0")
	}
	return image, nil
}

// asOwner returns the images' owner if the file is theirs; else only we may be able to read it.
func (f Folder) asOwner(info os.FileInfo) *Owner {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && f.Owner != nil && st.Uid == f.Owner.UID {
		return f.Owner
	}
	return nil
}

// info is the answer of qemu-img info --output=json (QAPI "ImageInfo", and "BlockGraphInfo" for children, since QEMU 8.0).
type info struct {
	VirtualSize int64 `json:"virtual-size"`
	Encrypted   bool  `json:"encrypted"`
	Children    []struct {
		Name string `json:"name"`
		Info info   `json:"info"`
	} `json:"children"`
	Filename string `json:"filename"`
	Specific struct {
		Data struct {
			DataFile string `json:"data-file"`
			Corrupt  bool   `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

// look has qemu-img look at an image of a known format, which opens no backing file, and refuses one that needs another file than itself.
func look(ctx context.Context, as *Owner, path string, format inventory.DiskFormat) (info, error) {
	var found info
	out, err := run{as: as}.tool(ctx, "info", "--output=json", "--force-share", "-f", string(format), path)
	if err != nil {
		return found, err
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return found, fault.New(fault.Internal, "qemu-img: %w", err)
	}
	for _, child := range found.Children {
		if child.Info.Filename != path {
			return found, fault.New(fault.Invalid, "its data is in another file, %s: copy it with qemu-img convert where it comes from", child.Info.Filename)
		}
	}
	switch {
	case found.Specific.Data.DataFile != "":
		return found, fault.New(fault.Invalid, "its data is in another file, %s: copy it with qemu-img convert where it comes from", found.Specific.Data.DataFile)
	case found.Encrypted:
		return found, fault.New(fault.Invalid, "it is encrypted, which VMs of Godwit cannot have yet: copy it with qemu-img convert")
	case found.Specific.Data.Corrupt:
		return found, fault.New(fault.Invalid, "it is marked corrupt: repair it with qemu-img check -r all")
	}
	return found, nil
}

// link is one image of a chain.
type link struct {
	path   string
	format inventory.DiskFormat
}

// chain returns the image at path and all that it stands on, top first. Every backing file must lie in the folder, by a plain path, and have its
// format said; nothing is probed.
func (f Folder) chain(path string) ([]link, error) {
	var all []link
	for format := inventory.DiskFormat(""); ; {
		h, _, err := headerOf(path)
		if err != nil {
			return nil, fault.Wrap("backing file", f.relative(path), err)
		}
		if format == "" {
			format = h.format
		}
		all = append(all, link{path, format})
		if h.refused != "" && format == inventory.Qcow2 {
			return nil, fault.New(fault.Invalid, "its backing file %s: %s", f.relative(path), h.refused)
		}
		if format != inventory.Qcow2 || h.backing == "" {
			return all, nil
		}
		if len(all) > chainMax {
			return nil, fault.New(fault.Invalid, "it stands on more than %d images: make a full copy of it", chainMax)
		}
		if h.backingFormat != inventory.Raw && h.backingFormat != inventory.Qcow2 {
			return nil, fault.New(fault.Invalid, "it has the backing file %s, whose format it does not say: flatten it with qemu-img convert", h.backing)
		}
		next, err := f.backing(path, h.backing)
		if err != nil {
			return nil, err
		}
		below, _, err := headerOf(next)
		if err != nil {
			return nil, fault.New(fault.Invalid, "its backing file %s is missing or unreadable: %w", h.backing, err)
		}
		if h.backingFormat == inventory.Qcow2 && below.format != inventory.Qcow2 {
			return nil, fault.New(fault.Invalid, "its backing file %s is a %s image and not the qcow2 image that it says: restore it, or flatten it", h.backing, below.format)
		}
		path, format = next, h.backingFormat
	}
}

// backing returns the absolute path of the backing file that the image at path names, which must lie in the folder.
func (f Folder) backing(path, name string) (string, error) {
	refuse := fault.New(fault.Invalid, "it has the backing file %s, which is not on its datastore: flatten it with qemu-img convert", name)
	// "json:{…}", "nbd://…": QEMU takes what stands before the first colon for a protocol, unless a slash comes earlier.
	if protocol, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(protocol, "/") {
		return "", refuse
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(path), name)
	}
	resolved, err := filepath.EvalSymlinks(name)
	if err != nil {
		resolved = filepath.Clean(name) // it is missing, which the caller says
	}
	if rel, err := filepath.Rel(f.Root, resolved); err != nil || !filepath.IsLocal(rel) {
		return "", refuse
	}
	return resolved, nil
}

// Info returns what a file is by its header alone. A file that is no image has no Format; raw has to be told by its name (.raw, .img, .iso).
// Errors: fault.NotFound, fault.Denied, fault.Unavailable.
func (f Folder) Info(path string) (Image, error) {
	image, err := f.info(path)
	return image, fault.Wrap("image", path, err)
}

func (f Folder) info(path string) (Image, error) {
	h, st, err := headerOf(path)
	if fault.Is(err, fault.Invalid) && st != nil { // no VM can have it, but it takes space
		return Image{Path: f.relative(path), Actual: used(st), Changed: st.ModTime()}, nil
	}
	if err != nil {
		return Image{}, err
	}
	image := Image{Path: f.relative(path), Actual: used(st), Changed: st.ModTime()}
	switch {
	case h.refused != "": // as above
	case h.format == inventory.Raw:
		if slices.Contains([]string{".raw", ".img", ".iso"}, strings.ToLower(filepath.Ext(path))) {
			image.Format, image.Virtual = inventory.Raw, inventory.Bytes(st.Size())
		}
	case h.format == inventory.Qcow2:
		image.Format, image.Virtual = inventory.Qcow2, inventory.Bytes(h.virtual)
	default:
		image.Format = h.format
	}
	// What it stands on counts whatever else is wrong with it: nobody may remove that.
	if h.backing != "" {
		image.Backing = h.backing
		if below, err := f.backing(path, h.backing); err == nil {
			image.Backing = f.relative(below)
		}
	}
	return image, nil
}

// List returns all files of the folder, with what their headers say, in the order of their names.
func (f Folder) List(ctx context.Context) ([]Image, error) {
	var all []Image
	err := f.walk(ctx, func(path string) error {
		image, err := f.info(path)
		if fault.Is(err, fault.NotFound) {
			return nil // gone meanwhile
		}
		if err == nil {
			all = append(all, image)
		}
		return fault.Wrap("image", path, err)
	}, nil)
	return all, err
}

// Clones returns the images that are thin clones of the one at path, relative to Root.
func (f Folder) Clones(ctx context.Context, path string) ([]string, error) {
	all, err := f.List(ctx)
	if err != nil {
		return nil, err
	}
	var clones []string
	rel := f.relative(path)
	for _, image := range all {
		if image.Backing == rel && image.Path != rel {
			clones = append(clones, image.Path)
		}
	}
	return clones, nil
}

// Create makes a new sparse image. It never touches a file that is there already.
//
// Errors: fault.Exists, fault.NotFound without the folder, fault.NoResources when the disk is full, fault.Denied.
func (f Folder) Create(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes) error {
	return fault.Wrap("create image", path, f.create(ctx, path, format, size, nil))
}

func (f Folder) create(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes, backing []string) error {
	if format != inventory.Raw && format != inventory.Qcow2 {
		return fault.New(fault.Invalid, "format %q is unknown: take raw or qcow2", string(format))
	}
	if size <= 0 {
		return fault.New(fault.Invalid, "a size of %d bytes is not possible: say how large the disk is, like 10G", int64(size))
	}
	if size > inventory.DiskMax {
		return fault.New(fault.Invalid, "a size of %v is too much: at most %v", size, inventory.DiskMax)
	}
	p, err := f.begin(path)
	if err != nil {
		return err
	}
	defer p.discard()
	if err := p.handOver(); err != nil {
		return err
	}
	args := slices.Concat([]string{"create", "-q", "-f", string(format)}, backing, []string{p.path, strconv.FormatInt(int64(size), 10)})
	if _, err := (run{as: p.owned}).tool(ctx, args...); err != nil {
		return err
	}
	return p.publish(modeDisk)
}

// Clone makes a thin clone: an image that holds only what is written to it and reads the rest from the image at from, which nobody may write to
// any more. The clone names it by a path relative to itself, so hosts may mount the datastore in different places. Size 0 is the
// original's; a larger one is free.
//
// Errors: as Create, fault.Invalid for an original that no VM may have or a smaller size, fault.Conflict when the original was removed meanwhile.
func (f Folder) Clone(ctx context.Context, path, from string, format inventory.DiskFormat, size inventory.Bytes) error {
	return fault.Wrap("clone image", path, f.clone(ctx, path, from, format, size))
}

func (f Folder) clone(ctx context.Context, path, from string, format inventory.DiskFormat, size inventory.Bytes) error {
	original, err := f.Check(ctx, from, format)
	if err != nil {
		return err
	}
	if size, err = roomFor(original, size); err != nil {
		return err
	}
	chain, err := f.chain(from)
	if err != nil {
		return err
	}
	if len(chain) >= chainMax {
		return fault.New(fault.Invalid, "its original stands on %d images already: make a full clone", len(chain)-1)
	}
	relative, err := filepath.Rel(filepath.Dir(path), from)
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	if strings.Contains(filepath.Base(relative), ":") && !strings.Contains(relative, "/") {
		relative = "./" + relative // or QEMU would take what stands before the colon for a protocol
	}
	if err := f.create(ctx, path, inventory.Qcow2, size, []string{"-F", string(format), "-b", relative}); err != nil {
		return err
	}
	// Whoever removes the original hides it and then looks for clones (Remove): if it did not see ours, we see that it is gone.
	if _, err := os.Lstat(from); err != nil {
		return errors.Join(fault.New(fault.Conflict, "its original was removed meanwhile"), fileError(os.Remove(path)))
	}
	return nil
}

// roomFor returns the size that a copy of an image gets.
func roomFor(original Image, size inventory.Bytes) (inventory.Bytes, error) {
	switch {
	case size == 0:
		return original.Virtual, nil
	case size < original.Virtual:
		return 0, fault.New(fault.Invalid, "the image has %v, and a disk of %v would cut it off: ask for as much or more", original.Virtual, size)
	case size > inventory.DiskMax:
		return 0, fault.New(fault.Invalid, "a size of %v is too much: at most %v", size, inventory.DiskMax)
	}
	return size, nil
}

// Copy makes a full copy of an image, which may be in another folder: source is that folder, from a path in it. What the original stands
// on is copied too, so the copy stands alone. Nobody may write to the original meanwhile: QEMU's image locks see to that. Size 0 is the original's.
//
// Errors: as Clone; fault.Conflict when a running VM has the original.
func (f Folder) Copy(ctx context.Context, path string, format inventory.DiskFormat, source Folder, from string, fromFormat inventory.DiskFormat,
	size inventory.Bytes, progress Progress,
) error {
	return fault.Wrap("copy image", path, f.copyOf(ctx, path, format, source, from, fromFormat, size, progress))
}

func (f Folder) copyOf(ctx context.Context, path string, format inventory.DiskFormat, source Folder, from string, fromFormat inventory.DiskFormat,
	size inventory.Bytes, progress Progress,
) error {
	original, err := source.Check(ctx, from, fromFormat)
	if err != nil {
		return err
	}
	if size, err = roomFor(original, size); err != nil {
		return err
	}
	p, err := f.begin(path)
	if err != nil {
		return err
	}
	defer p.discard()
	if err := p.handOver(); err != nil {
		return err
	}
	if err := f.convert(ctx, p, format, from, fromFormat, original.Virtual, progress); err != nil {
		return err
	}
	if size > original.Virtual {
		if _, err := (run{as: p.owned}).tool(ctx, "resize", "-q", "-f", string(format), p.path, strconv.FormatInt(int64(size), 10)); err != nil {
			return err
		}
	}
	return p.publish(modeDisk)
}

// convert copies the image at from into the part, after it has seen that there is room for it.
func (f Folder) convert(ctx context.Context, p *part, format inventory.DiskFormat, from string, fromFormat inventory.DiskFormat,
	virtual inventory.Bytes, progress Progress,
) error {
	out, err := run{as: p.owned, size: virtual}.tool(ctx, "measure", "--output=json", "-f", string(fromFormat), "-O", string(format), from)
	if err != nil {
		return err
	}
	var need struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out, &need); err != nil {
		return fault.New(fault.Internal, "qemu-img: %w", err)
	}
	free, err := f.free()
	if err != nil {
		return err
	}
	if required := inventory.Bytes(need.Required); format == inventory.Qcow2 && required > free {
		return fault.New(fault.NoResources, "it needs %v and %v are free: free some space on the datastore", required, free)
	}
	tell := func(done, total inventory.Bytes, doing string) { progress.tell(done, total, doing) }
	_, err = run{as: p.owned, size: virtual, progress: tell, doing: "converting"}.tool(ctx,
		"convert", "-p", "-f", string(fromFormat), "-O", string(format), from, p.path)
	return err
}

// Grow makes an image larger. It does not tell a guest, and does not work while a QEMU has the image open. An image never shrinks.
//
// Errors: fault.Invalid for a smaller size, fault.Conflict while somebody uses it.
func (f Folder) Grow(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes) error {
	return fault.Wrap("grow image", path, f.grow(ctx, path, format, size))
}

func (f Folder) grow(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes) error {
	now, err := f.Check(ctx, path, format)
	if err != nil {
		return err
	}
	switch {
	case size > inventory.DiskMax:
		return fault.New(fault.Invalid, "a size of %v is too much: at most %v", size, inventory.DiskMax)
	case size < now.Virtual:
		return fault.New(fault.Invalid, "it has %v and would shrink to %v, which would cut it off: ask for more", now.Virtual, size)
	case size == now.Virtual:
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return fileError(err)
	}
	if _, err := (run{as: f.asOwner(info)}).tool(ctx, "resize", "-q", "-f", string(format), path, strconv.FormatInt(int64(size), 10)); err != nil {
		return err
	}
	return sync(path)
}

// Write makes a file with the given content that only its owner reads, such as a seed. Errors: as Create.
func (f Folder) Write(path string, content []byte) error {
	return fault.Wrap("write", path, f.write(path, content))
}

func (f Folder) write(path string, content []byte) error {
	p, err := f.begin(path)
	if err != nil {
		return err
	}
	defer p.discard()
	if err := os.WriteFile(p.path, content, modeDisk); err != nil {
		return fileError(err)
	}
	if err := p.handOver(); err != nil {
		return err
	}
	return p.publish(modeReadOnly)
}
