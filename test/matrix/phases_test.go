package matrix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// errMissed says that a phase was over before it could be struck: nothing is known of the cell then.
var errMissed = errors.New("missed")

// Who can be stopped, to hold a phase or as the fault.
const (
	sourceAgent = "source agent"
	targetAgent = "target agent"
	sourceQEMU  = "source QEMU"
	targetQEMU  = "target QEMU"
	theStore    = "store"
	theStream   = "stream"
)

// phase is where a migration can be struck.
type phase struct {
	flags []string // of the migration
	// reach brings the migration there and holds it.
	reach func(ctx context.Context, t *trial) error
	// over is the line of a host's log with which it ends.
	host func(t *trial) *lab.Host
	over []string
}

func onSource(t *trial) *lab.Host { return t.source }
func onTarget(t *trial) *lab.Host { return t.target }

// The migrations that are struck. In pre-copy there must be time left. At the device phase there must be so much left to send, at a pause that nobody
// would allow in earnest, that it is seen.
var (
	slowCopy       = []string{"--bandwidth", "16M"}
	shortCopy      = []string{"--bandwidth", "32M"}
	longSwitchover = []string{"--bandwidth", "24M", "--downtime-max", "2s"}
)

// aimAt is how much of a migration was sent when it is aimed at: more than any call between agents carries.
const aimAt = 2 << 20

// phases says how to come to each.
var phases = map[string]phase{
	"prepare": {
		reach: func(ctx context.Context, t *trial) error {
			if err := t.beginHeld(ctx); err != nil {
				return err
			}
			return t.source.WatchMigration(ctx, t.migration, func(m *godwitv1.Migration) bool {
				p := m.GetStatus().GetPhase()
				t.note("the target's QEMU stands, the migration is %s", p)
				return p == inventory.Planned.String() || p == inventory.Admitted.String()
			})
		},
		host: onSource, over: []string{"event=pre-switchover"},
	},
	"pre-copy": {
		flags: slowCopy,
		reach: func(ctx context.Context, t *trial) error { return t.copying(ctx) },
		host:  onSource, over: []string{"event=pre-switchover"},
	},
	// Without an heir the source stands at the gate, for half a second.
	"pre-switchover": {
		reach: func(ctx context.Context, t *trial) error {
			if err := t.beginHeld(ctx); err != nil {
				return err
			}
			if err := t.standStore(); err != nil {
				return err
			}
			if err := t.release(targetQEMU); err != nil {
				return err
			}
			return t.logged(ctx, t.source, "event=pre-switchover", "to=gate")
		},
		host: onSource, over: []string{"from=gate"},
	},
	"device": {
		flags: longSwitchover,
		reach: func(ctx context.Context, t *trial) error {
			if err := t.copying(ctx); err != nil {
				return err
			}
			if err := t.logged(ctx, t.source, "to=switching"); err != nil {
				return err
			}
			if err := t.stand(targetQEMU); err != nil {
				return err
			}
			// That is the last that the source's agent does before it lets QEMU go on.
			return t.soon(ctx, "the port forwards", func() bool { _, ok := t.find(t.source, `msg="port forwards"`); return ok })
		},
		host: onTarget, over: []string{"to=loaded"},
	},
	"loaded": {
		flags: shortCopy,
		reach: func(ctx context.Context, t *trial) error { return t.loaded(ctx) },
		host:  onSource, over: []string{"event=completed"},
	},
	"release": {
		flags: shortCopy,
		reach: func(ctx context.Context, t *trial) error {
			if err := t.loaded(ctx); err != nil {
				return err
			}
			if err := errors.Join(t.stand(targetAgent), t.release(theStream)); err != nil {
				return err
			}
			return t.logged(ctx, t.source, "to=released")
		},
		host: onTarget, over: []string{"to=resuming"},
	},
	"resume": {
		flags: shortCopy,
		reach: func(ctx context.Context, t *trial) error { return t.resuming(ctx) },
		host:  onTarget, over: []string{"to=running"},
	},
	"owner write": {
		flags: shortCopy,
		reach: func(ctx context.Context, t *trial) error {
			if err := t.resuming(ctx); err != nil {
				return err
			}
			if err := t.standStore(); err != nil {
				return err
			}
			if faults[t.c.fault].victim == sourceQEMU { // its agent would end it at the target's answer
				if err := t.stand(sourceAgent); err != nil {
					return err
				}
			}
			if err := t.release(targetQEMU); err != nil {
				return err
			}
			return t.logged(ctx, t.target, "to=running")
		},
		host: onTarget, over: []string{"to=owner"},
	},
	"clean-up": {
		flags: shortCopy,
		reach: func(ctx context.Context, t *trial) error {
			if err := t.resuming(ctx); err != nil {
				return err
			}
			if err := errors.Join(t.standStore(), t.stand(sourceAgent), t.release(targetQEMU)); err != nil {
				return err
			}
			if err := t.logged(ctx, t.target, "to=running"); err != nil {
				return err
			}
			if err := t.release(theStore); err != nil {
				return err
			}
			return t.logged(ctx, t.target, "to=owner")
		},
		host: onSource, over: []string{"to=over"},
	},
}

