package rpc

import (
	"context"
	"io"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/inventory"
)

type displayStream = connect.BidiStream[godwitv1.DisplayVMRequest, godwitv1.DisplayVMResponse]

// displayChunk is how much of a display's bytes go into one message.
const displayChunk = 32 << 10

// ScreenshotVM returns a picture of the VM's display.
func (s *vms) ScreenshotVM(ctx context.Context, req *connect.Request[godwitv1.ScreenshotVMRequest]) (*connect.Response[godwitv1.ScreenshotVMResponse], error) {
	return owned(ctx, s.agent, req, godwitv1connect.VMServiceClient.ScreenshotVM, func(vm inventory.VM) (*godwitv1.ScreenshotVMResponse, error) {
		picture, err := s.agent.Screenshot(ctx, vm.ID)
		return &godwitv1.ScreenshotVMResponse{Png: picture}, err
	})
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
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return passStream(stream, remote.DisplayVM(ctx), first)
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
		typed <- receiveInput(stream, func(b []byte) error {
			if _, err := conn.Write(b); err != nil {
				return io.EOF // the display ended: no fault of the viewer
			}
			return nil
		})
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
