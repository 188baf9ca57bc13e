package bundle

import (
	"errors"
	"sync"
)

// tail keeps the last ItemMax bytes that are written to it.
type tail struct {
	mu     sync.Mutex
	kept   []byte
	cut    int64
	closed bool
}

var errClosed = errors.New("the item's time is up")

// Write keeps p, and forgets what was first.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errClosed
	}
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - 2*ItemMax; over > 0 { // seldom, and half at once: each byte is moved once
		t.shorten()
	}
	return len(p), nil
}

func (t *tail) shorten() {
	if over := len(t.kept) - ItemMax; over > 0 {
		t.cut += int64(over)
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
}

// close returns what was kept and how much was not. Whatever is written afterwards is lost.
func (t *tail) close() ([]byte, int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.shorten()
	return t.kept, t.cut
}
