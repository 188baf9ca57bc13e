package rpc

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// tasks implements TaskService.
type tasks struct{ agent *agent.Agent }

// The bounds of asking other hosts for their tasks.
const (
	tasksMax  = 1000                   // in one answer
	othersMax = time.Second            // what a host does not say by then is shown as the store has it
	lookEvery = 500 * time.Millisecond // between two looks at the store for a task whose host does not answer
)

// ListTasks lists the tasks of the cluster, newest first: each host is asked for what it has in memory, and the rest is the store's.
func (s *tasks) ListTasks(ctx context.Context, req *connect.Request[godwitv1.ListTasksRequest]) (*connect.Response[godwitv1.ListTasksResponse], error) {
	all := s.agent.Keeper().Tasks()
	if req.Header().Get(forwarded) == "" {
		stored, err := s.agent.Tasks(ctx)
		if err != nil {
			return nil, err
		}
		lists := append([][]inventory.Task{all}, s.others(ctx, req.Msg)...)
		all = agent.MergeTasks(append(lists, stored)...)
	}
	limit := tasksMax
	if n := int(req.Msg.GetLimit()); n > 0 && n < limit {
		limit = n
	}
	resp := &godwitv1.ListTasksResponse{}
	for _, t := range all {
		if !asked(t, req.Msg) {
			continue
		}
		if len(resp.Tasks) == limit {
			break
		}
		resp.Tasks = append(resp.Tasks, wire.Task(t))
	}
	return connect.NewResponse(resp), nil
}

func asked(t inventory.Task, m *godwitv1.ListTasksRequest) bool {
	switch object := m.GetObject(); {
	case m.GetActive() && t.Status.State.Final():
		return false
	case object != "" && object != t.Spec.Object && object != t.Spec.ObjectName:
		return false
	case m.GetRequest() != "" && m.GetRequest() != t.Spec.Request:
		return false
	}
	return true
}

// others asks all other hosts at once for the tasks that they have in memory.
func (s *tasks) others(ctx context.Context, m *godwitv1.ListTasksRequest) [][]inventory.Task {
	hosts, err := s.agent.OtherHosts(ctx)
	if err != nil {
		return nil
	}
	within, done := context.WithTimeout(ctx, othersMax)
	defer done()
	lists := make([][]inventory.Task, len(hosts))
	var all sync.WaitGroup
	for i, host := range hosts {
		all.Go(func() {
			client, err := s.at(within, host)
			if err != nil {
				return
			}
			// All of them, ended ones too: what the store has of an active one may be old.
			resp, err := client.ListTasks(within, connect.NewRequest(&godwitv1.ListTasksRequest{Object: m.GetObject(), Request: m.GetRequest()}))
			if err != nil {
				return
			}
			for _, t := range resp.Msg.GetTasks() {
				lists[i] = append(lists[i], wire.FromTask(t))
			}
		})
	}
	all.Wait()
	return lists
}

// at returns the API of another host.
func (s *tasks) at(ctx context.Context, host inventory.HostID) (godwitv1connect.TaskServiceClient, error) {
	client, base, err := s.agent.Reach(ctx, host)
	if err != nil {
		return nil, err
	}
	return godwitv1connect.NewTaskServiceClient(client, base, markForwarded(s.agent)), nil
}

// find returns the task and, while another host does its work, that host's API.
func (s *tasks) find(ctx context.Context, header func(string) string, name string) (inventory.Task, godwitv1connect.TaskServiceClient, error) {
	id := inventory.TaskID(name)
	t, err := s.agent.Task(ctx, id)
	away := header(forwarded) != ""
	if fault.Is(err, fault.NotFound) && !away {
		// It may have begun elsewhere a moment ago and not be written yet.
		for _, list := range s.others(ctx, &godwitv1.ListTasksRequest{}) {
			if i := slices.IndexFunc(list, func(t inventory.Task) bool { return t.ID == id }); i >= 0 {
				t, err = list[i], nil
			}
		}
	}
	if err != nil || away || t.Spec.Host == s.agent.Host() || t.Status.State.Final() {
		return t, nil, err
	}
	client, err := s.at(ctx, t.Spec.Host)
	return t, client, err
}

// GetTask answers from the memory of the host that does the work, else from the store.
func (s *tasks) GetTask(ctx context.Context, req *connect.Request[godwitv1.GetTaskRequest]) (*connect.Response[godwitv1.GetTaskResponse], error) {
	t, remote, err := s.find(ctx, req.Header().Get, req.Msg.GetTask())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		within, done := context.WithTimeout(ctx, othersMax)
		defer done()
		if resp, err := remote.GetTask(within, connect.NewRequest(req.Msg)); err == nil {
			return resp, nil
		}
	}
	return connect.NewResponse(&godwitv1.GetTaskResponse{Task: wire.Task(t)}), nil
}

// WatchTask streams the task until it has ended. While its host does not answer it is shown as the store has it.
func (s *tasks) WatchTask(ctx context.Context, req *connect.Request[godwitv1.WatchTaskRequest], out *connect.ServerStream[godwitv1.WatchTaskResponse]) error {
	send := func(t inventory.Task) error { return out.Send(&godwitv1.WatchTaskResponse{Task: wire.Task(t)}) }
	for {
		t, remote, err := s.find(ctx, req.Header().Get, req.Msg.GetTask())
		if err != nil {
			return err
		}
		if _, here := s.agent.Keeper().Task(t.ID); here {
			return s.agent.Keeper().Watch(ctx, t.ID, send)
		}
		if t.Status.State.Final() {
			return send(t)
		}
		if remote != nil {
			over, err := passTask(ctx, remote, req.Msg, out)
			if over || err != nil {
				return err
			}
		}
		if err := send(t); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// passTask passes the task on as its host tells it, and reports whether its end was seen. An error is that of the caller's end.
func passTask(ctx context.Context, remote godwitv1connect.TaskServiceClient, m *godwitv1.WatchTaskRequest, out *connect.ServerStream[godwitv1.WatchTaskResponse]) (bool, error) {
	far, err := remote.WatchTask(ctx, connect.NewRequest(m))
	if err != nil {
		return false, ctx.Err()
	}
	defer func() { _ = far.Close() }() // read to its end or given up
	over := false
	for far.Receive() {
		over = wire.FromTask(far.Msg().GetTask()).Status.State.Final()
		if err := out.Send(far.Msg()); err != nil {
			return over, err
		}
	}
	return over, ctx.Err()
}

// CancelTask asks the host that does the work to end it.
func (s *tasks) CancelTask(ctx context.Context, req *connect.Request[godwitv1.CancelTaskRequest]) (*connect.Response[godwitv1.CancelTaskResponse], error) {
	t, remote, err := s.find(ctx, req.Header().Get, req.Msg.GetTask())
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return remote.CancelTask(ctx, connect.NewRequest(req.Msg))
	}
	if _, here := s.agent.Keeper().Task(t.ID); !here {
		why := fault.New(fault.Conflict, "it is over: %v", t.Status.State)
		if !t.Status.State.Final() {
			why = fault.New(fault.Conflict, "host %s does not work on it any more", t.Spec.Host)
		}
		return nil, fault.Wrap("cancel", "task "+string(t.ID), why)
	}
	t, err = s.agent.Keeper().Cancel(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CancelTaskResponse{Task: wire.Task(t)}), nil
}
