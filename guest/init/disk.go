//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest/control"
)

// disk answers for one virtio disk: its size and the sum of what is on it now, read past the guest's own cache. With write=OFFSET it first writes
// control.Pattern there and waits until that is on the disk.
func disk(r control.Request) (control.Disk, error) {
	if err := allowed(r, "name", "write"); err != nil {
		return control.Disk{}, err
	}
	name := r.Args["name"]
	if filepath.Base(name) != name || !strings.HasPrefix(name, "vd") {
		return control.Disk{}, fmt.Errorf("disk %q is none; use name=vda", name)
	}
	buffer, err := unix.Mmap(-1, 0, control.PatternSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // O_DIRECT wants it aligned
	if err != nil {
		return control.Disk{}, err
	}
	defer func() { _ = unix.Munmap(buffer) }() // nothing is left in it
	if text, given := r.Args["write"]; given {
		at, err := strconv.ParseInt(text, 10, 64)
		if err != nil || at < 0 || at%4096 != 0 {
			return control.Disk{}, fmt.Errorf("offset %q is no multiple of 4096", text)
		}
		if err := writePattern(name, at, buffer); err != nil {
			return control.Disk{}, err
		}
	}
	return sumDisk(name, buffer)
}

func writePattern(name string, at int64, buffer []byte) error {
	file, err := os.OpenFile("/dev/"+name, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	copy(buffer, control.Pattern(at))
	_, err = file.WriteAt(buffer, at)
	return errors.Join(err, file.Sync(), file.Close())
}

func sumDisk(name string, buffer []byte) (control.Disk, error) {
	file, err := os.OpenFile("/dev/"+name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return control.Disk{}, err
	}
	defer func() { _ = file.Close() }() // only read
	sum := sha256.New()
	size, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{file}, buffer)
	if err != nil {
		return control.Disk{}, err
	}
	text, err := os.ReadFile("/sys/block/" + name + "/ro")
	return control.Disk{
		Name: name, Size: size, ReadOnly: strings.TrimSpace(string(text)) == "1", SHA256: hex.EncodeToString(sum.Sum(nil)),
	}, err
}

// seedAt is where the seed is mounted while it is read.
const seedAt = "/seed"

// seed finds the disk whose file system has cloud-init's label and says what is on it, as cloud-init would find it.
func seed(r control.Request) (control.Seed, error) {
	if err := allowed(r); err != nil {
		return control.Seed{}, err
	}
	disks, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return control.Seed{}, err
	}
	for _, path := range disks {
		if label(path) == "cidata" {
			return readSeed(path)
		}
	}
	return control.Seed{}, fmt.Errorf("none of the disks %q has the label cidata", disks)
}

// label reads the label of an ISO 9660 file system: bytes 40 to 71 of its primary volume descriptor, in sector 16 (ECMA-119, 8.4).
func label(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }() // only read
	var descriptor [72]byte
	if _, err := file.ReadAt(descriptor[:], 16*2048); err != nil || !bytes.Equal(descriptor[1:6], []byte("CD001")) {
		return ""
	}
	return strings.ToLower(strings.TrimRight(string(descriptor[40:]), " \x00"))
}

func readSeed(path string) (_ control.Seed, err error) {
	found := control.Seed{Disk: filepath.Base(path), Files: map[string]string{}}
	if err := os.MkdirAll(seedAt, 0o755); err != nil {
		return found, err
	}
	if err := unix.Mount(path, seedAt, "iso9660", unix.MS_RDONLY|unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return found, fmt.Errorf("mount %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(seedAt, 0)) }()
	entries, err := os.ReadDir(seedAt)
	if err != nil {
		return found, err
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(seedAt, e.Name()))
		if err != nil {
			return found, err
		}
		sum := sha256.Sum256(text)
		found.Files[e.Name()] = hex.EncodeToString(sum[:])
		into := map[string]any{"meta-data": &found, "user-data": &found}[e.Name()]
		if body := bytes.TrimPrefix(text, []byte("#cloud-config\n")); into != nil && bytes.HasPrefix(body, []byte("{")) {
			if err := json.Unmarshal(body, into); err != nil {
				return found, fmt.Errorf("%s: %w", e.Name(), err)
			}
		}
	}
	return found, nil
}
