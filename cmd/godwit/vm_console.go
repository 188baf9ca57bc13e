package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// detach is Ctrl-], the key that telnet and virsh taught everybody.
const detach = 0x1d

func newVMConsole() *cobra.Command {
	var vnc bool
	var listen string
	cmd := &cobra.Command{
		Use: "console VM", Short: "Join a VM's serial console, or show its display to VNC viewers", Args: cobra.ExactArgs(1),
		Long: `Console joins the VM's serial console; Ctrl-] leaves it.

With --vnc it makes a VNC server of the VM's display, prints where, and carries the bytes of any viewers
until Ctrl-C, from whichever host the VM runs on. Without --listen that is a unix socket for this user only;
an address like 127.0.0.1:5901 is open to every user of this machine, as VNC asks nobody who he is.
A connection ends when the VM moves to another host; the viewer connects again.`,
		Example: `  godwit vm console web-1
  godwit vm console web-1 --vnc
  godwit vm console web-1 --vnc --listen 127.0.0.1:5901`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if vnc {
				return serveVNC(cmd, args[0], listen)
			}
			if listen != "" {
				return fault.New(fault.Invalid, "--listen needs --vnc: the serial console is this terminal")
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			stream := c.vms.ConsoleVM(cmd.Context())
			if err := stream.Send(&godwitv1.ConsoleVMRequest{Vm: args[0]}); err != nil && !errors.Is(err, io.EOF) {
				return faultsOf(cmd).read(err)
			}
			if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
				fmt.Fprintf(os.Stderr, "console of %s: Ctrl-] leaves it\n", args[0])
				before, err := term.MakeRaw(fd)
				if err != nil {
					return err
				}
				defer func() { _ = term.Restore(fd, before) }()
			}
			go func() { // ends with the process: a read of the terminal cannot be interrupted
				copyInput(os.Stdin, func(b []byte) error { return stream.Send(&godwitv1.ConsoleVMRequest{Input: b}) })
				_ = stream.CloseRequest() // the answer to it is the end of the output
			}()
			for {
				msg, err := stream.Receive()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return faultsOf(cmd).read(err)
				}
				if _, err := cmd.OutOrStdout().Write(msg.GetOutput()); err != nil {
					return err
				}
			}
		},
	}
	cmd.Flags().BoolVar(&vnc, "vnc", false, "show the display to VNC viewers instead")
	cmd.Flags().StringVar(&listen, "listen", "", "with --vnc: address of this machine, like 127.0.0.1:5901, or path of a unix socket; empty: a socket of its own")
	return cmd
}

// copyInput sends what is typed until the detach key, the end of the input, or a failed send.
func copyInput(in io.Reader, send func([]byte) error) {
	buf := make([]byte, 1024)
	for {
		n, err := in.Read(buf)
		for i, b := range buf[:n] {
			if b == detach {
				_ = send(buf[:i]) // leaving anyway
				return
			}
		}
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}
