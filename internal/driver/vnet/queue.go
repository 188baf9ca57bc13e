package vnet

import "sync"

// The bounds of queues. A port that is behind drops, as any switch does: one stuck guest must not stop the others.
//
// What a switchover piles up must not be dropped, so it has bounds of its own, in frames and in the memory that they take, of which
// the nearer one counts. The longest pause after which a guest goes on is 7 s: a stream that stands still for 5 s (migrate's stallMax) is cut
// within the next one, and QEMU gives up. holdMax is 13 s at 10,000 frames/s; holdBytes holds as many of up to 256 bytes, and
// 32,768 frames of the usual MTU.
const (
	portQueueMax  = 4096 // 0.4 s at 10,000 frames/s
	trunkQueueMax = 4096
	holdMax       = 131072
	holdBytes     = 64 << 20
)

// item is something to be sent: a frame, or a control message of the trunk protocol that may carry one.
type item struct {
	kind  kind
	net   netKey
	frame *frame
	ctl   *control // nil for kindData
}

// queue is a bounded FIFO between the fabric and one writer. Its methods may be called by many goroutines.
type queue struct {
	wake chan struct{} // gets a token when there is something to take

	mu    sync.Mutex
	items []item
	head  int
	limit int // of frames pushed by push; grows by boost until the queue is empty
	base  int
	bytes int  // memory of the frames that wait
	busy  bool // the writer holds what it took and has not called done
}

func newQueue(limit int) *queue {
	return &queue{wake: make(chan struct{}, 1), limit: limit, base: limit}
}

// push appends the item and takes over its frame's reference. It reports false when the queue is full; the frame is
// then released.
func (q *queue) push(it item) bool { return q.pushBeyond(it, 0) }

// pushBeyond is push with a limit that is raised by extra.
func (q *queue) pushBeyond(it item, extra int) bool {
	q.mu.Lock()
	n := len(q.items) - q.head
	if n >= q.limit+extra || n >= q.base && q.bytes+it.frame.size() > holdBytes {
		q.mu.Unlock()
		it.frame.release()
		return false
	}
	q.append(it)
	q.mu.Unlock()
	return true
}

// force appends the item whatever the limit. For control messages, of which there are few.
func (q *queue) force(it item) {
	q.mu.Lock()
	q.append(it)
	q.mu.Unlock()
}

// boost appends all items and raises the limit above them until the queue has once been empty, so that a backlog that
// is handed over at once pushes out no frame that comes after it.
func (q *queue) boost(items []item) {
	q.mu.Lock()
	for _, it := range items {
		q.append(it)
	}
	q.limit = max(q.limit, len(q.items)-q.head+holdMax)
	q.mu.Unlock()
}

func (q *queue) append(it item) {
	if len(q.items) == cap(q.items) && 2*q.head >= len(q.items) && q.head > 0 { // use the room at the front before growing
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, it)
	if it.frame != nil {
		q.bytes += it.frame.size()
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take moves items of at most size bytes (one at least, if there is one) to buf and returns it. The queue is busy until
// done is called.
func (q *queue) take(buf []item, size int) []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.head < len(q.items) {
		it := &q.items[q.head]
		if it.frame != nil {
			size -= len(it.frame.data)
		}
		if size < 0 && len(buf) > 0 {
			break
		}
		buf = append(buf, *it)
		if it.frame != nil {
			q.bytes -= it.frame.size()
		}
		*it = item{}
		q.head++
	}
	if q.head == len(q.items) {
		q.items, q.head, q.limit = q.items[:0], 0, q.base
	}
	q.busy = len(buf) > 0
	return buf
}

// done says that what take returned has been written.
func (q *queue) done() {
	q.mu.Lock()
	q.busy = false
	q.mu.Unlock()
}

// idle reports whether nothing waits and nothing is being written.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.busy && q.head == len(q.items)
}

// drain returns everything that waits and leaves the queue empty.
func (q *queue) drain() []item {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items[q.head:]
	q.items, q.head, q.limit, q.bytes = nil, 0, q.base, 0
	return items
}

// len returns how many items wait.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) - q.head
}

// releaseAll drops the items.
func releaseAll(items []item) {
	for i := range items {
		items[i].frame.release()
	}
}
