// Package fault is how Godwit says what went wrong: an operation, the object it was about, a kind that callers may test,
// and the cause.
//
// Messages read as a path from what to why, with what to do at the end when there is something to do:
//
//	migrate vm web-1: target host-3: cpu lacks avx2
//
// Kinds are few; faces map them to the codes of their own protocol (Code in face/rpc, exit codes in cmd/godwit). Nobody
// parses the text. The package does not log and imports nothing but the standard library.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of thing went wrong. The zero Kind means that nobody knew; faces treat it as Internal.
type Kind int

// The kinds. A new one must be mapped at every face (the exhaustive linter holds them to it).
const (
	Unknown      Kind = iota
	NotFound          // the named object does not exist
	Exists            // an object of that name or state is there already
	Invalid           // the request is malformed; repeating it cannot help
	Denied            // the caller may not do this
	Conflict          // the object is in a state that forbids it now; somebody else changed it first
	Incompatible      // the two sides do not fit (CPU, machine type, QEMU, datastore)
	NoResources       // not enough memory, disk, or a bound is reached
	Unavailable       // a peer, the store or QEMU does not answer; repeating it later may help
	Canceled          // somebody asked to stop, or the caller's time was up
	Internal          // a bug or a broken machine
)

var kindNames = [...]string{
	"unknown", "not found", "exists", "invalid", "denied", "conflict",
	"incompatible", "no resources", "unavailable", "canceled", "internal",
}

// String returns the kind's name as it appears in JSON and logs.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// ParseKind returns the Kind of that name, or Unknown.
func ParseKind(name string) Kind {
	for i, n := range kindNames {
		if n == name {
			return Kind(i)
		}
	}
	return Unknown
}

// Error is one step on the path from what to why. Op and Object may be empty.
type Error struct {
	Op     string // the operation, as the user would name it: "migrate", "start"
	Object string // what it was about: "vm web-1", "host host-3"
	Kind   Kind   // Unknown takes the kind of Err
	Err    error  // the cause
}

// Error returns the path "op object: cause" in one line.
func (e *Error) Error() string {
	var parts []string
	if head := strings.TrimSpace(e.Op + " " + e.Object); head != "" {
		parts = append(parts, head)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	} else if e.Kind != Unknown {
		parts = append(parts, e.Kind.String())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of the kind with a formatted message; %w keeps causes.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Wrap says that op on object met err. It returns nil for a nil err, so it can close a function.
func Wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Object: object, Err: err}
}

// KindOf returns the first known kind on err's path. A context error without a kind of its own is Canceled; nil and
// foreign errors are Unknown.
func KindOf(err error) Kind {
	for e := err; e != nil; {
		var f *Error
		if !errors.As(e, &f) {
			break
		}
		if f.Kind != Unknown {
			return f.Kind
		}
		e = f.Err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Canceled
	}
	return Unknown
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// RefusalError is a request that was turned down, with every reason there is, not only the first. It is what admission
// returns; CLI, API and UI show the same list.
type RefusalError struct {
	Kind    Kind
	Reasons []string
}

// Error joins the reasons with "; ".
func (r *RefusalError) Error() string { return strings.Join(r.Reasons, "; ") }

// Refuse returns nil when there are no reasons, else an error that carries all of them and from which Reasons reads
// them again.
func Refuse(kind Kind, reasons []string) error {
	if len(reasons) == 0 {
		return nil
	}
	return &Error{Kind: kind, Err: &RefusalError{Kind: kind, Reasons: reasons}}
}

// Reasons returns the reasons of the refusal on err's path, or the whole message as the only reason; nil for nil.
func Reasons(err error) []string {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*RefusalError](err); ok {
		return r.Reasons
	}
	return []string{err.Error()}
}
