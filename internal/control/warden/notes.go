package warden

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// notesFile holds what the guard knows, in the run directory, which is on tmpfs: it outlives a warden and not a boot. Moments are in nanoseconds
// of CLOCK_BOOTTIME. A line each:
//
//	boot ID
//	fences N
//	until MOMENT
//	over
//	vm ID lease|storage stopped|runs
//	doomed ID
//	hidden ID
const notesFile = "authority"

// notes keeps the file. Only the guard's goroutine calls it.
type notes struct {
	path string
	boot string
	last []byte
	text bytes.Buffer // reused
}

// keep writes the machine down, if it is another one than before. The file is there whole, the old one or the new; after an error it is gone.
func (n *notes) keep(m authority.Warden, hidden map[authority.VM]bool) error {
	if n == nil {
		return nil
	}
	n.text.Reset()
	fmt.Fprintf(&n.text, "boot %s\nfences %d\nuntil %d\n", n.boot, m.Fences, int64(m.Until))
	if m.Over {
		n.text.WriteString("over\n")
	}
	for _, id := range m.VMs() {
		vm := m.Knows(id)
		fmt.Fprintf(&n.text, "vm %s %s\n", id, vmWords(vm.Arbiter, vm.Stopped))
	}
	for _, id := range m.Doomed() {
		fmt.Fprintf(&n.text, "doomed %s\n", id)
	}
	for _, id := range slices.Sorted(maps.Keys(hidden)) {
		fmt.Fprintf(&n.text, "hidden %s\n", id)
	}
	if bytes.Equal(n.text.Bytes(), n.last) {
		return nil
	}
	err := os.WriteFile(n.path+".new", n.text.Bytes(), 0o600)
	if err == nil {
		err = os.Rename(n.path+".new", n.path)
	}
	if err != nil {
		// An old file would tell the next warden of a longer authority, or of stops that are over. One that knows nothing is safe: it proves nothing.
		n.last = nil
		err = fault.New(fault.NoResources, "authority file: %w", err)
		if gone := os.Remove(n.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			return errors.Join(err, fault.New(fault.Internal, "authority file: the old one stays: %w", gone))
		}
		return err
	}
	n.last = append(n.last[:0], n.text.Bytes()...)
	return nil
}

// readNotes returns what a warden of this boot has left in the run directory, the machine and which VMs it could not see, or a machine that knows nothing.
func readNotes(dir, boot string, s authority.Settings) (*notes, authority.Warden, map[authority.VM]bool, error) {
	n := &notes{path: filepath.Join(dir, notesFile), boot: boot}
	nothing := authority.NewWarden(s, 0, 0)
	text, err := os.ReadFile(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nothing, map[authority.VM]bool{}, nil
	}
	if err != nil {
		return n, nothing, map[authority.VM]bool{}, fault.New(fault.Internal, "authority file: %w", err)
	}
	m, hidden, of, err := parseNotes(string(text), s)
	if err != nil {
		return n, nothing, map[authority.VM]bool{}, fault.New(fault.Internal, "authority file %s: %w", n.path, err)
	}
	if of != boot {
		return n, nothing, map[authority.VM]bool{}, nil // what it speaks of died with that boot
	}
	return n, m, hidden, nil
}

// parseNotes reads the text of a file and the boot that it is of.
func parseNotes(text string, s authority.Settings) (m authority.Warden, hidden map[authority.VM]bool, boot string, err error) {
	m, hidden = authority.NewWarden(s, 0, 0), map[authority.VM]bool{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "boot":
			boot = fields[1]
		case len(fields) == 2 && fields[0] == "fences":
			m.Fences, err = strconv.ParseUint(fields[1], 10, 64)
		case len(fields) == 2 && fields[0] == "until":
			m.Until, err = parseMoment(fields[1])
		case len(fields) == 1 && fields[0] == "over":
			m.Over = true
		case len(fields) == 4 && fields[0] == saysVM:
			m.VM(authority.VM(fields[1]), authority.Arbiter(fields[2]), fields[3] == wordStopped)
		case len(fields) == 2 && fields[0] == "doomed":
			m.Doom(authority.VM(fields[1]))
		case len(fields) == 2 && fields[0] == "hidden":
			hidden[authority.VM(fields[1])] = true
		default:
			err = fault.New(fault.Invalid, "line %q", line)
		}
		if err != nil {
			return m, hidden, boot, err
		}
	}
	return m, hidden, boot, nil
}
