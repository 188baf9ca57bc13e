package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Task returns the message of a whole task.
func Task(t inventory.Task) *godwitv1.Task {
	return &godwitv1.Task{Id: string(t.ID), Spec: TaskSpec(t.Spec), Status: TaskStatus(t.Status)}
}

// FromTask returns the task of the message.
func FromTask(m *godwitv1.Task) inventory.Task {
	return inventory.Task{ID: inventory.TaskID(m.GetId()), Spec: FromTaskSpec(m.GetSpec()), Status: FromTaskStatus(m.GetStatus())}
}

// TaskSpec returns the message of who asked for what.
func TaskSpec(s inventory.TaskSpec) *godwitv1.TaskSpec {
	return &godwitv1.TaskSpec{
		Kind: s.Kind, Object: s.Object, ObjectName: s.ObjectName, Host: string(s.Host), By: s.By, Requested: stamp(s.Requested),
		Request: s.Request, Canceled: s.Canceled,
	}
}

// FromTaskSpec returns the spec of the message.
func FromTaskSpec(m *godwitv1.TaskSpec) inventory.TaskSpec {
	return inventory.TaskSpec{
		Kind: m.GetKind(), Object: m.GetObject(), ObjectName: m.GetObjectName(), Host: inventory.HostID(m.GetHost()), By: m.GetBy(),
		Requested: fromStamp(m.GetRequested()), Request: m.GetRequest(), Canceled: m.GetCanceled(),
	}
}

// TaskStatus returns the message of how a task goes.
func TaskStatus(s inventory.TaskStatus) *godwitv1.TaskStatus {
	return &godwitv1.TaskStatus{
		State: s.State.String(), Done: s.Done, Total: s.Total, Detail: s.Detail, Reason: s.Reason, Reasons: s.Reasons,
		Started: stamp(s.Started), Ended: stamp(s.Ended), Result: s.Result,
	}
}

// FromTaskStatus returns how the task of the message goes. A state that this version does not know reads as running: it is not over.
func FromTaskStatus(m *godwitv1.TaskStatus) inventory.TaskStatus {
	return inventory.TaskStatus{
		State: fromTaskState(m.GetState()), Done: m.GetDone(), Total: m.GetTotal(), Detail: m.GetDetail(), Reason: m.GetReason(),
		Reasons: ids[string](m.GetReasons()), Started: fromStamp(m.GetStarted()), Ended: fromStamp(m.GetEnded()), Result: m.GetResult(),
	}
}

func fromTaskState(name string) inventory.TaskState {
	if name == "" {
		return inventory.TaskQueued
	}
	for s := range inventory.TaskCanceled + 1 {
		if s.String() == name {
			return s
		}
	}
	return inventory.TaskRunning
}

// Event returns the message of an event.
func Event(e inventory.Event) *godwitv1.Event {
	return &godwitv1.Event{
		Id: string(e.ID), Time: stamp(e.Time), Kind: e.Kind, Severity: e.Severity.String(), Object: e.Object, ObjectName: e.ObjectName,
		Host: string(e.Host), By: e.By, Task: string(e.Task), Message: e.Message,
		Audit: e.Audit, From: e.From,
	}
}

// FromEvent returns the event of the message. A severity that this version does not know reads as a warning.
func FromEvent(m *godwitv1.Event) inventory.Event {
	return inventory.Event{
		ID: inventory.EventID(m.GetId()), Time: fromStamp(m.GetTime()), Kind: m.GetKind(), Severity: fromSeverity(m.GetSeverity()),
		Object: m.GetObject(), ObjectName: m.GetObjectName(), Host: inventory.HostID(m.GetHost()), By: m.GetBy(),
		Task: inventory.TaskID(m.GetTask()), Message: m.GetMessage(), Audit: m.GetAudit(), From: m.GetFrom(),
	}
}

func fromSeverity(name string) inventory.Severity {
	if name == "" {
		return inventory.Info
	}
	for s := range inventory.Error + 1 {
		if s.String() == name {
			return s
		}
	}
	return inventory.Warning
}

// Request returns the message of a request.
func Request(r inventory.Request) *godwitv1.Request {
	return &godwitv1.Request{
		Key: r.Key, Procedure: r.Procedure, Hash: r.Hash, Host: string(r.Host), Epoch: r.Epoch, Begun: stamp(r.Begun), Done: r.Done, Answer: r.Answer,
		Fault: r.Fault, Message: r.Message, Reasons: r.Reasons, Made: r.Made, Task: string(r.Task),
	}
}

// FromRequest returns the request of the message.
func FromRequest(m *godwitv1.Request) inventory.Request {
	return inventory.Request{
		Key: m.GetKey(), Procedure: m.GetProcedure(), Hash: m.GetHash(), Host: inventory.HostID(m.GetHost()), Epoch: m.GetEpoch(), Begun: fromStamp(m.GetBegun()),
		Done: m.GetDone(), Answer: m.GetAnswer(), Fault: m.GetFault(), Message: m.GetMessage(), Reasons: ids[string](m.GetReasons()),
		Made: ids[string](m.GetMade()), Task: inventory.TaskID(m.GetTask()),
	}
}
