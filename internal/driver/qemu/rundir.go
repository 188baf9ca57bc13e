package qemu

import (
	"path/filepath"

	"github.com/godwit-vm/godwit/internal/fault"
)

// SocketPathMax is the longest path that a unix socket can have (unix(7): 108 bytes with the terminating zero).
const SocketPathMax = 107

// Names of the virtio-serial ports as the guest sees them.
const (
	HeartbeatPort = "org.godwit.heartbeat"
	ControlPort   = "org.godwit.control"
	AgentPort     = "org.qemu.guest_agent.0" // qemu-guest-agent looks for this name
)

// AgentDevice and AgentChardev are QEMU's names of the port AgentPort and of what is behind it.
const (
	AgentDevice  = "port3"
	AgentChardev = "agent"
)

// RunDir is the directory of one QEMU's sockets and records.
type RunDir string

// Monitor returns the path of the QMP socket.
func (d RunDir) Monitor() string { return filepath.Join(string(d), "qmp.sock") }

// Serial returns the path of the socket of COM1. It serves one client at a time; what the guest prints while there is none is lost.
func (d RunDir) Serial() string { return filepath.Join(string(d), "serial.sock") }

// Heartbeat returns the path of the socket behind the guest's port HeartbeatPort.
func (d RunDir) Heartbeat() string { return filepath.Join(string(d), "heartbeat.sock") }

// Control returns the path of the socket behind the guest's port ControlPort.
func (d RunDir) Control() string { return filepath.Join(string(d), "control.sock") }

// Agent returns the path of the socket behind the guest's port AgentPort.
func (d RunDir) Agent() string { return filepath.Join(string(d), "agent.sock") }

// Display returns the path of the socket that QEMU shows the VM's display on by VNC.
func (d RunDir) Display() string { return filepath.Join(string(d), "vnc.sock") }

// Log returns the path of the file that collects QEMU's stderr.
func (d RunDir) Log() string { return filepath.Join(string(d), "qemu.log") }

// record returns the path of the file that says which process it is.
func (d RunDir) record() string { return filepath.Join(string(d), "pid") }

// check refuses a directory whose sockets could not be bound.
func (d RunDir) check() error {
	if !filepath.IsAbs(string(d)) {
		return fault.New(fault.Invalid, "run directory %q is not an absolute path", string(d))
	}
	return checkSocket(d.Heartbeat()) // the longest of the names
}

// checkSocket refuses a path that is too long for a unix socket.
func checkSocket(path string) error {
	if len(path) > SocketPathMax {
		return fault.New(fault.Invalid, "socket path %s has %d bytes, a unix socket can have %d: choose a shorter run directory",
			path, len(path), SocketPathMax)
	}
	return nil
}
