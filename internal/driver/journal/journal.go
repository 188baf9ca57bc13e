// Package journal keeps the few things about a VM that must be known again after its agent was killed: that a release was
// sent, that a migration was discarded, that the VM is throttled (docs/architecture.md, "The hand-over rules").
//
// A journal is one file per VM on the run directory's tmpfs, which outlives the agent and dies with the machine, and with it
// every QEMU. Each record is one line of JSON, appended by one write(2) before the deed it speaks of. A process that is
// killed leaves whole records, or a torn last line, which was not promised to anybody and is left out on reading.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of a journal.
const (
	// SizeMax is how large a journal may become, in bytes. A VM's journal is removed or compacted at the end of each
	// migration, so a full one is a bug or a loop.
	SizeMax = 1 << 20
	// RecordMax is the longest record in bytes, its line break included.
	RecordMax = 64 << 10
)

// Record is one entry. Kind and Data are the caller's; ID says what it belongs to, like a migration.
type Record struct {
	Kind string          `json:"kind"`
	ID   string          `json:"id,omitempty"`
	Time time.Time       `json:"time"` // for people; nothing is decided by it
	Data json.RawMessage `json:"data,omitempty"`
}

// Journal is an open journal. One goroutine uses it at a time, and one process has it open.
type Journal struct {
	file   *os.File
	path   string
	size   int64
	broken error // set when a torn record could not be taken back; nothing may be appended behind it
}

// Open opens the journal at path, makes it (mode 0600) when it is not there, and returns what it holds. A torn last line
// is cut off. A journal that another process has open is fault.Conflict, one with damage elsewhere fault.Internal: what
// it said is not known then, and nobody may guess.
func Open(path string) (*Journal, []Record, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, wrap("open", path, err)
	}
	j := &Journal{file: file, path: path}
	records, err := j.load()
	if err != nil {
		_ = file.Close() // err says what matters
		return nil, nil, wrap("open", path, err)
	}
	return j, records, nil
}

func (j *Journal) load() ([]Record, error) {
	if err := unix.Flock(int(j.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.Conflict, "another process has it open: is the agent running twice?")
		}
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(j.file, SizeMax+1))
	if err != nil {
		return nil, err
	}
	records, good, err := parse(b)
	if err != nil {
		return nil, err
	}
	if good < int64(len(b)) {
		if err := j.file.Truncate(good); err != nil {
			return nil, err
		}
	}
	j.size = good
	return records, nil
}

// Read returns what the journal at path holds, without opening it for writing; none when there is no file.
func Read(path string) ([]Record, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("read", path, err)
	}
	defer func() { _ = file.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(file, SizeMax+1))
	if err != nil {
		return nil, wrap("read", path, err)
	}
	records, _, err := parse(b)
	return records, wrap("read", path, err)
}

// parse returns the records and the length of the part that is whole. Only the bytes after the last line break may be
// torn, since every record was written with its line break at once.
func parse(b []byte) ([]Record, int64, error) {
	if len(b) > SizeMax {
		return nil, 0, fault.New(fault.Internal, "it is larger than %d bytes: it is no journal of godwit", SizeMax)
	}
	var records []Record
	var good int64
	for n := 1; ; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			return records, good, nil
		}
		var r Record
		if err := json.Unmarshal(line, &r); err != nil || r.Kind == "" {
			return nil, 0, fault.New(fault.Internal, "line %d is damaged: the vm's state is not known: stop its QEMU, then remove the journal", n)
		}
		records = append(records, r)
		good += int64(len(line)) + 1
		b = rest
	}
}

// Append adds a record with the time of now and data as JSON (nil: none). When it returns nil, the kernel has the record:
// it is there whatever happens to this process. A record that was written in part is taken back, and an error means that
// it is not there.
func (j *Journal) Append(kind, id string, data any) error {
	r := Record{Kind: kind, ID: id, Time: time.Now().UTC()}
	if j.broken != nil {
		return wrap("append to", j.path, j.broken)
	}
	if kind == "" {
		return wrap("append to", j.path, fault.New(fault.Internal, "a record without a kind"))
	}
	if data != nil {
		b, err := json.Marshal(data)
		if err != nil {
			return wrap("append to", j.path, fault.New(fault.Internal, "%s: %w", kind, err))
		}
		r.Data = b
	}
	line, err := json.Marshal(r)
	if err != nil {
		return wrap("append to", j.path, fault.New(fault.Internal, "%s: %w", kind, err))
	}
	line = append(line, '\n')
	if len(line) > RecordMax {
		return wrap("append to", j.path, fault.New(fault.Internal, "record %s of %d bytes is too long: at most %d", kind, len(line), RecordMax))
	}
	if j.size+int64(len(line)) > SizeMax {
		return wrap("append to", j.path, fault.New(fault.NoResources, "it is full (%d bytes): see its records for what repeats itself", j.size))
	}
	// One write(2): no sync, because tmpfs has nothing to sync to, and on a disk the journal need not survive the machine.
	if n, err := j.file.Write(line); err != nil {
		if n > 0 {
			j.broken = j.file.Truncate(j.size)
			err = errors.Join(err, j.broken)
		}
		return wrap("append to", j.path, err)
	}
	j.size += int64(len(line))
	return nil
}

// Reset forgets everything: the journal is empty afterwards.
func (j *Journal) Reset() error {
	if err := j.file.Truncate(0); err != nil {
		return wrap("empty", j.path, err)
	}
	j.size, j.broken = 0, nil
	return nil
}

// Close closes the file, which stays.
func (j *Journal) Close() error { return wrap("close", j.path, j.file.Close()) }

// Remove removes the file of a VM that is gone; none is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrap("remove", path, err)
	}
	return nil
}

// wrap names the journal. What the operating system says is a broken machine, except for a disk without space.
func wrap(op, path string, err error) error {
	if err == nil {
		return nil
	}
	if fault.KindOf(err) == fault.Unknown {
		kind := fault.Internal
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			kind, err = fault.NoResources, fmt.Errorf("no space left: free some there: %w", err)
		}
		err = fault.New(kind, "%w", err)
	}
	return fault.Wrap(op, "journal "+path, err)
}
