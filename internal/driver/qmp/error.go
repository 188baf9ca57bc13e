package qmp

import (
	"errors"

	"github.com/godwit-vm/godwit/internal/fault"
)

// Class is the error class of a refused command. QEMU has only a few; all but these are GenericError, of which only the
// description tells more (QAPI, "QapiErrorClass").
type Class string

// The classes.
const (
	GenericError    Class = "GenericError"
	CommandNotFound Class = "CommandNotFound"
	DeviceNotActive Class = "DeviceNotActive"
	DeviceNotFound  Class = "DeviceNotFound"
	KVMMissingCap   Class = "KVMMissingCap"
)

// Error is QEMU's refusal of a command, in its own words.
type Error struct {
	Class Class
	Desc  string
}

// Error returns QEMU's description.
func (e *Error) Error() string { return e.Desc }

// kind maps the class to a fault kind. A GenericError is a Conflict: QEMU understood the command and will not do it now.
func (e *Error) kind() fault.Kind {
	switch e.Class {
	case CommandNotFound, KVMMissingCap:
		return fault.Incompatible
	case DeviceNotFound:
		return fault.NotFound
	case DeviceNotActive, GenericError:
		return fault.Conflict
	}
	return fault.Conflict
}

// ErrUnsent is on the path of the error of a call that was given up before QEMU could have read it.
var ErrUnsent = errors.New("not sent")

// Unsent reports whether err is of a call that QEMU never got, so that it certainly has no effect.
func Unsent(err error) bool { return errors.Is(err, ErrUnsent) }
