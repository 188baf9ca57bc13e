package qmp

import (
	"context"
)

// RunState is what the VM inside QEMU does (QAPI "RunState").
type RunState string

// The run states that Godwit meets.
const (
	StatePrelaunch     RunState = "prelaunch" // started with -S, never ran
	StateInMigrate     RunState = "inmigrate" // waits for or receives an incoming migration
	StateRunning       RunState = "running"
	StatePaused        RunState = "paused"
	StateFinishMigrate RunState = "finish-migrate" // stopped for the last pages; for a moment also after the event completed
	StatePostMigrate   RunState = "postmigrate"    // left by a completed migration: must not run again without the release rules
	StateShutdown      RunState = "shutdown"
	StateIOError       RunState = "io-error"
	StateGuestPanicked RunState = "guest-panicked"
	StateSuspended     RunState = "suspended"
	StateInternalError RunState = "internal-error"
)

// Status is the answer of query-status.
type Status struct {
	Running bool     `json:"running"`
	State   RunState `json:"status"`
}

// Status asks what the VM does.
func (c *Conn) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.Do(ctx, "query-status", nil, &s)
	return s, err
}

// Cont lets the vCPUs run. After an incoming migration it also activates the disks; QEMU refuses when another process
// holds their locks.
func (c *Conn) Cont(ctx context.Context) error { return c.Do(ctx, "cont", nil, nil) }

// Stop stops the vCPUs and flushes the disks. Memory stays.
func (c *Conn) Stop(ctx context.Context) error { return c.Do(ctx, "stop", nil, nil) }

// Reset presses the VM's reset button.
func (c *Conn) Reset(ctx context.Context) error { return c.Do(ctx, "system_reset", nil, nil) }

// Powerdown presses the VM's power button. A guest without ACPI support ignores it, so the caller needs a limit of its own.
func (c *Conn) Powerdown(ctx context.Context) error { return c.Do(ctx, "system_powerdown", nil, nil) }

// Quit ends the QEMU process, which flushes and closes its disks first. The connection ends with it.
func (c *Conn) Quit(ctx context.Context) error { return c.Do(ctx, "quit", nil, nil) }

// Version asks for QEMU's version and the build string of its package.
func (c *Conn) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.Do(ctx, "query-version", nil, &v)
	return v, err
}

// KVM is the answer of query-kvm. Enabled does not prove that KVM runs 64-bit code (a PVM host says the same).
type KVM struct {
	Enabled bool `json:"enabled"`
	Present bool `json:"present"`
}

// KVM asks whether QEMU uses KVM.
func (c *Conn) KVM(ctx context.Context) (KVM, error) {
	var k KVM
	err := c.Do(ctx, "query-kvm", nil, &k)
	return k, err
}

// Machine is a machine type of query-machines.
type Machine struct {
	Name       string `json:"name"`
	Alias      string `json:"alias"`
	Default    bool   `json:"is-default"`
	CPUsMax    int    `json:"cpu-max"`
	Deprecated bool   `json:"deprecated"`
}

// Machines lists the machine types that this QEMU has.
func (c *Conn) Machines(ctx context.Context) ([]Machine, error) {
	var m []Machine
	err := c.Do(ctx, "query-machines", nil, &m)
	return m, err
}

// Commands lists the names of the commands that this QEMU has.
func (c *Conn) Commands(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name string `json:"name"`
	}
	err := c.Do(ctx, "query-commands", nil, &list)
	names := make(map[string]bool, len(list))
	for _, l := range list {
		names[l.Name] = true
	}
	return names, err
}

// CommandLineOptions lists the options that this QEMU was built with. Only those are listed that take key=value pairs.
func (c *Conn) CommandLineOptions(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Option string `json:"option"`
	}
	err := c.Do(ctx, "query-command-line-options", nil, &list)
	names := make(map[string]bool, len(list))
	for _, l := range list {
		names[l.Option] = true
	}
	return names, err
}