// hold is a process, or something else, that stands so that a phase does not end.
type hold struct {
	what    string
	release func() error
}

// begin asks for the migration.
func (t *trial) begin(ctx context.Context) error {
	args := append([]string{"vm", "migrate", t.name, "--to", t.target.Name, "--detach", "--json"}, t.flags...)
	out, err := t.source.Godwit(ctx, args...)
	if err != nil {
		return err
	}
	m := &godwitv1.Migration{}
	if err := protojson.Unmarshal(out, m); err != nil {
		return err
	}
	t.migration = m.GetId()
	return nil
}

// beginHeld asks for the migration and stops the target's QEMU as soon as there is one, long before it can say that it listens.
func (t *trial) beginHeld(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, stepMax)
	defer done()
	stands := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if pids := t.target.QEMUs(t.id); len(pids) > 0 {
				t.pids[targetQEMU] = pids[0]
				stands <- t.stand(targetQEMU)
				return
			}
			time.Sleep(time.Millisecond) // no event tells of a process that begins
		}
		stands <- ctx.Err()
	}()
	err := t.begin(ctx)
	if err != nil {
		done()
	}
	return errors.Join(err, <-stands)
}

// copying brings the migration to where memory is being copied.
func (t *trial) copying(ctx context.Context) error {
	if err := t.begin(ctx); err != nil {
		return err
	}
	if err := t.source.WatchMigration(ctx, t.migration, func(m *godwitv1.Migration) bool {
		return m.GetStatus().GetPhase() == inventory.PreCopy.String() && m.GetStatus().GetProgress().GetSent() > aimAt
	}); err != nil {
		return fmt.Errorf("%w: %w", errMissed, err)
	}
	pids := t.target.QEMUs(t.id)
	if len(pids) != 1 {
		return fmt.Errorf("%s has QEMUs %v while it is copied", t.target.Name, pids)
	}
	t.pids[targetQEMU] = pids[0]
	return nil
}

// loaded brings the migration to where the target has loaded, and keeps the target's word of that from the source.
func (t *trial) loaded(ctx context.Context) error {
	if err := t.copying(ctx); err != nil {
		return err
	}
	wire, err := lab.MemoryStream(t.pids[sourceAgent])
	if err != nil {
		return err
	}
	lift, err := wire.Deaf()
	if err != nil {
		return err
	}
	t.holds = append(t.holds, hold{theStream, lift})
	if err := t.logged(ctx, t.target, "to=loaded"); err != nil {
		return err
	}
	// Its word must have left both QEMU and agent before either is stopped, or it is never heard.
	if wire, err = lab.MemoryStream(t.pids[targetAgent]); err != nil {
		return err
	}
	defer func() { _ = wire.Close() }() // only looked at
	return t.soon(ctx, "the target's word is on its way", func() bool { n, err := wire.Unheard(); return err == nil && n > 0 })
}

