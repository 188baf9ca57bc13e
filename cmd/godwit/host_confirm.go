package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// deadMeans is what an admin says with host confirm-dead.
const deadMeans = `You say that %[1]s is off and stays off until you start it again. On your word its VMs start on other hosts.
If %[1]s runs after all and reaches the storage, two copies of a VM write to the same disk, and that disk is lost.
Look at the machine itself, or its remote management: that it does not answer over the network proves nothing.
`

func newHostConfirmDead() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "confirm-dead HOST", Short: "Say that a silent host is off, so that its VMs start elsewhere", Args: cobra.ExactArgs(1),
		Long: "Say that a silent host is off, so that its VMs start elsewhere.\n\n" +
			"A host without a watchdog that falls silent may be dead, or only cut off, with its VMs running. Nobody but you can know, so its VMs are\n" +
			"blocked until it comes back, or you say this. A host that gives signs of life is refused. Your name is in the events.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				if err := sure(cmd, fmt.Sprintf(deadMeans, args[0]), "see to it that "+args[0]+" is off"); err != nil {
					return err
				}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.fencing.ConfirmDead(cmd.Context(), connect.NewRequest(&godwitv1.ConfirmDeadRequest{Host: args[0]}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			p := resp.Msg.GetPlan()
			text := "fenced; see godwit vm ls for its VMs"
			switch {
			case p.GetState() == "open":
				text = "not fenced yet: " + p.GetNote()
			case p.GetNote() != "":
				text = p.GetNote()
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", args[0], text)
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// sure explains what a command does and asks for a yes at the terminal. Where there is none, it wants --yes, and names what is to be done before.
func sure(cmd *cobra.Command, means, first string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) { //nolint:gosec // a descriptor
		return usageError{fault.New(fault.Invalid, "there is no terminal here to ask whether that is so: %s, then say it with --yes", first)}
	}
	if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "%sIs that so? Type yes: ", means); err != nil {
		return err
	}
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil || strings.TrimSpace(answer) != "yes" {
		return fault.New(fault.Canceled, "nothing was done")
	}
	return nil
}
