//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/guest/control"
)

// beatEvery is the time between two heartbeats.
const beatEvery = 200 * time.Millisecond

// beat counts heartbeats and writes each to its port, if the machine has one. A line that nobody takes is dropped: the heartbeat must never wait.
func (g *guest) beat(ctx context.Context) error {
	port := -1
	if path := findPort(control.HeartbeatName); path != "" {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			g.say("heartbeat: %s: %v", path, err)
		} else {
			port = fd
		}
	}
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	line := make([]byte, 0, 128)
	for {
		count := g.heartbeat.Add(1)
		if port >= 0 {
			beat := control.Heartbeat{Count: count, UptimeMS: time.Since(g.started).Milliseconds(), Boot: g.boot, IP: g.address("")}
			line = beat.AppendTo(line[:0])
			_, _ = unix.Write(port, line) // EAGAIN says that nobody listens
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// servePort serves the control protocol on its virtio-serial port, if the machine has one.
func (g *guest) servePort(ctx context.Context) error {
	path := findPort(control.PortName)
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // the guest ends with it
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return g.serveLines(ctx, struct {
		io.Reader
		io.Writer
	}{portReader(func(b []byte) (n int, err error) {
		// The port reads as ended while nobody is connected at the host's side; wait for the next to come.
		if waitErr := raw.Read(func(fd uintptr) bool {
			n, err = unix.Read(int(fd), b)
			return n > 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
		}); waitErr != nil {
			return 0, waitErr
		}
		return n, err
	}), file})
}

// portReader is a function as an io.Reader.
type portReader func([]byte) (int, error)

// Read calls the function.
func (r portReader) Read(b []byte) (int, error) { return r(b) }

// findPort returns the device of the virtio-serial port of that name, or nothing.
func findPort(name string) string {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return ""
	}
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(content)) == name {
			return fmt.Sprintf("/dev/%s", filepath.Base(filepath.Dir(file)))
		}
	}
	return ""
}
