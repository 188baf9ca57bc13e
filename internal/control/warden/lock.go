package warden

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// lock makes this process the only warden with that run directory, until the process ends.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // QEMU's user passes through to its own sockets
		return nil, fault.New(fault.Internal, "run directory: %w", err)
	}
	unlock, holder, err := tryLock(filepath.Join(dir, "warden.lock"))
	if err == nil && unlock == nil {
		return nil, fault.New(fault.Conflict, "godwit runs here already, as process %s: end it first, or use another --run directory", holder)
	}
	return unlock, err
}

// Holder returns the process id of the warden that runs with that run directory, "" when none does.
func Holder(dir string) (string, error) {
	path := filepath.Join(dir, "warden.lock")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	unlock, holder, err := tryLock(path)
	if unlock != nil {
		unlock()
		return "", err
	}
	return holder, err
}

// claimEvery is the pause between two tries of Claim.
const claimEvery = 10 * time.Millisecond

// Claim makes this process the only one in its role with that run directory. A process of a former warden may still be in the
// kernel's hands, dying; Claim waits for its end, so that it finds its ports and sockets free, and says so over the line. It
// gives up when ctx ends.
func Claim(ctx context.Context, dir, role string, line *Line) (release func(), err error) {
	tick := time.NewTicker(claimEvery)
	defer tick.Stop()
	told := time.Time{}
	for {
		release, holder, err := tryLock(filepath.Join(dir, role+".lock"))
		if err != nil || release != nil {
			return release, err
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			line.Starting(fmt.Sprintf("waits for the former %s, process %s, to end", role, holder))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// tryLock locks the file and writes this process' id into it. Without an error and without unlock, holder has it.
func tryLock(path string) (unlock func(), holder string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", fault.New(fault.Denied, "lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		text, _ := os.ReadFile(path) // for the message only
		_ = f.Close()                // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, strings.TrimSpace(string(text)), nil
		}
		return nil, "", fault.New(fault.Internal, "lock %s: %w", path, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		_ = f.Close() // the error that counts is err
		return nil, "", fault.New(fault.NoResources, "lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, "", nil // releases the lock; all was written
}
