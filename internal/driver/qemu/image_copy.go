package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// VirtualSize returns the size of an image as a guest sees it. Unlike CheckImage it takes a thin clone as well.
func VirtualSize(ctx context.Context, path string, format inventory.DiskFormat) (inventory.Bytes, error) {
	out, err := runImageTool(ctx, "info", "--output=json", "--force-share", "-f", string(format), path)
	if err != nil {
		return 0, fault.Wrap("image", path, err)
	}
	var found imageInfo
	if err := json.Unmarshal(out, &found); err != nil {
		return 0, fault.Wrap("image", path, fault.New(fault.Internal, "qemu-img: %w", err))
	}
	return inventory.Bytes(found.VirtualSize), nil
}

// GrowImage makes an image larger that nobody has open; QEMU's locks see to that. It never shrinks one.
func GrowImage(ctx context.Context, path string, format inventory.DiskFormat, size inventory.Bytes) error {
	_, err := runImageTool(ctx, "resize", "-q", "-f", string(format), path, strconv.FormatInt(int64(size), 10))
	return fault.Wrap("image", path, err)
}

// ThinClone makes the file at path, which exists and is empty, a qcow2 image that has only what differs from the image base, a path
// relative to path's folder. The base must not change any more.
func ThinClone(ctx context.Context, path, base string, format inventory.DiskFormat) error {
	// "./" keeps QEMU from reading what is before a colon as a protocol.
	_, err := runImageTool(ctx, "create", "-q", "-f", string(inventory.Qcow2), "-b", "./"+base, "-F", string(format), path)
	return fault.Wrap("clone image", base, err)
}

// qcow2Magic begins every qcow2 image (QEMU, docs/interop/qcow2.txt).
const qcow2Magic = 0x514649fb

// backingMax bounds the name of a backing file (QEMU, docs/interop/qcow2.txt: 1023 bytes).
const backingMax = 1023

// Backing returns the absolute path of the image that the qcow2 image at path is a thin clone of, "" when it is none. It reads the
// header only, also while a VM uses the image.
func Backing(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap("image", path, fault.New(fault.NotFound, "%w", err))
	}
	defer func() { _ = file.Close() }() // only read
	var header struct {
		Magic, Version uint32
		Offset         uint64
		Size           uint32
	}
	if err := binary.Read(file, binary.BigEndian, &header); err != nil || header.Magic != qcow2Magic || header.Offset == 0 {
		return "", nil // too short or of another format: no thin clone
	}
	if header.Size > backingMax {
		return "", fault.Wrap("image", path, fault.New(fault.Invalid, "the name of its backing file has %d bytes", header.Size))
	}
	name := make([]byte, header.Size)
	if _, err := file.ReadAt(name, int64(min(header.Offset, 1<<62))); err != nil { //nolint:gosec // bounded
		return "", fault.Wrap("image", path, fault.New(fault.Invalid, "its header is damaged: %w", err))
	}
	base := string(name)
	if !filepath.IsAbs(base) {
		base = filepath.Join(filepath.Dir(path), base)
	}
	return base, nil
}

// FullClone copies what the image from holds, that of images it is a thin clone of included, into the file at path, which exists and is
// empty. Progress is told in percent. It ends with ctx.
func FullClone(ctx context.Context, path, from string, format inventory.DiskFormat, progress func(percent int)) error {
	cmd := exec.CommandContext(ctx, DefaultImageTool, "convert", "-p", "-f", string(format), "-O", string(format), from, path)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fault.Wrap("clone image", from, fault.New(fault.Internal, "%w", err))
	}
	readPercent(out, progress)
	err = cmd.Wait()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.Wrap("clone image", from, ctx.Err())
	}
	text := strings.ReplaceAll(strings.TrimSpace(said.String()), "\n", "; ")
	if text == "" {
		text = err.Error()
	}
	return fault.Wrap("clone image", from, spaceOr(fault.Invalid, errors.New(strings.TrimPrefix(text, "qemu-img: "))))
}

// readPercent reads what qemu-img -p prints: "    (12.50/100%)\r".
func readPercent(out io.Reader, progress func(int)) {
	lines := bufio.NewScanner(out)
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\r'); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	for lines.Scan() {
		text, _, ok := strings.Cut(strings.TrimLeft(lines.Text(), " (\n"), ".")
		if percent, err := strconv.Atoi(text); ok && err == nil {
			progress(percent)
		}
	}
}
