package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/face/rpc"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// Bounds of what a command does about its call.
const (
	progressAfter = time.Second      // a call that takes longer shows how it goes, on a terminal
	agentBackMax  = 15 * time.Second // how long a call waits for an agent that went away under it, before it is repeated
	agentBackLook = 100 * time.Millisecond
	lookupMax     = 3 * time.Second // for the question which task the call has become
)

// requests gives each changing call of one command an idempotency key, repeats it once when the connection is lost, shows its task's
// progress, and says on Ctrl-C which task goes on.
type requests struct {
	key   string
	tasks godwitv1connect.TaskServiceClient

	mu   sync.Mutex
	used int // changing calls so far
}

func newRequests(cmd *cobra.Command, web *http.Client, base string) (*requests, error) {
	key, err := cmd.Flags().GetString("request")
	if err != nil {
		return nil, err
	}
	if key == "" {
		key = "cli-" + strings.ToLower(rand.Text())
	} else if err := inventory.CheckRequestKey(key); err != nil {
		return nil, usageError{err}
	}
	return &requests{key: key, tasks: godwitv1connect.NewTaskServiceClient(web, base)}, nil
}

// next returns the key of the command's next changing call: the first has the command's own, and the others count on, so that a repeat of
// the command has the same keys.
func (r *requests) next() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used++
	if r.used == 1 {
		return r.key
	}
	return r.key + "-" + strconv.Itoa(r.used)
}

// WrapUnary implements connect.Interceptor.
func (r *requests) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if !rpc.Mutates(req.Spec().Procedure) {
			return next(ctx, req)
		}
		key := r.next()
		req.Header().Set(rpc.KeyHeader, key)
		stop := r.show(ctx, key)
		resp, err := next(ctx, req)
		if lost(ctx, err) && r.waitForAgent(ctx) {
			resp, err = next(ctx, req)
		}
		stop()
		if err != nil && ctx.Err() != nil {
			err = r.goesOn(ctx, key)
		}
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (r *requests) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (r *requests) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// lost reports whether the connection broke while the call was under way: nobody knows whether it was executed.
func lost(ctx context.Context, err error) bool {
	return ctx.Err() == nil && errors.Is(err, errConnection)
}

// waitForAgent waits until an agent answers at the socket again.
func (r *requests) waitForAgent(ctx context.Context) bool {
	_, _ = fmt.Fprintln(os.Stderr, "the agent went away: asking again when it is back") // a courtesy
	ctx, done := context.WithTimeout(ctx, agentBackMax)
	defer done()
	for {
		// Any answer will do; one that dies may still take the connection.
		if _, err := r.tasks.GetTask(ctx, connect.NewRequest(&godwitv1.GetTaskRequest{})); err == nil || connect.IsWireError(err) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(agentBackLook):
		}
	}
}

// task finds the task that the call with the key has become; nil when there is none.
func (r *requests) task(ctx context.Context, key string) *godwitv1.Task {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), lookupMax)
	defer done()
	resp, err := r.tasks.ListTasks(ctx, connect.NewRequest(&godwitv1.ListTasksRequest{Request: key, Limit: 1}))
	if err != nil || len(resp.Msg.GetTasks()) == 0 {
		return nil
	}
	return resp.Msg.GetTasks()[0]
}

// goesOn says what becomes of a call that its caller did not wait for.
func (r *requests) goesOn(ctx context.Context, key string) error {
	t := r.task(ctx, key)
	switch {
	case t == nil:
		return fault.New(fault.Canceled, "interrupted: see godwit task ls for what became of it")
	case wire.FromTask(t).Status.State.Final():
		return fault.New(fault.Canceled, "interrupted: it %s as %s", t.GetStatus().GetState(), t.GetId())
	}
	return fault.New(fault.Canceled, "it goes on as %s: end it with godwit task cancel %s", t.GetId(), t.GetId())
}

// show draws the progress of a call that takes its time, on a terminal. The returned function ends that and clears the line.
func (r *requests) show(ctx context.Context, key string) (stop func()) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var drawing sync.WaitGroup
	drawing.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(progressAfter):
		}
		t := r.task(ctx, key)
		if t == nil || ctx.Err() != nil {
			return
		}
		stream, err := r.tasks.WatchTask(ctx, connect.NewRequest(&godwitv1.WatchTaskRequest{Task: t.GetId()}))
		if err != nil {
			return
		}
		defer func() { _ = stream.Close() }()
		for stream.Receive() {
			_, _ = fmt.Fprintf(os.Stderr, "\r\x1b[K%s", taskLine(stream.Msg().GetTask())) // progress is a courtesy
		}
		_, _ = fmt.Fprint(os.Stderr, "\r\x1b[K") // as above
	})
	return func() { cancel(); drawing.Wait() }
}

// taskLine says in one line how a task goes.
func taskLine(t *godwitv1.Task) string {
	s := t.GetStatus()
	line := t.GetSpec().GetKind()
	if name := t.GetSpec().GetObjectName(); name != "" {
		line += " " + name
	}
	line += "  " + s.GetState()
	if p := percent(s); p != "" {
		line += "  " + p
	}
	if s.GetDetail() != "" {
		line += "  " + s.GetDetail()
	}
	return line
}

// percent says how much of a task is done, "" when nobody knows.
func percent(s *godwitv1.TaskStatus) string {
	if s.GetTotal() <= 0 {
		return ""
	}
	return strconv.FormatInt(min(100, max(0, s.GetDone()*100/s.GetTotal())), 10) + "%"
}
