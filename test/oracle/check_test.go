package oracle

import (
	"strings"
	"testing"
	"time"
)

// story is a log in a few words: "h1 lock 3", "h1 q7 open", "h1 q7 write 12" (a block of the writing guest, 0 for any other), where q7 is QEMU
// number 7 and i8 a qemu-img.
func story(t *testing.T, lines ...string) []Entry {
	t.Helper()
	var log []Entry
	for i, line := range lines {
		w := strings.Fields(line)
		e := Entry{At: time.Duration(i) * time.Second, Host: w[0], File: "a.raw"}
		number := func(s string) (n uint64) {
			for _, c := range s {
				n = n*10 + uint64(c-'0')
			}
			return n
		}
		if w[1] == "lock" {
			e.Kind, e.VM, e.Generation, e.File = Locked, "vm-a", number(w[2]), ""
			log = append(log, e)
			continue
		}
		e.Process, e.Program = int(number(w[1][1:])), "qemu-system-x86"
		if w[1][0] == 'i' {
			e.Program = "qemu-img"
		}
		switch w[2] {
		case "open":
			e.Kind = Opened
		case "write":
			e.Kind, e.Length, e.Number = Wrote, 4096, number(w[3])
		case "denied":
			e.Kind, e.Number = Denied, number(w[3])
		case "size":
			e.Kind, e.Offset = Sized, 4096
		default:
			t.Fatalf("%q is no story", line)
		}
		log = append(log, e)
	}
	return log
}

func TestTheCheckFindsWhatMayNotBe(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  string // in the only complaint; "": none
		story []string
	}{
		{"made, started, restarted elsewhere", "", []string{
			"h1 i1 open", "h1 i1 write 0", "h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h1 q2 write 2", "h2 lock 2", "h2 q3 open", "h2 q3 write 3",
		}},
		{"migrated: the target's record comes while the source still writes", "", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h1 q2 write 2", "h2 q3 write 3",
		}},
		{"a migration that failed, and the next one", "", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h1 q2 write 2", "h2 lock 3", "h2 q4 open", "h1 q2 write 3", "h2 q4 write 4",
		}},
		{"home again", "", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h2 q3 write 2", "h1 lock 3", "h1 q4 open", "h1 q4 write 3",
		}},
		{"home again, and its incoming QEMU is there before the record", "", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h2 q3 write 2", "h1 q4 open", "h1 lock 3", "h2 q3 write 3", "h1 q4 write 4",
		}},
		{"the storage refused the old one", "", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h2 q3 write 2", "h1 q2 denied 2", "h2 q3 write 3",
		}},
		{"a block is tried again", "", []string{"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h1 q2 write 1", "h1 q2 write 2"}},
		{"qemu-img after QEMU", "", []string{"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h1 i3 open", "h1 i3 size", "h1 i4 open", "h1 i4 write 0"}},

		{"an old copy writes on", "generation 1 writes after generation 2 did, at 5.000s on h2", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h2 q3 write 2", "h1 q2 write 3",
		}},
		{"an old copy discards", "generation 1 writes after generation 2 did", []string{
			"h1 lock 1", "h1 q2 open", "h2 lock 2", "h2 q3 open", "h2 q3 write 1", "h1 q2 size",
		}},
		{"an old copy after its host made a newer record", "generation 1 writes after generation 3 did", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h1 lock 3", "h1 q4 open", "h1 q4 write 2", "h1 q2 write 3",
		}},
		{"home again without a record", "generation 1 writes after generation 2 did", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h2 lock 2", "h2 q3 open", "h2 q3 write 2", "h1 q4 open", "h1 q4 write 3",
		}},
		{"an old copy that never wrote, after its host made a newer record", "generation 1 writes after generation 3 did", []string{
			"h1 lock 1", "h1 q2 open", "h1 lock 3", "h1 q4 open", "h1 q4 write 1", "h1 q2 write 2",
		}},
		{"two of one host in turn", "two processes of h1 write in turn with generation 1", []string{
			"h1 lock 1", "h1 q2 open", "h1 q3 open", "h1 q2 write 1", "h1 q3 write 2", "h1 q2 write 3",
		}},
		{"two hosts with one record each of one number", "two hosts write with generation 1", []string{
			"h1 lock 1", "h2 lock 1", "h1 q2 open", "h2 q3 open", "h1 q2 write 1", "h2 q3 write 2",
		}},
		{"no record", "its host has no lock record", []string{"h1 q2 open", "h1 q2 write 1"}},
		{"a copy that had not seen the last block", "number 2 follows 3", []string{
			"h1 lock 1", "h1 q2 open", "h1 q2 write 2", "h1 q2 write 3", "h2 lock 2", "h2 q3 open", "h2 q3 write 2",
		}},
		{"a block that never came", "number 5 follows 3", []string{"h1 lock 1", "h1 q2 open", "h1 q2 write 3", "h1 q2 write 5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad := Check(story(t, c.story...), map[string]string{"a.raw": "vm-a"})
			switch {
			case c.want == "" && len(bad) == 0:
			case len(bad) != 1 || c.want == "" || !strings.Contains(bad[0], c.want):
				t.Errorf("it says %q, and should say %q", bad, c.want)
			}
		})
	}
	if bad := Check(story(t, "h1 q2 open", "h1 q2 write 1"), nil); bad != nil {
		t.Errorf("a file of no VM: %q", bad)
	}
}
