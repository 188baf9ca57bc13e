// Package watchdog is what resets this machine when it is not fed in time: a device of the kernel (Documentation/watchdog/watchdog-api.rst),
// which goes on counting when everything above it stands still, or for clusters that only play at being machines, a process outside of the
// host that ends it (socket.go). It says nothing of when it is fed: that is policy/authority's.
package watchdog

import (
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Device is where a machine's first watchdog is, whatever its driver.
const Device = "/dev/watchdog"

// socketPrefix begins the name of a watchdog that is no device.
const socketPrefix = "unix:"

// Watchdog is one watchdog, open or not. Open, Feed and Disarm are for one goroutine.
type Watchdog struct {
	name    string
	timeout time.Duration
	open    func() (armed, error)
	armed   armed // nil while it is not open
}

// armed is a watchdog that counts.
type armed interface {
	feed() error
	disarm() error // and gives it back, armed still if it cannot be taken off
}

// New returns the watchdog with that name, a device or unix:PATH of a socket, not open yet. It must fire within timeout after it was fed last.
func New(name string, timeout time.Duration) *Watchdog {
	w := &Watchdog{name: name, timeout: timeout}
	if path, ok := strings.CutPrefix(name, socketPrefix); ok {
		w.open = func() (armed, error) { return openSocket(path, timeout) }
	} else {
		w.open = func() (armed, error) { return openDevice(kernel{}, name, timeout) }
	}
	return w
}

// Open opens and arms the watchdog, which counts as a feeding. An error says that it does not reset this machine in time whatever happens to
// this process; then it is off, if it can be taken off.
func (w *Watchdog) Open() error {
	if w.armed != nil {
		return nil
	}
	a, err := w.open()
	if err != nil {
		return fault.Wrap("", "watchdog "+w.name, err)
	}
	w.armed = a
	return nil
}

// Feed has it count anew.
func (w *Watchdog) Feed() error {
	if w.armed == nil {
		return fault.New(fault.Internal, "watchdog %s: it is not open", w.name)
	}
	return fault.Wrap("", "watchdog "+w.name, w.armed.feed())
}

// Disarm takes it off and closes it. After an error it goes on counting, and nobody feeds it.
func (w *Watchdog) Disarm() error {
	if w.armed == nil {
		return nil
	}
	err := w.armed.disarm()
	w.armed = nil
	return fault.Wrap("", "watchdog "+w.name, err)
}
