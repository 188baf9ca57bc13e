package inventory

import "time"

// Task is a long or mutating operation: who asked for what, how far it is, how it ended.
type Task struct {
	ID     TaskID
	Spec   TaskSpec
	Status TaskStatus
}

// TaskSpec is written by the host that does the work; Canceled also by whoever asks for its end.
type TaskSpec struct {
	Kind       string // noun.verb, as in the CLI: vm.start, image.import
	Object     string // id of what it works on
	ObjectName string // as it was named then
	Host       HostID // that does the work
	By         string // who asked
	Requested  time.Time
	Request    string // idempotency key of the call, if it had one
	Canceled   bool
}

// TaskState is where a task stands.
type TaskState int

// The states; those from TaskSucceeded on are final.
const (
	TaskQueued TaskState = iota
	TaskRunning
	TaskSucceeded
	TaskFailed
	TaskCanceled
)

var taskStateNames = [...]string{"queued", "running", "succeeded", "failed", "canceled"}

// String returns the state's name as CLI and JSON show it.
func (s TaskState) String() string {
	if s < 0 || int(s) >= len(taskStateNames) {
		return "unknown"
	}
	return taskStateNames[s]
}

// Final reports whether nothing will happen any more.
func (s TaskState) Final() bool { return s >= TaskSucceeded }

// TaskStatus is written by the host that does the work.
type TaskStatus struct {
	State   TaskState
	Done    int64  // of Total, in the operation's own unit
	Total   int64  // 0: unknown
	Detail  string // what it does now, or how it ended
	Reason  string // why it failed
	Reasons []string
	Started time.Time
	Ended   time.Time
	Result  string // id of what it made
}

// Event is something that happened to an object of the inventory, with its cause. It is written once, by the host that saw it.
type Event struct {
	ID         EventID
	Time       time.Time
	Kind       string // noun.verb in the past: vm.started
	Severity   Severity
	Object     string
	ObjectName string
	Host       HostID
	By         string // who caused it; empty: nobody, it happened
	Task       TaskID // of which it is part
	Message    string // one line, with the cause
}

// Severity says how much an event matters.
type Severity int

// The severities.
const (
	Info Severity = iota
	Warning
	Error
)

var severityNames = [...]string{"info", "warning", "error"}

// String returns the severity's name as CLI and JSON show it.
func (s Severity) String() string {
	if s < 0 || int(s) >= len(severityNames) {
		return "unknown"
	}
	return severityNames[s]
}
