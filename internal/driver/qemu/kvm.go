package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/guest/tiny"
)

// kvmDevice is what opens KVM.
const kvmDevice = "/dev/kvm"

// Bounds of the proof of KVM. A KVM that only seems to be one (a PVM host's: it opens, runs real mode, says enabled and
// running) is silent for as long as one cares to wait; TCG needs 0.6 s for the same code.
const (
	kvmProofMax = 2 * time.Second
	kvmStartMax = 5 * time.Second
)

// kvmAccess describes the device, for the cache's key.
func kvmAccess() string {
	info, err := os.Stat(kvmDevice)
	if err != nil {
		return "no-kvm"
	}
	return info.Mode().String() + info.ModTime().UTC().Format(time.RFC3339)
}

// disproveKVM returns why KVM cannot be relied on, or "" when it has run 64-bit code.
func disproveKVM(ctx context.Context, cfg ProbeConfig) string {
	if _, err := os.Stat(kvmDevice); errors.Is(err, fs.ErrNotExist) {
		return "this host has no " + kvmDevice
	}
	ctx, cancel := context.WithTimeout(ctx, kvmStartMax+kvmProofMax)
	defer cancel()
	args := append([]string{"-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64M"}, serialArgs...)
	t, err := startTrial(ctx, cfg.binary(), cfg.User, tiny.Long(), args...)
	switch {
	case err != nil && strings.Contains(err.Error(), "Permission denied"):
		return fmt.Sprintf("%s may not open %s: put the user into the device's group", cfg.User, kvmDevice)
	case err != nil:
		return "kvm does not start: " + err.Error()
	}
	defer t.close()
	console, err := t.console(ctx)
	if err != nil {
		return "kvm does not start: " + err.Error()
	}
	defer func() { _ = console.Close() }() // only read from
	if err := console.SetReadDeadline(time.Now().Add(kvmProofMax)); err != nil {
		return "kvm could not be tried: " + err.Error()
	}
	var said strings.Builder
	one := make([]byte, 1)
	for {
		_, err := io.ReadFull(console, one)
		if err != nil {
			return fmt.Sprintf("%s opens, but its guest ran no 64-bit code within %v (it said %q)", kvmDevice, kvmProofMax, said.String())
		}
		if one[0] == tiny.LongProof {
			return ""
		}
		said.WriteByte(one[0])
	}
}
