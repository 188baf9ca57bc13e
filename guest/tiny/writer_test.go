package tiny_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/guest/internal/rig"
	"github.com/godwit-vm/godwit/guest/tiny"
)

// The story: the guest writes, its machine is killed, and the next one goes on where the disk was left.
func TestWriterGoesOnBehindWhatTheDiskHas(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, tiny.Writer(), 0o600); err != nil {
		t.Fatal(err)
	}
	highest := func() (b tiny.Block) {
		content, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(content); at += tiny.PageSize {
			if found, ok := tiny.ParseBlock(content[at:]); ok && found.Number > b.Number {
				b = found
			}
		}
		return b
	}
	for boot := range uint32(3) {
		before := highest()
		m := machine{rig.Start(t, qemu, "-machine", "q35,graphics=off", "-m", "48M", "-drive", "file="+disk+",format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d"), t}
		number, lines := uint32(0), 0
		for number < before.Number+20 { // more than once round the ring
			line := m.Line()
			lines++
			n, ok := tiny.ParseWriter(line)
			if !ok && number == 0 && lines < 50 {
				continue // of the firmware
			}
			if !ok || number != 0 && n != number+1 || number == 0 && n != before.Number+1 {
				t.Fatalf("boot %d: line %q follows number %d, and the disk had %+v", boot, line, number, before)
			}
			if number == 0 {
				t.Logf("first block after %v", time.Since(m.Started).Round(time.Millisecond))
			}
			number = n
		}
		m.Do("quit", nil)
		<-m.Exited
		if after := highest(); after.Number < number || after.Boots != boot+1 {
			t.Errorf("boot %d: the guest was at %d, and the disk has %+v", boot, number, after)
		}
	}
}
