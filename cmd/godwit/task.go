package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

func newTask() *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "List, follow and cancel what the hosts are doing"}
	cmd.AddCommand(newTaskList(), newTaskInfo(), newTaskWatch(), newTaskCancel())
	return cmd
}

func newTaskList() *cobra.Command {
	var active bool
	var object string
	var limit int32
	cmd := &cobra.Command{
		Use: "ls", Short: "List running and past tasks of all hosts, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usageError{fault.New(fault.Invalid, "--limit %d: give a number that is not negative", limit)}
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.tasks.ListTasks(cmd.Context(), connect.NewRequest(&godwitv1.ListTasksRequest{Active: active, Object: object, Limit: limit}))
			if err != nil {
				return err
			}
			if done, err := printed(cmd, resp.Msg); done || err != nil {
				return err
			}
			var rows [][]string
			for _, t := range resp.Msg.GetTasks() {
				spec, status := t.GetSpec(), t.GetStatus()
				name := spec.GetObjectName()
				if name == "" {
					name = spec.GetObject()
				}
				why := status.GetReason()
				if why == "" {
					why = status.GetDetail()
				}
				rows = append(rows, []string{
					t.GetId(), spec.GetKind(), name, status.GetState(), percent(status), spec.GetHost(), spec.GetBy(), moment(spec.GetRequested()), took(status), why,
				})
			}
			return table(cmd.OutOrStdout(), []string{"ID", "TASK", "OBJECT", "STATE", "DONE", "HOST", "BY", "REQUESTED", "TOOK", "DETAIL"}, rows)
		},
	}
	cmd.Flags().BoolVar(&active, "active", false, "only those that have not ended")
	cmd.Flags().StringVar(&object, "object", "", "only those about the object of this name or id")
	cmd.Flags().Int32Var(&limit, "limit", 0, "at most so many; 0: 1000")
	return cmd
}

// moment prints a time, "" for none.
func moment(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Local().Format(time.DateTime)
}

// took prints how long a task has worked.
func took(s *godwitv1.TaskStatus) string {
	switch {
	case s.GetStarted() == nil:
		return ""
	case s.GetEnded() == nil:
		return brief(max(0, time.Since(s.GetStarted().AsTime())))
	}
	return brief(s.GetEnded().AsTime().Sub(s.GetStarted().AsTime()))
}

func newTaskInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info TASK", Short: "Show one task: who asked, how far it is, why it failed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.tasks.GetTask(cmd.Context(), connect.NewRequest(&godwitv1.GetTaskRequest{Task: args[0]}))
			if err != nil {
				return err
			}
			return printTask(cmd, resp.Msg.GetTask())
		},
	}
}

func printTask(cmd *cobra.Command, t *godwitv1.Task) error {
	if done, err := printed(cmd, t); done || err != nil {
		return err
	}
	spec, status := t.GetSpec(), t.GetStatus()
	object := spec.GetObject()
	if name := spec.GetObjectName(); name != "" && name != object {
		object = strings.TrimSpace(name + " " + object)
	}
	pairs := [][2]string{
		{"task", t.GetId()},
		{"kind", spec.GetKind()},
		{"object", object},
		{"state", status.GetState()},
		{"done", percent(status)},
		{"detail", status.GetDetail()},
		{"result", status.GetResult()},
		{"host", spec.GetHost()},
		{"by", spec.GetBy()},
		{"request", spec.GetRequest()},
		{"requested", moment(spec.GetRequested())},
		{"ended", moment(status.GetEnded())},
		{"took", took(status)},
	}
	if spec.GetCanceled() {
		pairs = append(pairs, [2]string{"cancel", "asked for"})
	}
	if reasons := status.GetReasons(); len(reasons) > 0 {
		for _, r := range reasons {
			pairs = append(pairs, [2]string{"reason", r})
		}
	} else {
		pairs = append(pairs, [2]string{"reason", status.GetReason()})
	}
	return list(cmd.OutOrStdout(), pairs)
}

func newTaskWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch TASK", Short: "Follow a task to its end", Args: cobra.ExactArgs(1),
		Long: `Watch shows on standard error how a task goes until it has ended, and then the task on standard output. The
exit code is 0 for a task that succeeded, 1 for one that failed and 130 for one that was canceled. Ctrl-C
ends the watching, not the task.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			stream, err := c.tasks.WatchTask(cmd.Context(), connect.NewRequest(&godwitv1.WatchTaskRequest{Task: args[0]}))
			if err != nil {
				return faultsOf(cmd).read(err)
			}
			defer func() { _ = stream.Close() }()
			var last *godwitv1.Task
			terminal, said := term.IsTerminal(int(os.Stderr.Fd())), ""
			for stream.Receive() {
				last = stream.Msg().GetTask()
				switch line := taskLine(last); {
				case terminal:
					_, _ = fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line) // progress is a courtesy
				case line != said:
					said = line
					_, _ = fmt.Fprintln(os.Stderr, line) // as above
				}
			}
			if terminal {
				_, _ = fmt.Fprint(os.Stderr, "\r\x1b[K") // as above
			}
			if err := stream.Err(); err != nil {
				return faultsOf(cmd).read(err)
			}
			if last == nil {
				return fault.New(fault.Unavailable, "task %s: its end was not seen: ask godwit task info %s", args[0], args[0])
			}
			if err := printTask(cmd, last); err != nil {
				return err
			}
			switch last.GetStatus().GetState() {
			case inventory.TaskSucceeded.String():
				return nil
			case inventory.TaskCanceled.String():
				return fault.New(fault.Canceled, "task %s was canceled", last.GetId())
			}
			return fault.New(fault.Unknown, "task %s failed: %s", last.GetId(), last.GetStatus().GetReason())
		},
	}
}

func newTaskCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel TASK", Short: "End a task before it is done", Args: cobra.ExactArgs(1),
		Long: `Cancel ends a task, and what it had begun is undone as after a failure; a migration's VM runs on at its
source. A task that has ended, or that cannot be ended any more, is left as it is, and the command says so.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.tasks.CancelTask(cmd.Context(), connect.NewRequest(&godwitv1.CancelTaskRequest{Task: args[0]}))
			if err != nil {
				return err
			}
			return printTask(cmd, resp.Msg.GetTask())
		},
	}
}
