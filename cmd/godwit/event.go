package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func newEvent() *cobra.Command {
	cmd := &cobra.Command{Use: "event", Short: "See what happened in the cluster, and why"}
	cmd.AddCommand(newEventList())
	return cmd
}

func newEventList() *cobra.Command {
	var follow, audit bool
	var object string
	var limit int32
	var since time.Duration
	cmd := &cobra.Command{
		Use: "ls", Short: "List what happened, oldest first", Args: cobra.NoArgs,
		Long: `List what happened to VMs, hosts and networks, who or what caused it, and of which task it is part. Events are
kept for a week, and 5000 of them. With --json each event is one line. An event that its host could not
write at once, because the store was away, comes late with --follow.

With --audit they are those about calls instead: who made each call that changes something, from where, and how
it ended, and what was turned away. Those are kept for 30 days, and 5000 of them beside the others.`,
		Example: "  godwit event ls --since 1h --object web-1\n  godwit event ls --follow\n  godwit event ls --audit --since 24h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since < 0 {
				return usageError{fault.New(fault.Invalid, "--since %v: say how long ago, like 1h", since)}
			}
			if limit < 0 {
				return usageError{fault.New(fault.Invalid, "--limit %d: give a number that is not negative", limit)}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			req := &godwitv1.ListEventsRequest{Follow: follow, Object: object, Limit: limit, Audit: audit}
			if since > 0 {
				req.Since = durationpb.New(since)
			}
			stream, err := c.events.ListEvents(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return faultsOf(cmd).read(err)
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				if err := printEvent(cmd, stream.Msg().GetEvent()); err != nil {
					return err
				}
			}
			if err := stream.Err(); err != nil {
				return faultsOf(cmd).read(err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with every further event as it happens")
	cmd.Flags().BoolVar(&audit, "audit", false, "only those about calls that somebody made")
	cmd.Flags().StringVar(&object, "object", "", "only those about the object of this name or id")
	cmd.Flags().DurationVar(&since, "since", 0, "only the last so long, like 1h; 0: as far back as they are kept")
	cmd.Flags().Int32Var(&limit, "limit", 0, "at most so many of the past; 0: 1000")
	return cmd
}

// printEvent prints one line an event: columns of fixed width, since what follows is not known.
func printEvent(cmd *cobra.Command, e *godwitv1.Event) error {
	if asJSON, err := cmd.Flags().GetBool("json"); err != nil {
		return err
	} else if asJSON {
		text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), string(text))
		return err
	}
	return eventLine(cmd.OutOrStdout(), e)
}

func eventLine(out io.Writer, e *godwitv1.Event) error {
	name := e.GetObjectName()
	if name == "" {
		name = e.GetObject()
	}
	words := []string{fmt.Sprintf("%s  %-7s  %-20s  %-16s  %-10s ", moment(e.GetTime()), e.GetSeverity(), e.GetKind(), name, e.GetHost())}
	if e.GetMessage() != "" {
		words = append(words, e.GetMessage())
	}
	var more []string
	switch {
	case e.GetFrom() != "":
		more = append(more, strings.TrimSpace("by "+e.GetBy()+" from "+e.GetFrom()))
	case e.GetBy() != "":
		more = append(more, "by "+e.GetBy())
	}
	if e.GetTask() != "" {
		more = append(more, e.GetTask())
	}
	if len(more) > 0 {
		words = append(words, "("+strings.Join(more, ", ")+")")
	}
	_, err := fmt.Fprintln(out, strings.TrimRight(strings.Join(words, " "), " "))
	return err
}
