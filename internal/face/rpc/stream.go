package rpc

import (
	"errors"
	"io"

	"connectrpc.com/connect"
)

// receiveInput hands what the caller sends to write, until the caller closes its side or write says io.EOF: neither is an error.
func receiveInput[Req, Resp any, Input interface {
	*Req
	GetInput() []byte
}](stream *connect.BidiStream[Req, Resp], write func([]byte) error,
) error {
	for {
		msg, err := stream.Receive()
		if err == nil {
			if b := Input(msg).GetInput(); len(b) > 0 {
				err = write(b)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// passStream joins the caller's stream, of which first has been received, to the same call on another host. It ends with that one,
// whether the caller still sends or not. The context that far was made with must end when passStream returns.
func passStream[Req, Resp any](near *connect.BidiStream[Req, Resp], far *connect.BidiStreamForClient[Req, Resp], first *Req) error {
	if err := far.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	go func() { // ends when the caller closes its side or the handler returns: Receive then fails
		for {
			msg, err := near.Receive()
			if err != nil || far.Send(msg) != nil { // what fails there fails below too
				break
			}
		}
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
		if err := near.Send(msg); err != nil {
			return err
		}
	}
}
