package systemd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/godwit-vm/godwit/internal/fault"
)

// unit is the name of the service.
const unit = "godwit.service"

// Missing returns why systemd cannot be asked to do anything on this machine, "" when it can (sd_booted(3)).
func Missing() string {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return ""
	}
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return "systemd does not run here"
	}
	return "systemd does not run here: process 1 is " + strings.TrimSpace(string(comm))
}

// MakeUser makes the users of the file that Install wrote, and reports whether that was possible.
func MakeUser(ctx context.Context) error {
	return command(ctx, "systemd-sysusers", SysusersFile)
}

// RemoveUser removes a user that MakeUser made. What still belongs to it keeps its number.
func RemoveUser(ctx context.Context, name string) error { return command(ctx, "userdel", name) }

// MakeFolders makes the folders of the file that Install wrote.
func MakeFolders(ctx context.Context) error {
	return command(ctx, "systemd-tmpfiles", "--create", TmpfilesFile)
}

// Reload makes systemd read its units again.
func Reload(ctx context.Context) error { return command(ctx, "systemctl", "daemon-reload") }

// Start starts the service now and at every boot, and returns when it has been told to: a host that waits for its cluster does not
// hold up whoever calls.
func Start(ctx context.Context) error {
	return command(ctx, "systemctl", "enable", "--now", "--no-block", unit)
}

// Stop ends the service and keeps it from starting at the next boot. It returns when the service has ended.
func Stop(ctx context.Context) error { return command(ctx, "systemctl", "disable", "--now", unit) }

// command runs a program; its error is the program's own last words.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fault.New(fault.NotFound, "%s is not installed", name)
	case ctx.Err() != nil:
		return fault.New(fault.Canceled, "%s: %w", name, ctx.Err())
	}
	return fault.New(fault.Unavailable, "%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
}

// ownerOf returns the user that a file belongs to.
func ownerOf(info fs.FileInfo) (uid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}
