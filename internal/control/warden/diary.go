package warden

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// diary writes the guard's log without having it wait: where the log goes to, a disk or a journal, may stand still just when VMs must be
// ended.
type diary struct {
	log   *slog.Logger
	lines chan line
	lost  atomic.Uint64 // lines that there was no room for
	done  chan struct{}
}

type line struct {
	level slog.Level
	text  string
	facts []slog.Attr
}

// diaryMax bounds the lines that wait to be written.
const diaryMax = 256

func newDiary(log *slog.Logger) *diary {
	return &diary{log: log, lines: make(chan line, diaryMax), done: make(chan struct{})}
}

// run writes until close, and what is left then.
func (d *diary) run(ctx context.Context) {
	defer close(d.done)
	for l := range d.lines {
		d.log.LogAttrs(ctx, l.level, l.text, l.facts...) //nolint:sloglint // say got a constant
		if lost := d.lost.Swap(0); lost > 0 {
			d.log.LogAttrs(ctx, slog.LevelWarn, "the log stood still, and lines were lost", slog.Uint64("lines", lost))
		}
	}
}

// say writes a line when there is time.
func (d *diary) say(level slog.Level, text string, facts ...slog.Attr) {
	select {
	case d.lines <- line{level, text, facts}:
	default:
		d.lost.Add(1)
	}
}

// close ends run after the guard has said its last.
func (d *diary) close() { close(d.lines); <-d.done }
