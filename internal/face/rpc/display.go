package rpc

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
)

type displayStream = connect.BidiStream[godwitv1.DisplayVMRequest, godwitv1.DisplayVMResponse]

// displayChunk is how much of a display's bytes go into one message.
const displayChunk = 32 << 10

// ScreenshotVM returns a picture of the VM's display.
func (s *vms) ScreenshotVM(ctx context.Context, req *connect.Request[godwitv1.ScreenshotVMRequest]) (*connect.Response[godwitv1.ScreenshotVMResponse], error) {
	vm, remote, err := route(ctx, s.agent, req.Header(), req.Msg.GetVm())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.ScreenshotVM(ctx, connect.NewRequest(req.Msg))
	}
	picture, err := s.agent.Screenshot(ctx, vm.ID)
	return connect.NewResponse(&godwitv1.ScreenshotVMResponse{Png: picture}), err
}

// DisplayVM joins one viewer to the VM's VNC server until either end leaves.
func (s *vms) DisplayVM(ctx context.Context, stream *displayStream) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	vm, remote, err := route(ctx, s.agent, stream.RequestHeader(), first.GetVm())
	if err != nil {
		return err
	}
	if remote != nil {
		return passDisplay(ctx, stream, remote, first)
	}
	conn, err := s.agent.Display(ctx, vm.ID)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the display goes on without this viewer
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	typed := make(chan error, 1)
	go func() { // ends when the viewer closes its side or the handler returns: Receive then fails
		typed <- receiveDisplay(stream, func(b []byte) error { _, err := conn.Write(b); return err })
		_ = conn.Close() // the viewer has left: ends the loop below
	}()
	chunk := make([]byte, displayChunk)
	for {
		n, err := conn.Read(chunk)
		if n > 0 {
			if err := stream.Send(&godwitv1.DisplayVMResponse{Output: chunk[:n]}); err != nil {
				return err
			}
		}
		if err != nil { // QEMU ended, or the viewer left: then it is that one's error that counts
			select {
			case err := <-typed:
				return err
			default:
				return ctx.Err()
			}
		}
	}
}

func receiveDisplay(stream *displayStream, write func([]byte) error) error {
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
				return nil //nolint:nilerr // the display ended: no fault of the viewer
			}
		}
	}
}

// passDisplay joins a viewer to a display on another host.
func passDisplay(ctx context.Context, stream *displayStream, remote godwitv1connect.VMServiceClient, first *godwitv1.DisplayVMRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	far := remote.DisplayVM(ctx)
	if err := far.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends when the viewer closes its side or the handler returns: Receive then fails
		_ = receiveDisplay(stream, func(b []byte) error { return far.Send(&godwitv1.DisplayVMRequest{Input: b}) }) // what fails there fails below too
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
		if err := stream.Send(&godwitv1.DisplayVMResponse{Output: msg.GetOutput()}); err != nil {
			return err
		}
	}
}
