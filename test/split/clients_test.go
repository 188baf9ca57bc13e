package split

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
	"github.com/godwit-vm/godwit/test/lab"
)

// The clients of a run.
const (
	clientsNumber = 3
	clientsPause  = 300 * time.Millisecond // at most, between the calls of one
	callMax       = 4 * time.Second        // after which a client gives a call up
	recordsNumber = 3                      // VMs that they change
)

// clients change the records of VMs by all hosts until they are told to end.
type clients struct {
	history history
	end     context.CancelFunc
	all     sync.WaitGroup
}

// startClients lets clients begin. What each does depends on the seed, and on what it is answered.
func startClients(ctx context.Context, seed uint64, hosts []*lab.Host) *clients {
	ctx, end := context.WithCancel(ctx)
	c := &clients{history: history{begin: time.Now()}, end: end}
	for n := range clientsNumber {
		c.all.Go(func() {
			dice := rand.New(rand.NewPCG(seed, uint64(n)+1)) //nolint:gosec // to be had again from the seed
			callers := make([]*http.Client, len(hosts))
			for i, h := range hosts {
				callers[i] = h.Caller()
				defer callers[i].CloseIdleConnections()
			}
			for ctx.Err() == nil {
				i := dice.IntN(len(hosts))
				c.one(ctx, n, dice, hosts[i], godwitv1connect.NewVMServiceClient(callers[i], lab.AgentURL))
				select {
				case <-ctx.Done():
				case <-time.After(time.Duration(dice.Int64N(int64(clientsPause)))):
				}
			}
		})
	}
	return c
}

// stop ends the clients, after the calls that are under way.
func (c *clients) stop() {
	c.end()
	c.all.Wait()
}

// one is one call. It is not cut short when the clients are to end: then nobody would know what it did.
func (c *clients) one(ctx context.Context, client int, dice *rand.Rand, h *lab.Host, api godwitv1connect.VMServiceClient) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callMax)
	defer cancel()
	verbs := []verb{create, create, get, get, get, set, set, start, stop, stop, destroy}
	what := call{Verb: verbs[dice.IntN(len(verbs))], VM: fmt.Sprintf("record-%d", dice.IntN(recordsNumber)), Host: h.Name}
	if what.Verb == create || what.Verb == set {
		what.Memory = int64(32+dice.IntN(32)) << 20
	}
	c.history.do(client, what, func() answer {
		var vm *godwitv1.VM
		var err error
		switch what.Verb {
		case create:
			_, err = api.CreateVM(ctx, connect.NewRequest(&godwitv1.CreateVMRequest{
				Name: what.VM, Cpus: 1, Memory: what.Memory, Boot: &godwitv1.Boot{Firmware: &godwitv1.File{Datastore: "shared", Path: idleROM}},
			}))
		case destroy:
			_, err = api.DestroyVM(ctx, connect.NewRequest(&godwitv1.DestroyVMRequest{Vm: what.VM}))
		case set:
			_, err = api.SetVM(ctx, connect.NewRequest(&godwitv1.SetVMRequest{Vm: what.VM, Memory: what.Memory}))
		case start:
			_, err = api.StartVM(ctx, connect.NewRequest(&godwitv1.StartVMRequest{Vm: what.VM}))
		case stop:
			_, err = api.StopVM(ctx, connect.NewRequest(&godwitv1.StopVMRequest{Vm: what.VM, Force: true}))
		case get:
			var resp *connect.Response[godwitv1.GetVMResponse]
			if resp, err = api.GetVM(ctx, connect.NewRequest(&godwitv1.GetVMRequest{Vm: what.VM})); err == nil {
				vm = resp.Msg.GetVm()
			}
		}
		a := learned(err)
		if vm != nil {
			a.Record = record{true, vm.GetSpec().GetMemory(), vm.GetRun().GetWanted() == godwitv1.Power_POWER_ON}
		}
		return a
	})
}

// learned is what an error says of a call's effect. A refusal says that there was none; what was cut short says nothing.
func learned(err error) answer {
	if err == nil {
		return answer{Outcome: done}
	}
	a := answer{Outcome: unknown, Text: err.Error()}
	var from *connect.Error
	if !errors.As(err, &from) || !connect.IsWireError(err) {
		return a // nobody has answered
	}
	switch fault.KindOf(wire.FromFault(err)) { //nolint:exhaustive // the rest says nothing
	case fault.NotFound:
		a.Outcome = missing
	case fault.Exists:
		a.Outcome = exists
	case fault.Conflict, fault.Invalid, fault.Incompatible:
		a.Outcome = refused
	}
	return a
}

// idleROM is what the clients' VMs run, in the shared datastore.
const idleROM = "idle.rom"
