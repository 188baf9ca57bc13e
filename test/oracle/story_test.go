package oracle

import (
	"strings"
	"testing"
)

func TestAStoryIsShort(t *testing.T) {
	log := story(t, "h1 lock 1", "h1 q2 open", "h1 q2 write 1", "h1 q2 write 2", "h1 q2 write 3", "h2 lock 2", "h2 q3 open", "h2 q3 write 4", "h1 q2 denied 4", "h2 q3 write 5")
	log = append(log, Entry{Kind: Noted, Host: "h1", Text: "fault: cut off"}, Entry{Kind: Locked, Host: "h1", VM: "vm-other", Generation: 7}, Entry{Kind: Wrote, File: "other.raw"})
	got := strings.Join(Story(log, map[string]string{"a.raw": "vm-a"}), "\n")
	want := `    0.000s h1      lock record 1 of vm-a
    1.000s h1      opened a.raw: qemu-system-x86[2] 0+0 number 0
    5.000s h2      lock record 2 of vm-a
    6.000s h2      opened a.raw: qemu-system-x86[3] 0+0 number 0
    2.000s h1      qemu-system-x86[2] wrote 3 times to a.raw until 4.000s, numbers 1 to 3
    8.000s h1      denied a.raw: qemu-system-x86[2] 0+0 number 4
    7.000s h2      qemu-system-x86[3] wrote 2 times to a.raw until 9.000s, numbers 4 to 5
    0.000s h1      fault: cut off`
	if got != want {
		t.Errorf("it is\n%s\nand should be\n%s", got, want)
	}
}
