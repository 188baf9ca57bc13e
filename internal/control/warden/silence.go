package warden

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The limits of silence.
const (
	silentMax  = 2 * time.Second  // of a role that serves
	startMax   = 60 * time.Second // of a role that starts, from one step to the next
	starvedMax = 8 * time.Second  // how much longer a role is waited for that gets no processor
	doubtAfter = time.Second      // silence after which it is measured how long its threads wait for a processor
)

// awake counts the time in which this process ran. What passed between two looks counts up to twice the time that was meant
// to: if it was more, this process stood still, and so, for all it knows, did everybody else.
type awake struct {
	last time.Time
	ran  time.Duration
}

func (a *awake) look(now time.Time) time.Duration {
	if !a.last.IsZero() {
		a.ran += min(now.Sub(a.last), 2*lookEvery)
	}
	a.last = now
	return a.ran
}

// silence judges a child by when it was heard, in time of awake.
type silence struct {
	ready   bool          // it has said that it lives
	heard   time.Duration // when something was heard of it last
	doubted bool          // it has been silent for doubtAfter
	waited  time.Duration // longestWait at that moment
}

// starting notes a step of a child that starts.
func (s *silence) starting(ran time.Duration) { s.heard, s.doubted = ran, false }

// alive notes a sign of life, and reports whether it is the first.
func (s *silence) alive(ran time.Duration) (first bool) {
	s.starting(ran)
	first, s.ready = !s.ready, true
	return first
}

// judge returns how long the child has been quiet and whether that is more than it may be. waits tells how long one of its threads has
// waited for a processor in its life; it is asked only when there is doubt.
func (s *silence) judge(ran time.Duration, waits func() time.Duration) (quiet time.Duration, silent bool) {
	quiet = ran - s.heard
	limit := startMax
	if s.ready {
		limit = silentMax
	}
	if quiet > doubtAfter && !s.doubted {
		s.doubted, s.waited = true, waits()
	}
	if quiet <= limit {
		return quiet, false
	}
	starved := min(max(0, waits()-s.waited), starvedMax)
	return quiet, quiet-starved > limit
}

// longestWait returns how long the one of the process' threads that waited longest has been ready to run and did not get a
// processor (/proc/PID/schedstat, second figure; Documentation/scheduler/sched-stats.rst), 0 where the kernel does not count that.
func longestWait(pid int) time.Duration {
	files, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "schedstat"))
	if err != nil {
		return 0 // the pattern is fixed and well formed
	}
	var longest time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if fields := strings.Fields(string(text)); len(fields) > 1 {
			if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
				longest = max(longest, time.Duration(n))
			}
		}
	}
	return longest
}

// The pauses before a child is started again.
const (
	pauseMin   = 100 * time.Millisecond
	pauseMax   = 5 * time.Second
	creditsMax = 30               // how often in a row a child that had served starts again after pauseMin
	creditFor  = 10 * time.Second // of running: one of them comes back
)

// backoff says when a child is started again. One that ends before it serves waits longer each time. One that had served
// starts again after pauseMin, since its host is waiting for it; unless it does so too often.
type backoff struct {
	pause   time.Duration
	credits int
}

func newBackoff() backoff { return backoff{pause: pauseMin, credits: creditsMax} }

// next returns the pause after a child that ran so long, and had served or not.
func (b *backoff) next(served bool, ran time.Duration) time.Duration {
	b.credits = min(creditsMax, b.credits+int(ran/creditFor))
	if served && b.credits > 0 {
		b.credits--
		b.pause = pauseMin
		return pauseMin
	}
	pause := b.pause
	b.pause = min(2*pause, pauseMax)
	return pause
}
