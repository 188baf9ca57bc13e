//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the guest that has qemu-guest-agent has it (guest/build, Agent), and the port that it serves.
const (
	agentProgram = "/usr/sbin/qemu-ga"
	agentPort    = "org.qemu.guest_agent.0"
	agentDisk    = "/dev/vda"
	hostname     = "godwit-guest"
)

// serveAgent runs qemu-guest-agent, if this guest has it, on a mounted first disk, if there is one. Where the machine has no port for it, it does not.
func (g *guest) serveAgent(ctx context.Context) error {
	if _, err := os.Stat(agentProgram); err != nil {
		return nil //nolint:nilerr // the plain guest has none
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if _, err := os.Stat(agentDisk); err == nil {
		if err := unix.Mount(agentDisk, "/mnt", "ext4", 0, ""); err != nil {
			g.say("mount %s: %v", agentDisk, err) // an empty disk is none of ours
		}
	}
	port := findPort(agentPort)
	if port == "" {
		return errors.New("the machine has no port for it")
	}
	agent := exec.CommandContext(ctx, agentProgram, "--method", "virtio-serial", "--path", port, "--statedir", "/run")
	agent.Stdout, agent.Stderr = g.console, g.console
	return agent.Run()
}

// lazy, on the kernel's command line, makes a guest whose /sbin/shutdown says yes and does nothing, as one that hangs at its end.
const lazy = "godwit.lazy"

// askOff is what /sbin/shutdown does: it turns the machine off at once, as there is nothing to end in order first.
func askOff() {
	if line, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(line), lazy) {
		return
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "shutdown:", err)
		os.Exit(1)
	}
}
