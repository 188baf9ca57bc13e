package oracle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/godwit-vm/godwit/guest/tiny"
)

// Options say what storage is wanted.
type Options struct {
	// LockLife is how long the locks of a host that is cut off or was reset stay; 0: as long as its processes have the files open.
	LockLife time.Duration
	// LostLocksPass lets a host write on with files whose locks it has lost; otherwise that is EIO.
	LostLocksPass bool
}

// Oracle is a folder that several hosts mount, and the log of what they did to it. Its methods may be called by many goroutines.
type Oracle struct {
	folder  string
	options Options
	begin   time.Time

	mu     sync.Mutex // around every deed and its entry
	log    []Entry
	seen   chan struct{} // closed and replaced at each entry
	mounts []*Mount
}

// New returns the oracle of a folder that exists.
func New(folder string, o Options) *Oracle {
	return &Oracle{folder: folder, options: o, begin: time.Now(), seen: make(chan struct{})}
}

// Log returns a copy of what has happened so far.
func (o *Oracle) Log() []Entry {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Entry(nil), o.log...)
}

// Since returns the entries from the n-th on, and a channel that is closed when there is another one.
func (o *Oracle) Since(n int) ([]Entry, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]Entry(nil), o.log[min(n, len(o.log)):]...), o.seen
}

// Note puts an entry of the caller's own into the log: a fault, or its end.
func (o *Oracle) Note(host, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.enter(Entry{Kind: Noted, Host: host, Text: text})
}

// enter appends an entry; o.mu is held.
func (o *Oracle) enter(e Entry) {
	e.At = time.Since(o.begin)
	o.log = append(o.log, e)
	close(o.seen)
	o.seen = make(chan struct{})
}

// Now is the present moment as entries have it: since New.
func (o *Oracle) Now() time.Duration { return time.Since(o.begin) }

// Close takes all mounts away, with whatever still waits in them.
func (o *Oracle) Close() error {
	o.mu.Lock()
	mounts := o.mounts
	o.mounts = nil
	o.mu.Unlock()
	var all error
	for _, m := range mounts {
		all = errors.Join(all, m.close())
	}
	return all
}

// relative returns a path below the folder.
func (o *Oracle) relative(path string) string {
	r, err := filepath.Rel(o.folder, path)
	if err != nil {
		return path
	}
	return r
}

// lockRecord reads the path of a lock record, locks/VM.lock.GENERATION.
func lockRecord(relative string) (vm string, generation uint64, ok bool) {
	name, ok := strings.CutPrefix(relative, "locks/")
	if !ok {
		return "", 0, false
	}
	vm, number, ok := strings.Cut(name, ".lock.")
	if !ok {
		return "", 0, false
	}
	if _, err := fmt.Sscanf(number, "%d", &generation); err != nil || fmt.Sprint(generation) != number {
		return "", 0, false // a file that is to become one
	}
	return vm, generation, true
}

// ours says whether a file is the datastore's own and not an image.
func ours(relative string) bool {
	return strings.HasPrefix(relative, "locks/") || strings.HasPrefix(relative, ".godwit-")
}

// numberIn returns the number in a block of the writing guest, 0 for any other.
func numberIn(block []byte) uint64 {
	b, _ := tiny.ParseBlock(block)
	return uint64(b.Number)
}

// process says which process a thread belongs to, and its name; "" for one that is gone.
func process(thread uint32) (pid int, name string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return int(thread), ""
	}
	pid = int(thread)
	for line := range strings.Lines(string(text)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			_, _ = fmt.Sscan(id, &pid) // the kernel writes a number
		}
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return pid, ""
	}
	return pid, strings.TrimSpace(string(comm))
}