// resuming brings the migration to where the target's QEMU is to run, and has not heard it.
func (t *trial) resuming(ctx context.Context) error {
	if err := t.loaded(ctx); err != nil {
		return err
	}
	if err := errors.Join(t.stand(targetQEMU), t.release(theStream)); err != nil {
		return err
	}
	return t.logged(ctx, t.target, "to=resuming")
}

// stand stops a process until release.
func (t *trial) stand(who string) error {
	pid := t.pids[who]
	t.holds = append(t.holds, hold{who, func() error { return ended(syscall.Kill(pid, syscall.SIGCONT)) }})
	return syscall.Kill(pid, syscall.SIGSTOP)
}

func (t *trial) standStore() error {
	t.holds = append(t.holds, hold{theStore, t.f.etcd.GoOn})
	return t.f.etcd.Stand()
}

// ended takes a process that is gone for one that was signaled.
func ended(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// release lets go on what is held under one name.
func (t *trial) release(what string) error {
	var all error
	t.holds = slices.DeleteFunc(t.holds, func(h hold) bool {
		if h.what == what {
			all = errors.Join(all, h.release())
		}
		return h.what == what
	})
	return all
}

// releaseAll lets go on whatever is held but what the fault has in its hands.
func (t *trial) releaseAll(but string) error {
	var all error
	for _, h := range slices.Clone(t.holds) {
		if h.what != but {
			all = errors.Join(all, t.release(h.what))
		}
	}
	t.holds = nil
	return all
}

// seenMax bounds the wait for what must come at once, or the phase is missed: a hold lasts for 2 s at most, as the warden ends what stands.
const seenMax = 1700 * time.Millisecond

// copyMax bounds the wait for the end of a copy.
const copyMax = 15 * time.Second

// soon waits for something to be so.
func (t *trial) soon(ctx context.Context, what string, so func() bool) error {
	within, done := context.WithTimeout(ctx, seenMax)
	defer done()
	for !so() {
		select {
		case <-within.Done():
			return fmt.Errorf("%w: %s: not seen", errMissed, what)
		case <-time.After(2 * time.Millisecond):
		}
	}
	t.note("%s", what)
	return nil
}

// logged waits until the host logs a step of the hand-over that has these words.
func (t *trial) logged(ctx context.Context, h *lab.Host, words ...string) error {
	within, done := context.WithTimeout(ctx, copyMax)
	defer done()
	if !slices.ContainsFunc(t.holds, func(h hold) bool { return h.what == theStream }) && len(t.holds) > 0 {
		within, done = context.WithTimeout(ctx, 2*seenMax)
		defer done()
	}
	for {
		if _, ok := t.find(h, words...); ok {
			t.note("%s: %s", h.Name, strings.Join(words, " "))
			return nil
		}
		select {
		case <-within.Done():
			return fmt.Errorf("%w: %s does not log %q", errMissed, h.Name, words)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stampRE is the time of a line of a log.
var stampRE = regexp.MustCompile(`^time=(\S+)`)

// find looks for a line about this migration in a host's log, one of its hand-over unless the words say another, and says when it was written.
func (t *trial) find(h *lab.Host, words ...string) (at time.Time, ok bool) {
	if !strings.HasPrefix(words[0], "msg=") {
		words = append([]string{"msg=hand-over"}, words...)
	}
	file, err := os.Open(h.LogPath())
	if err != nil {
		return at, false
	}
	defer func() { _ = file.Close() }() // it was only read
	text, err := io.ReadAll(io.NewSectionReader(file, t.logs[h.Name], logMax))
	if err != nil {
		return at, false
	}
	for line := range bytes.Lines(text) {
		if !bytes.Contains(line, []byte(t.migration)) || !bytes.HasSuffix(line, []byte("\n")) {
			continue
		}
		if slices.ContainsFunc(words, func(w string) bool { return !bytes.Contains(line, []byte(w)) }) {
			continue
		}
		if m := stampRE.FindSubmatch(line); m != nil {
			at, err = time.Parse(time.RFC3339Nano, string(m[1]))
		}
		return at, err == nil
	}
	return at, false
}

// logMax bounds what a host logs in one trial, in bytes: an agent that is silent writes down all its goroutines.
const logMax = 64 << 20
