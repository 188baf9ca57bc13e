package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// viewersMax bounds the viewers of one "vm console --vnc".
const viewersMax = 16

// showMax bounds the wait for a display's first bytes.
const showMax = 10 * time.Second

// serveVNC lets VNC viewers on this machine look at a VM's display, until the command is interrupted.
func serveVNC(cmd *cobra.Command, vm, listen string) error {
	network, address, err := vncAddress(listen)
	if err != nil {
		return err
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	if err := tryDisplay(cmd, c, vm); err != nil { // before a viewer hangs
		return err
	}
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	listener, tidy, err := listenVNC(ctx, network, address, vm)
	if err != nil {
		return err
	}
	defer tidy()
	wake := context.AfterFunc(ctx, func() { _ = listener.Close() }) // ends Accept
	defer wake()
	at := listener.Addr().String()
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), at); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "display of %s: %s; Ctrl-C ends it. A viewer whose VM migrates connects again.\n", vm, viewerHint(network, at))
	slots := make(chan struct{}, viewersMax)
	var viewers sync.WaitGroup
	defer viewers.Wait()
	defer stop() // before the wait above
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fault.New(fault.Unavailable, "%w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			fmt.Fprintf(os.Stderr, "a viewer was turned away: %d look already\n", viewersMax)
			_ = conn.Close() // it has sent nothing of worth
			continue
		}
		viewers.Go(func() {
			defer func() { <-slots }()
			if err := view(ctx, c, vm, conn); err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "a viewer was cut off: %v\n", faultsOf(cmd).read(err))
			}
		})
	}
}

// vncAddress reads --listen: nothing or a path is a unix socket, host:port must be on this machine, as VNC itself protects nothing.
func vncAddress(listen string) (network, address string, err error) {
	if listen == "" || strings.ContainsRune(listen, '/') {
		return "unix", listen, nil
	}
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return "", "", fault.New(fault.Invalid, "--listen %s is neither an address nor a path: write it like 127.0.0.1:5901 or ./web-1.sock", listen)
	}
	if !at.Addr().IsLoopback() {
		return "", "", fault.New(fault.Invalid, "--listen %s: VNC is not protected, so it listens on this machine only: take 127.0.0.1, and reach it by ssh -L", listen)
	}
	return "tcp", listen, nil
}

// listenVNC opens the listener; a unix socket is for this user only. tidy removes what was made for it.
func listenVNC(ctx context.Context, network, address, vm string) (l net.Listener, tidy func(), err error) {
	tidy = func() {}
	if network == "unix" && address == "" {
		dir, err := os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "godwit-vnc-") // mode 0700; without the variable, in the folder of scratch files
		if err != nil {
			return nil, tidy, fault.New(fault.NoResources, "%w", err)
		}
		address = filepath.Join(dir, filepath.Base(vm)+".sock")
		tidy = func() { _ = os.RemoveAll(dir) }
	}
	var config net.ListenConfig
	l, err = config.Listen(ctx, network, address)
	if err == nil && network == "unix" {
		err = os.Chmod(address, 0o600)
	}
	if err != nil {
		if l != nil {
			_ = l.Close() // nobody uses it
		}
		tidy()
		return nil, func() {}, fault.Wrap("--listen", address, listenFault(err))
	}
	return l, tidy, nil
}

// listenFault says why a place cannot be listened at, and what to do.
func listenFault(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.New(fault.Conflict, "somebody else uses it: choose another one, or remove a socket that was left there")
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "its folder is not there: make it, or choose another one")
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "you may not make it: choose another one")
	}
	return fault.New(fault.Invalid, "%w", err)
}

func viewerHint(network, at string) string {
	if network == "unix" {
		return "vncviewer " + at
	}
	host, port, _ := net.SplitHostPort(at) // it is a listener's own
	return fmt.Sprintf("vncviewer %s::%s", host, port)
}

// tryDisplay finds out why there is no display before anybody waits for it.
func tryDisplay(cmd *cobra.Command, c *client, vm string) error {
	ctx, done := context.WithTimeout(cmd.Context(), showMax)
	defer done()
	stream := c.vms.DisplayVM(ctx)
	read := faultsOf(cmd).read
	if err := stream.Send(&godwitv1.DisplayVMRequest{Vm: vm}); err != nil && !errors.Is(err, io.EOF) {
		return read(err)
	}
	if _, err := stream.Receive(); errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "display of %s: it ended at once: try again", vm)
	} else if err != nil {
		return read(err)
	}
	_ = stream.CloseRequest() // the end of ctx ends it anyway
	return nil
}

// view carries one viewer's bytes until either end closes.
func view(ctx context.Context, c *client, vm string, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the reader below
	defer stop()
	stream := c.vms.DisplayVM(ctx)
	if err := stream.Send(&godwitv1.DisplayVMRequest{Vm: vm}); err != nil && !errors.Is(err, io.EOF) {
		cancel()
		return err
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel() // before the wait above
	reader.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 && stream.Send(&godwitv1.DisplayVMRequest{Input: buf[:n]}) != nil || err != nil {
				_ = stream.CloseRequest() // the answer to it is the end of the output
				return
			}
		}
	})
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.Write(msg.GetOutput()); err != nil {
			return nil // the viewer has left
		}
	}
}
