package agent

import (
	"context"
	"net"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// screenMax bounds a screenshot: QEMU takes it between two steps of its main loop.
const screenMax = 10 * time.Second

// Display connects to the VNC server of a VM that runs here (RFC 6143, without authentication: the API is what protects it). Each
// connection is one viewer; many may look at once. The caller closes it. It ends with the VM's process here, so also when the VM
// moves; a viewer then connects anew.
func (a *Agent) Display(ctx context.Context, id inventory.VMID) (net.Conn, error) {
	process, err := a.screen(id)
	if err != nil {
		return nil, fault.Wrap("display", "", err)
	}
	var dialer net.Dialer
	within, done := context.WithTimeout(ctx, screenMax)
	defer done()
	conn, err := dialer.DialContext(within, "unix", process.Dir().Display())
	if err != nil {
		return nil, fault.Wrap("display", "", fault.New(fault.Unavailable, "%w", err))
	}
	return conn, nil
}

// Screenshot returns a picture of the display of a VM that runs here, as PNG.
func (a *Agent) Screenshot(ctx context.Context, id inventory.VMID) ([]byte, error) {
	process, err := a.screen(id)
	if err != nil {
		return nil, fault.Wrap("screenshot", "", err)
	}
	within, done := context.WithTimeout(ctx, screenMax)
	defer done()
	picture, err := process.Screenshot(within)
	return picture, fault.Wrap("screenshot", "", err)
}

// screen returns the process of a VM with a display.
func (a *Agent) screen(id inventory.VMID) (*qemu.Process, error) {
	v, err := a.own(id)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	spec := v.stored.Spec
	switch {
	case !spec.Display:
		return nil, fault.New(fault.Conflict, "vm %s has no display: it has a serial console (godwit vm console %s); give it one while it is stopped (godwit vm set %s --display)", spec.Name, spec.Name, spec.Name)
	case v.process == nil:
		return nil, fault.New(fault.Conflict, "vm %s is %v: start it first", spec.Name, v.stored.Status.State)
	}
	return v.process, nil
}
