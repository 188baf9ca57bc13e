package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/qmp"
	"github.com/godwit-vm/godwit/internal/fault"
)

// PictureMax bounds a screenshot, in bytes: a display of 2560 × 1600 full of noise is smaller.
const PictureMax = 16 << 20

// Screenshot returns a picture of the VM's display as PNG. QEMU, which a guest may have taken over, names no file: it gets
// a piece of memory to write to, and no more than PictureMax of that is read. Errors: fault.Conflict in QEMU's words when there is no display, fault.Unavailable when
// QEMU does not answer before ctx ends, fault.Internal for what is no PNG.
func (p *Process) Screenshot(ctx context.Context) (picture []byte, err error) {
	monitor := p.QMP()
	if monitor == nil {
		return nil, fault.New(fault.Unavailable, "its monitor is silent")
	}
	memory, target, err := pictureFile()
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	defer func() { _ = errors.Join(memory.Close(), target.Close()) }() // memory only
	set, err := monitor.AddFD(ctx, target)
	if err != nil {
		return nil, err
	}
	err = monitor.Screendump(ctx, fmt.Sprintf("/dev/fdset/%d", set))
	if removeErr := removeFD(ctx, monitor, set); err == nil {
		err = removeErr
	}
	if err != nil {
		return nil, err
	}
	picture, err = io.ReadAll(io.NewSectionReader(memory, 0, PictureMax+1))
	if err != nil {
		return nil, fault.New(fault.Internal, "%w", err)
	}
	if len(picture) > PictureMax {
		return nil, fault.New(fault.Internal, "qemu's picture has more than %d bytes", PictureMax)
	}
	if !bytes.HasPrefix(picture, []byte("\x89PNG\r\n\x1a\n")) {
		return nil, fault.New(fault.Internal, "qemu's picture of %d bytes is no PNG", len(picture))
	}
	return picture, nil
}

// removeFD also works when the caller's time is up.
func removeFD(ctx context.Context, monitor *qmp.Conn, set int) error {
	undo, done := context.WithTimeout(context.WithoutCancel(ctx), endingTimeMax)
	defer done()
	return monitor.RemoveFD(undo, set)
}

// pictureFile returns memory to write to and read from, and the same for writing only: QEMU takes a descriptor for a file that it writes
// with just that access mode. It cannot be sealed, since QEMU empties the file first.
func pictureFile() (memory, target *os.File, err error) {
	fd, err := unix.MemfdCreate("godwit-screenshot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	memory = os.NewFile(uintptr(fd), "screenshot") //nolint:gosec // a descriptor
	target, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		_ = memory.Close()
		return nil, nil, err
	}
	return memory, target, nil
}
