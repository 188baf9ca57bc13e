package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newVMMigrate() *cobra.Command {
	var target, bandwidth string
	var dryRun, detached bool
	var downtime time.Duration
	cmd := &cobra.Command{
		Use: "migrate VM --to HOST", Short: "Move a running VM to another host", Args: cobra.ExactArgs(1),
		Long: `Migrate moves a running VM to another host while it runs, and shows how it goes. Everything that stands
against it is listed at once; --dry-run stops there. Ctrl-C leaves the migration running and names its
task; "godwit task cancel" ends it, and the VM runs on where it was.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if target == "" {
				return usageError{fault.New(fault.Invalid, "name the target host with --to: see godwit host ls")}
			}
			req := &godwitv1.MigrateVMRequest{Vm: args[0], Target: target, DryRun: dryRun}
			if bandwidth != "" {
				limit, err := inventory.ParseBytes(bandwidth)
				if err != nil {
					return fault.Wrap("--bandwidth", "", err)
				}
				req.Bandwidth = int64(limit)
			}
			if downtime != 0 {
				req.DowntimeMax = durationpb.New(downtime)
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.vms.MigrateVM(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if dryRun {
				if done, err := printed(cmd, resp.Msg); done || err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s can migrate to %s\n", args[0], target)
				return err
			}
			if detached {
				return printMigration(cmd, resp.Msg.GetMigration())
			}
			return followMigration(cmd, c, resp.Msg.GetMigration().GetId())
		},
	}
	cmd.Flags().StringVar(&target, "to", "", "host to move to")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what stands against it")
	cmd.Flags().BoolVar(&detached, "detach", false, "do not wait for the end")
	cmd.Flags().StringVar(&bandwidth, "bandwidth", "", "limit of the memory stream per second, like 100M; empty: none")
	cmd.Flags().DurationVar(&downtime, "downtime-max", 0, "longest predicted pause at which the switchover may begin; less is tried first; 0: 100ms")
	return cmd
}

// followMigration shows a migration's progress on standard error until it ends, and its outcome on standard output.
func followMigration(cmd *cobra.Command, c *client, id string) error {
	stream, err := c.migrations.WatchMigration(cmd.Context(), connect.NewRequest(&godwitv1.WatchMigrationRequest{Migration: id}))
	if err != nil {
		return faultsOf(cmd).read(err)
	}
	defer func() { _ = stream.Close() }()
	show := newProgress(os.Stderr)
	var last *godwitv1.Migration
	for stream.Receive() {
		last = stream.Msg().GetMigration()
		show.update(last)
	}
	show.done()
	if err := stream.Err(); err != nil {
		if cmd.Context().Err() != nil {
			return c.requests.goesOn(cmd.Context(), c.requests.key)
		}
		return faultsOf(cmd).read(err)
	}
	if last == nil {
		return fault.New(fault.Unavailable, "migration %s: its end was not seen: ask godwit migration show %s", id, id)
	}
	if err := printMigration(cmd, last); err != nil {
		return err
	}
	switch last.GetStatus().GetPhase() {
	case inventory.Completed.String():
		return nil
	case inventory.Canceled.String():
		return fault.New(fault.Canceled, "migration %s was canceled: %s runs on at %s", id, last.GetSpec().GetVmName(), last.GetSpec().GetSource())
	case inventory.Undecided.String():
		return fault.New(fault.Unavailable, "migration %s: %s: godwit migration show %s follows it", id, last.GetStatus().GetReason(), id)
	}
	if reasons := last.GetStatus().GetReasons(); len(reasons) > 0 {
		return fault.Refuse(fault.Incompatible, reasons)
	}
	return fault.New(fault.Unavailable, "migration %s: %s: %s runs on at %s", id, last.GetStatus().GetReason(), last.GetSpec().GetVmName(), last.GetSpec().GetSource())
}

// progress draws one line that changes on a terminal, and a line per phase and second elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	phase    string
	drawn    time.Time
}

// progressEvery is how often a line is written where lines cannot be redrawn.
const progressEvery = time.Second

func newProgress(out *os.File) *progress {
	return &progress{out: out, terminal: term.IsTerminal(int(out.Fd()))}
}

func (p *progress) update(m *godwitv1.Migration) {
	phase := m.GetStatus().GetPhase()
	if p.terminal {
		_, _ = fmt.Fprintf(p.out, "\r\x1b[K%s", progressLine(m)) // progress is a courtesy: a closed terminal is no error
		return
	}
	if phase == p.phase && time.Since(p.drawn) < progressEvery {
		return
	}
	p.phase, p.drawn = phase, time.Now()
	_, _ = fmt.Fprintln(p.out, progressLine(m)) // as above
}

func (p *progress) done() {
	if p.terminal {
		_, _ = fmt.Fprint(p.out, "\r\x1b[K") // as above
	}
}

func progressLine(m *godwitv1.Migration) string {
	s := m.GetStatus()
	line := fmt.Sprintf("%s -> %s  %-10s", m.GetSpec().GetSource(), m.GetSpec().GetTarget(), s.GetPhase())
	if pr := s.GetProgress(); pr.GetRound() > 0 {
		line += fmt.Sprintf("  round %d  left %s  dirty %s  send %s  ETA %s", pr.GetRound(), size(pr.GetRemaining()),
			rate(pr.GetDirtyRate()), rate(pr.GetSendRate()), brief(pr.GetEta().AsDuration()))
	}
	return line
}
