// Command mkinitramfs makes the Linux guest's initramfs and prints where kernel and initramfs are, for those who want to start QEMU by hand.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/godwit-vm/godwit/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	linux, err := guest.Images(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkinitramfs:", err)
		os.Exit(1)
	}
	fmt.Printf("kernel  %s\ninitrd  %s\ncmdline %s\n", linux.Kernel, linux.Initrd, linux.Cmdline)
}
