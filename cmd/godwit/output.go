package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// printed writes message as JSON when --json is given and says whether it did.
func printed(cmd *cobra.Command, message proto.Message) (bool, error) {
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil || !asJSON {
		return false, err
	}
	text, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return false, err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), string(text))
	return true, err
}

// table prints rows in columns under a header.
func table(out io.Writer, header []string, rows [][]string) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// list prints "name: value" lines, leaving out empty values.
func list(out io.Writer, pairs [][2]string) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	for _, p := range pairs {
		if p[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s:\t%s\n", p[0], p[1]); err != nil {
			return err
		}
	}
	return w.Flush()
}

func size(b int64) string { return inventory.Bytes(b).String() }

func rate(b int64) string { return inventory.BytesPerSecond(b).String() }

// brief prints a duration with a precision that suits its size.
func brief(d time.Duration) string {
	switch {
	case d < 0:
		return "unknown"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
