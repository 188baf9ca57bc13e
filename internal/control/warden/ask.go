package warden

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// answerMax bounds the wait for an answer of the warden, unless the caller's context ends before: one that takes longer stands still, and nobody
// may count on it.
const answerMax = time.Second

// Authority says until when this host's authority lasts, under which fence count. VMs that were frozen by the authority's end run on before it
// returns.
func (l *Line) Authority(ctx context.Context, fences uint64, until authority.Moment) error {
	return l.ask(ctx, answerMax, saysAuthority, strconv.FormatUint(fences, 10), momentWord(until))
}

// Shorten says that the authority lasts no longer than until.
func (l *Line) Shorten(ctx context.Context, until authority.Moment) error {
	return l.ask(ctx, answerMax, saysShorten, momentWord(until))
}

// GiveUp says that this host's epoch is over: the warden kills every VM on lease-arbitrated storage from now on.
func (l *Line) GiveUp(ctx context.Context) error { return l.ask(ctx, answerMax, saysGiveUp) }

// VM says who arbitrates the storage of a VM that has a QEMU here, and whether its vCPUs stand: after QEMU has acknowledged that, and
// before it lets them run.
func (l *Line) VM(ctx context.Context, id inventory.VMID, arbiter authority.Arbiter, stopped bool) error {
	return l.ask(ctx, answerMax, saysVM, string(id), vmWords(arbiter, stopped))
}

// Stands says that a VM's vCPUs stand, after QEMU has acknowledged that, and leaves who arbitrates its storage as the warden knows it.
func (l *Line) Stands(ctx context.Context, id inventory.VMID) error {
	return l.ask(ctx, answerMax, saysStands, string(id))
}

// Gone says that a VM has no QEMU here any more.
func (l *Line) Gone(ctx context.Context, id inventory.VMID) error {
	return l.ask(ctx, answerMax, saysGone, string(id))
}

// Cleared returns when nothing lives any more of what was here under an earlier fence count. The first Authority comes before it. Only ctx
// bounds it.
func (l *Line) Cleared(ctx context.Context) error { return l.ask(ctx, 0, saysCleared) }

// Unwatched says that the store has this host's word that nobody can fence it. With that the warden takes its watchdog off when it ends in
// order; the next Authority takes the word back.
func (l *Line) Unwatched(ctx context.Context) error { return l.ask(ctx, answerMax, saysUnwatched) }

// Left returns the authority that the warden knew of when it started this process, 0 for none: what this process' predecessor had.
func (l *Line) Left() (fences uint64, until authority.Moment) {
	if l == nil {
		return 0, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hello.fences, l.hello.until
}

// Fencing says how others can know that this host's VMs are dead when it falls silent, as the warden has told it last.
func (l *Line) Fencing() inventory.Fencing {
	if l == nil {
		return inventory.FencedByNobody
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hello.fencing
}

// ask says a word and waits for its answer, for so long at most unless that is 0. A nil Line has nobody to ask, and nobody who would end a VM.
func (l *Line) ask(ctx context.Context, most time.Duration, what string, args ...string) error {
	if l == nil {
		return nil
	}
	if most > 0 {
		bounded, done := context.WithTimeout(ctx, most)
		defer done()
		ctx = bounded
	}
	answer := make(chan error, 1)
	l.mu.Lock()
	l.asked++
	number := l.asked
	l.waiting[number] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, number)
		l.mu.Unlock()
	}()
	text := strings.Join(append([]string{what, strconv.FormatUint(number, 10)}, args...), " ")
	if len(text) > lineMax {
		return fault.New(fault.Invalid, "tell the warden: %s is too long a word", what)
	}
	if err := l.send(text); err != nil {
		return fault.New(fault.Unavailable, "tell the warden %s: %w", what, err)
	}
	select {
	case err := <-answer:
		return fault.Wrap("the warden does not take", what, err)
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "the warden does not answer %s: %w", what, context.Cause(ctx))
	}
}

// greet reads the warden's first word.
func (l *Line) greet() error {
	if err := l.conn.SetReadDeadline(time.Now().Add(helloMax)); err != nil {
		return fault.New(fault.Internal, "line: %w", err)
	}
	message := make([]byte, lineMax)
	n, err := l.conn.Read(message)
	if err != nil {
		return fault.New(fault.Unavailable, "line: the warden says nothing: %w", err)
	}
	if err := l.greeted(string(message[:n])); err != nil {
		return err
	}
	return l.conn.SetReadDeadline(time.Time{})
}

// greeted takes the warden's first word.
func (l *Line) greeted(text string) error {
	word, rest, _ := strings.Cut(text, " ")
	var until int64
	if _, err := fmt.Sscan(rest, &l.hello.fences, &until); word != tellsHello || err != nil {
		return fault.New(fault.Internal, "line: the warden says %q first", text)
	}
	l.hello.until = authority.Moment(until)
	return nil
}

// listen hands on what the warden says until it has ended.
func (l *Line) listen() {
	message := make([]byte, lineMax)
	for {
		n, err := l.conn.Read(message)
		if err != nil {
			return
		}
		l.heard(string(message[:n]))
	}
}

// heard takes one word of the warden's. Those that this role does not know are left alone: a warden may be newer than it.
func (l *Line) heard(text string) {
	word, rest, _ := strings.Cut(text, " ")
	l.mu.Lock()
	defer l.mu.Unlock()
	switch word {
	case tellsFencing:
		l.hello.fencing = inventory.Fencing(strings.TrimPrefix(rest, noFencing))
	case tellsOK, tellsNo:
		numeral, why, _ := strings.Cut(rest, " ")
		number, err := strconv.ParseUint(numeral, 10, 64)
		if err != nil {
			return
		}
		var refused error
		if word == tellsNo {
			refused = parseRefusal(why)
		}
		if answer := l.waiting[number]; answer != nil {
			delete(l.waiting, number)
			answer <- refused // it has room for the one answer
		}
	}
}
