package agent

import (
	"context"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/admission"
)

// SetVM is what somebody wants of a VM to be different; what is zero or nil stays.
type SetVM struct {
	CPUs    int
	Memory  inventory.Bytes
	Display *bool
}

// Set changes what a stopped VM is made of. Every reason against it is listed.
func (a *Agent) Set(ctx context.Context, id inventory.VMID, want SetVM) (changed inventory.VM, err error) {
	v, err := a.own(id)
	if err != nil {
		return changed, err
	}
	err = a.tasks.Run(ctx, "vm.set", string(id), v.record().Spec.Name, func(ctx context.Context, _ *task.Task) error {
		changed, err = a.change(ctx, "set", id, func(ctx context.Context, v *vm) error { return v.set(ctx, want) })
		return err
	})
	return changed, err
}

func (v *vm) set(ctx context.Context, want SetVM) error {
	if err := v.must(inventory.Stopped); err != nil {
		return err
	}
	if v.stored.Spec.Template {
		return errTemplateFixed
	}
	self, err := v.agent.describe(ctx)
	if err != nil {
		return err
	}
	self.Status.MemoryFree = self.Spec.Memory // what is free counts when it starts
	return v.commit(ctx, func(s *inventory.VMSpec) error {
		if want.CPUs != 0 {
			s.CPUs = want.CPUs
		}
		if want.Memory != 0 {
			s.Memory = want.Memory
		}
		if want.Display != nil {
			s.Display = *want.Display
		}
		if err := fault.Refuse(fault.Invalid, s.Problems()); err != nil {
			return err
		}
		return fault.Refuse(fault.Incompatible, admission.Create(*s, self))
	})
}
