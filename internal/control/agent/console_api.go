package agent

import (
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Console joins the serial port of a VM that runs here: what it said lately, what it says from now on (the channel is
// closed when its process ends), and how to type. leave must be called.
func (a *Agent) Console(id inventory.VMID) (kept []byte, output <-chan []byte, write func([]byte) error, leave func(), err error) {
	v, err := a.own(id)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	v.mu.Lock()
	c := v.console
	v.mu.Unlock()
	if c == nil {
		return nil, nil, nil, nil, fault.New(fault.Conflict, "console of vm %s: it is %v: start it first", v.record().Spec.Name, v.snapshot().State)
	}
	kept, output, leave = c.watch()
	return kept, output, c.write, leave, nil
}
