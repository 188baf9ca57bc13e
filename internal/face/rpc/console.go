package rpc

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
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
		return passConsole(ctx, stream, remote, first)
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
		typed <- receiveAll(stream, write)
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

func receiveAll(stream *consoleStream, write func([]byte) error) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(msg.GetInput()) > 0 {
			if err := write(msg.GetInput()); err != nil {
				return err
			}
		}
	}
}

// passConsole joins the caller to the console on another host. It ends with that one, whether the caller still types or not.
func passConsole(ctx context.Context, stream *consoleStream, remote godwitv1connect.VMServiceClient, first *godwitv1.ConsoleVMRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	far := remote.ConsoleVM(ctx)
	if err := far.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends when the caller closes its side or the handler returns: Receive then fails
		_ = receiveAll(stream, func(b []byte) error { return far.Send(&godwitv1.ConsoleVMRequest{Input: b}) }) // what fails there fails below too
		_ = far.CloseRequest()
	}()
	for {
		msg, err := far.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&godwitv1.ConsoleVMResponse{Output: msg.GetOutput()}); err != nil {
			return err
		}
	}
}
