package inventory

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

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
	Audit      bool   // it is about a call that somebody made, and how that ended
	From       string // where that call came from: "socket", or an address
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

// Request is a mutating call with an idempotency key: who executes it and what came of it. A repeat of the same call gets
// the same answer. It is written by the host that executes it.
type Request struct {
	Key       string
	Procedure string // of the API
	Hash      []byte // SHA-256 of the message: another message under the same key is another call
	Host      HostID // that executes it
	Epoch     uint64 // of that host's agent: an older one than the host has now means that the execution ended midway
	Begun     time.Time
	Done      bool
	Answer    []byte // the answer's message, when there was no fault
	Fault     string // kind of the fault, empty when there was none
	Message   string // of the fault
	Reasons   []string
	Made      []string // files that the execution is about to make: they were not there before, and a repeat may remove them
	Task      TaskID
}

// RequestKeyMax is how long an idempotency key may be, in bytes.
const RequestKeyMax = 128

// CheckRequestKey says what is wrong with an idempotency key: it is 1 to RequestKeyMax letters, digits, dots, dashes and underscores.
func CheckRequestKey(key string) error {
	if key == "" || len(key) > RequestKeyMax {
		return fault.New(fault.Invalid, "request key of %d characters: take 1 to %d", len(key), RequestKeyMax)
	}
	for _, r := range key {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", r) {
			return fault.New(fault.Invalid, "request key %q has %q: take letters, digits, dots, dashes and underscores", key, r)
		}
	}
	return nil
}

// NewEventID returns an id for an event of that moment. Ids sort by time as strings: 13 digits of base 32 hold the nanoseconds since
// 1970, five random ones keep the ids of two hosts apart.
func NewEventID(at time.Time) EventID {
	var nanos [8]byte
	binary.BigEndian.PutUint64(nanos[:], uint64(max(0, at.UnixNano()))) //nolint:gosec // not negative
	sorted := strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(nanos[:]))
	return EventID("ev-" + sorted + randomName()[:5])
}

// DerivedID returns the id with that prefix that a request makes: the same one however often the request is executed.
func DerivedID(prefix, key string, begun time.Time) string {
	sum := sha256.Sum256([]byte(prefix + key + begun.UTC().Format(time.RFC3339Nano)))
	return prefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:7]))[:10]
}
