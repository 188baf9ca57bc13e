//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	eventSize = 24 // struct input_event on amd64
	evKey     = 1
	keyPower  = 116
)

// watchPower turns the guest off when the machine's power button is pressed (QMP system_powerdown).
func (g *guest) watchPower(ctx context.Context) error {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return err
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(text)) != "Power Button" {
			continue
		}
		file, err := os.Open("/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(name))))
		if err != nil {
			return err
		}
		return g.readPower(ctx, file)
	}
	return nil // a machine without ACPI has none
}

func (g *guest) readPower(ctx context.Context, button io.ReadCloser) error {
	defer func() { _ = button.Close() }() // only read
	var event [eventSize]byte
	for ctx.Err() == nil {
		if _, err := io.ReadFull(button, event[:]); err != nil {
			return err
		}
		kind := binary.LittleEndian.Uint16(event[16:])
		code := binary.LittleEndian.Uint16(event[18:])
		value := binary.LittleEndian.Uint32(event[20:])
		if kind == evKey && code == keyPower && value == 1 {
			g.say("power button")
			g.leave(false)
		}
	}
	return ctx.Err()
}

// leave turns the guest off, or restarts it. It does not return.
func (g *guest) leave(restart bool) {
	how, word := unix.LINUX_REBOOT_CMD_POWER_OFF, "power off"
	if restart {
		how, word = unix.LINUX_REBOOT_CMD_RESTART, "restart"
	}
	g.say("%s after %v", word, uptime())
	unix.Sync()
	if err := unix.Reboot(how); err != nil {
		g.say("%s: %v", word, err)
	}
}
