package warden

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/policy/authority"
)

// lineWords is how many words one attempt says at most: they wait in the socket until they are read.
const lineWords = 32

// Whatever a role says over its line, the guard goes on; each word of its own gets one answer under its number, and one that is answered no
// gives no authority.
func FuzzLineOfARole(f *testing.F) {
	f.Add("authority 1 0 9000000000000\nvm 2 vm-runs lease runs\ncleared 3\nshorten 4 1\ngone 5 vm-runs\ngive-up 6\nunwatched 7")
	f.Add("authority 1 18446744073709551615 9223372036854775807\nauthority 2 0 0\nshorten 3 9223372036854775807")
	f.Add("authority 1 -1 1\nauthority 2 1 -1\nauthority 3\nshorten 4 x\nvm 5 a b c\nvm 6 a lease asleep\ngive-up 7 now")
	f.Add("vm 1 vm-runs lease stopped\nvm 1 vm-runs storage runs\ncleared\ncleared 1\ncleared 2")
	f.Add("alive\nstarting \x00\nstop\n\n  \nok 1\nhello 1 1")
	f.Add("authority 1 0 " + strings.Repeat("9", 600))
	f.Fuzz(func(t *testing.T, said string) {
		ours, theirs, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		role, err := connOf(theirs)
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range strings.Split(said, "\n") {
			if i == lineWords || text == endWord || len(text) == 0 || sendNow(role, text) != nil {
				break // the warden's own word; an empty message, which reads as the end; a full socket
			}
		}
		_ = role.Close()
		k := newKernel("vm-runs", "vm-rests")
		g := &guard{
			machine: fresh(), groups: k, clock: clock{k.now, k.ring, k.setAt}, complaints: map[string]string{}, hidden: map[authority.VM]bool{},
			log: newDiary(slog.New(slog.DiscardHandler)), words: make(chan word, wordsMax), over: make(chan struct{}),
		}
		defer func() {
			if k.wake != nil {
				k.wake.Stop()
			}
		}()
		g.said.Store(&hello{})
		var answers []string
		e := &ear{tell: func(text string) { answers = append(answers, text) }}
		g.agent.Store(e)
		listen(ours, func(text string) {
			if !forGuard(text) {
				return
			}
			until, before, wanters := g.machine.Until, len(answers), len(g.wanters)
			g.take(word{from: e, text: text})
			fields := strings.Fields(text)
			if len(fields) < 2 || len(g.wanters) > wanters {
				return // nobody to answer, or nothing to answer yet
			}
			var own []string
			for _, a := range answers[before:] {
				if strings.HasPrefix(a, tellsOK) || strings.HasPrefix(a, tellsNo) {
					own = append(own, a)
				}
			}
			if len(own) == 0 {
				t.Fatalf("%q has no answer", text)
			}
			last := own[len(own)-1]
			if answer := strings.Fields(last); len(answer) < 2 || answer[1] != fields[1] {
				t.Errorf("%q is answered %q", text, last)
			}
			if strings.HasPrefix(last, tellsNo) && g.machine.Until > until {
				t.Errorf("%q is answered %q, and the authority was %d and is %d", text, last, until, g.machine.Until)
			}
		})
		g.look()
		if len(g.wanters) > wantersMax {
			t.Errorf("%d wait", len(g.wanters))
		}
	})
}

// Whatever a warden says over its line, the role goes on, and who waits for an answer gets that one, once.
func FuzzLineOfTheWarden(f *testing.F) {
	f.Add("hello 3 99", "fencing watchdog", "ok 1")
	f.Add("hello", "fencing -", "no 1 it is over")
	f.Add("hello -1 x", "fencing", "no 1")
	f.Add("ok 1", "ok", "ok 18446744073709551616")
	f.Add("hello 1 1", "no 1 incompatible: its qemu has no cgroup of its own", "no 1 incompatible")
	f.Fuzz(func(t *testing.T, first, second, third string) {
		l := newLine(nil, slog.New(slog.DiscardHandler))
		answer := make(chan error, 1)
		l.waiting[1] = answer
		before := l.hello
		if err := l.greeted(first); err != nil && l.hello.until != before.until {
			t.Errorf("%q is no greeting, and the authority is %v", first, l.hello.until)
		}
		for _, text := range []string{second, third, second} {
			l.heard(text)
		}
		if len(answer) == 1 && l.waiting[1] != nil {
			t.Error("the answer may come again")
		}
		if f := l.Fencing(); f == inventory.FencedByNobody && strings.HasPrefix(second, "fencing watchdog") && !strings.HasPrefix(third, tellsFencing) {
			t.Errorf("it is fenced by %q", f)
		}
	})
}
