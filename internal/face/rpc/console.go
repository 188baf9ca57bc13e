package rpc

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

type consoleStream = connect.BidiStream[godwitv1.ConsoleVMRequest, godwitv1.ConsoleVMResponse]

// ConsoleVM joins the caller to the VM's serial port until either end leaves.
func (s *vms) ConsoleVM(ctx context.Context, stream *consoleStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	vm, remote, err := route(ctx, s.agent, stream.RequestHeader(), first.GetVm())
	if err != nil {
		return err
	}
	if remote != nil {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return passStream(stream, remote.ConsoleVM(ctx), first)
	}
	kept, output, write, leave, err := s.agent.Console(vm.ID)
	if err != nil {
		return err
	}
	defer leave()
	if len(kept) > 0 {
		if err := stream.Send(&godwitv1.ConsoleVMResponse{Output: kept}); err != nil {
			return err
		}
	}
	typed := make(chan error, 1)
	go func() { // ends when the caller closes its side or the handler returns: Receive then fails
		typed <- receiveInput(stream, write)
	}()
	for {
		select {
		case chunk, more := <-output:
			if !more {
				return nil // the VM's process ended
			}
			if err := stream.Send(&godwitv1.ConsoleVMResponse{Output: chunk}); err != nil {
				return err
			}
		case err := <-typed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
