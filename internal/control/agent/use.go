package agent

import (
	"context"
	"slices"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// use is why a stopped VM has to stay as it is for a while: its disks are being read. It is in memory only, as what goes on ends
// with the agent.
type use struct {
	why    string // "it is being moved to host-2"
	shared bool   // others may read at the same time
}

// useEnd bounds the wait for the loop to note that a use is over.
const useEnd = 10 * time.Second

// hold keeps the stopped VM as it is until the returned function is called: no start, no change of its devices, no destroy.
// check is asked in the loop about the VM as it is, and its error refuses.
func (v *vm) hold(ctx context.Context, why string, shared bool, check func(inventory.VM) error) (release func(), err error) {
	u := &use{why: why, shared: shared}
	err = v.do(ctx, func(context.Context) error {
		if v.source != nil || v.target != nil {
			return errMigrating
		}
		for _, other := range v.uses {
			if !shared || !other.shared {
				return other.refuse()
			}
		}
		if err := check(v.record()); err != nil {
			return err
		}
		v.uses = append(v.uses, u)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return func() {
		undo, done := context.WithTimeout(context.WithoutCancel(ctx), useEnd)
		defer done()
		// A loop that has ended holds nothing.
		_ = v.do(undo, func(context.Context) error {
			v.uses = slices.DeleteFunc(v.uses, func(o *use) bool { return o == u })
			return nil
		})
	}, nil
}

// free refuses what would change a VM that is in use.
func (v *vm) free() error {
	if len(v.uses) > 0 {
		return v.uses[0].refuse()
	}
	return nil
}

func (u *use) refuse() error {
	return fault.New(fault.Conflict, "%s: wait for that, or end it with godwit task cancel", u.why)
}
