// Package guest finds the Linux guest that demo, tests and bench run: Debian's cloud kernel, which scripts/setup puts into the cache, and an
// initramfs with our own init, which this package has built when it is missing or out of date.
//
// The guest itself is in guest/init; guest/control and guest/stream are how to speak with it. guest/tiny are guests without Linux.
package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/guest/build"
)

// Linux is what QEMU needs to boot the guest directly.
type Linux struct {
	Kernel  string // path of the kernel
	Initrd  string // path of the initramfs; its name changes with its content
	Cmdline string // the kernel's command line
}

// Cmdline is the guest's kernel command line: a serial console, and nothing that costs an emulated processor time at boot.
// Measured on 2 cores under TCG (QEMU 10.0, q35, Westmere, 512 MiB): ready after 2.4 s, with "console=ttyS0 quiet" alone 3.2 s.
const Cmdline = "console=ttyS0 quiet " +
	"panic=-1 " + // at once, as nobody is there to read
	"mitigations=off lsm=capability audit=0 cryptomgr.notests ipv6.disable=1 8250.nr_uarts=1 nokaslr " + // what a guest with one program does not need
	"tsc=reliable no_timer_check random.trust_cpu=on" // checks that an emulated processor fails or answers late

// keptMax is how many archives stay in the cache: machines that were started with an older one may want it again.
const keptMax = 8

// Cache returns the folder of downloads and built images: $GODWIT_CACHE, or godwit in the user's cache folder ($XDG_CACHE_HOME or
// ~/.cache), as scripts/setup has it.
func Cache() (string, error) {
	if dir := os.Getenv("GODWIT_CACHE"); dir != "" {
		return dir, nil
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w; set GODWIT_CACHE", err)
	}
	return filepath.Join(base, "godwit"), nil
}

// Images returns the Linux guest, with an initramfs built from this checkout's sources: it calls the Go tool, which does nothing when
// nothing changed, so it needs the source tree as working directory or above it. The error says what to do when the kernel is missing.
func Images(ctx context.Context) (Linux, error) { return images(ctx, false) }

// ImagesWithAgent returns the guest with the real qemu-guest-agent in it, which scripts/setup puts into the cache. Its archive is 7 MiB larger.
// A disk with an ext4 file system is mounted in it, for the agent to freeze.
func ImagesWithAgent(ctx context.Context) (Linux, error) { return images(ctx, true) }

func images(ctx context.Context, agent bool) (Linux, error) {
	cache, err := Cache()
	if err != nil {
		return Linux{}, err
	}
	kernel := filepath.Join(cache, "kernel", "vmlinuz")
	if _, err := os.Stat(kernel); errors.Is(err, fs.ErrNotExist) {
		return Linux{}, fmt.Errorf("guest kernel %s is missing; run make setup", kernel)
	} else if err != nil {
		return Linux{}, fmt.Errorf("guest kernel: %w", err)
	}
	agentDir := ""
	if agent {
		agentDir = filepath.Join(cache, "agent")
		if _, err := os.Stat(filepath.Join(agentDir, "version")); err != nil {
			return Linux{}, fmt.Errorf("qemu-guest-agent for the guest: %w; run make setup", err)
		}
	}
	initrd, err := initramfs(ctx, cache, agentDir)
	if err != nil {
		return Linux{}, fmt.Errorf("guest: %w", err)
	}
	return Linux{Kernel: kernel, Initrd: initrd, Cmdline: Cmdline}, nil
}

// initramfs builds the archive into a scratch file and gives it a name made from its content. Whoever comes at the same time makes the
// same file, and one of them wins.
func initramfs(ctx context.Context, cache, agentDir string) (path string, err error) {
	scratch, err := os.CreateTemp(cache, ".initramfs-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = scratch.Close()
		}
		_ = os.Remove(scratch.Name()) // gone already when all went well
	}()
	sum := sha256.New()
	both, modules := io.MultiWriter(scratch, sum), filepath.Join(cache, "kernel", "modules")
	if err := build.Initramfs(ctx, both, "", modules); err != nil {
		return "", err
	}
	if agentDir != "" {
		if err := build.Agent(both, agentDir, modules); err != nil {
			return "", err
		}
	}
	path = filepath.Join(cache, "initramfs-"+hex.EncodeToString(sum.Sum(nil)[:8])+".cpio")
	if err := scratch.Chmod(0o644); err != nil {
		return "", err
	}
	if err := scratch.Close(); err != nil {
		return "", err
	}
	if err := os.Rename(scratch.Name(), path); err != nil {
		return "", err
	}
	return path, prune(cache, path)
}

// prune removes all but the newest archives; keep is never removed.
func prune(cache, keep string) error {
	found, err := filepath.Glob(filepath.Join(cache, "initramfs-*.cpio"))
	if err != nil || len(found) <= keptMax {
		return err
	}
	age := func(path string) time.Time {
		info, err := os.Stat(path)
		if err != nil {
			return time.Time{} // somebody else removed it: the oldest
		}
		return info.ModTime()
	}
	slices.SortFunc(found, func(a, b string) int { return age(b).Compare(age(a)) })
	for _, old := range found[keptMax:] {
		if old == keep {
			continue
		}
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
