//go:build linux

// Command init is the first and only process of Godwit's Linux guest: it mounts what it needs, loads the virtio modules that the
// initramfs brings, gets an address by DHCP and serves what tests, demo and bench ask of a guest (packages control and stream), a
// heartbeat on a virtio-serial port and a small console on ttyS0. There is no shell, no other program and no disk.
//
// It is written to be quiet: an idle guest should dirty few pages, so the collector runs only when memory is short, buffers are reused,
// and nothing ticks but the heartbeat. A part that fails is reported on the console and the others go on; a panic here becomes the
// kernel's panic, which QEMU reports.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heapMax is where Go's collector begins to work, in bytes. The memory under test lies outside the heap.
const heapMax = 24 << 20

// leaseWait is how long the line "ready" waits for an address.
const leaseWait = 3 * time.Second

// guest is what the parts of init share. All fields are set before the parts start, except the atomic ones.
type guest struct {
	console   *os.File
	boot      string
	started   time.Time
	kernel    string
	uefi      bool
	heartbeat atomic.Uint64          // written by the heartbeat
	ip        atomic.Pointer[string] // written by the network; nil without address
	memory    exercise
	packets   packets
}

func main() {
	if filepath.Base(os.Args[0]) == "shutdown" { // the guest agent wants it: there is no other program
		askOff()
		return
	}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapMax)
	g := &guest{started: time.Now(), console: os.Stdout}
	if err := mount(); err != nil {
		g.say("%v", err)
	}
	if tty, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		g.console = tty
	}
	if err := stirEntropy(); err != nil {
		g.say("%v", err)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	g.boot = hex.EncodeToString(id[:])
	g.memory.seed = uint64(id[0]) | uint64(id[1])<<8 | uint64(id[2])<<16 | uint64(id[3])<<24
	g.kernel = kernelRelease()
	_, err := os.Stat("/sys/firmware/efi")
	g.uefi = err == nil
	g.say("init after %v, kernel %s, boot %s", uptime(), g.kernel, g.boot)
	for _, err := range loadModules("/modules") {
		g.say("%v", err)
	}
	panic(g.run(context.Background()))
}

// run starts the parts; they run for ever, so it returns with an error only.
func (g *guest) run(ctx context.Context) error {
	var parts sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				g.say("%s: %v", name, err)
			}
		})
	}
	if err := g.listen(ctx, part); err != nil {
		return err
	}
	part("heartbeat", g.beat)
	part("control port", g.servePort)
	part("power button", g.watchPower)
	part("guest agent", g.serveAgent)
	addressed := make(chan struct{})
	part("network", func(ctx context.Context) error { return g.network(ctx, addressed) })
	select {
	case <-addressed:
	case <-time.After(leaseWait):
	}
	g.say("ready ip=%s after %v", g.address("none"), uptime())
	part("console", g.serveConsole)
	parts.Wait()
	return fmt.Errorf("all parts have ended")
}

// say prints a line on the console.
func (g *guest) say(format string, args ...any) {
	_, _ = fmt.Fprintf(g.console, "godwit-guest: "+format+"\n", args...) // nobody else to tell
}

// address returns the guest's address, or otherwise.
func (g *guest) address(otherwise string) string {
	if ip := g.ip.Load(); ip != nil {
		return *ip
	}
	return otherwise
}

// mount mounts the kernel's own file systems.
func mount() error {
	for _, fs := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(fs.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fs.kind, fs.at, fs.kind, unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs.at, err)
		}
	}
	return nil
}

// stirEntropy makes the kernel's random numbers ready at once. On a processor without RDRAND (Westmere, emulated) the kernel would collect jitter
// for a second as soon as somebody reads /dev/urandom or calls getrandom. The kernel's UUIDs come without that wait: they differ
// at every boot by clock and cycle counter. They are no secret, and this guest has none: its random numbers tell boots and DHCP
// transactions apart.
func stirEntropy() error {
	uuid, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	var seed struct {
		bits int32 // claimed
		size int32
		data [64]byte
	}
	seed.size = int32(copy(seed.data[:], uuid)) &^ 3
	seed.bits = 8 * seed.size
	random, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = random.Close() }() // nothing was written by it
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&seed))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	return nil
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// uptime is the time since the kernel started, for the boot messages.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano()).Round(time.Millisecond)
}
