package matrix

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What guest/tiny's heartbeat guest does with its memory (guest/tiny/rom.inc and heartbeat.S): pages at 2 MiB and up; each tick of 10 ms it writes the tick's
// number into the next few pages of its set, round and round, and behind them are pages that it wrote once, each with its own address.
const (
	area     = 2 << 20
	pageSize = 4096
	fillMark = 0x60d217
)

// ram maps a QEMU's guest memory, which is a memfd, for reading.
func ram(pid int) (memory []byte, done func(), err error) {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	all, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range all {
		path := filepath.Join(folder, e.Name())
		to, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(to, "/memfd:") {
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		info, err := file.Stat()
		if err != nil || info.Size() < area+int64(guestOptions.Pages+guestOptions.Fill)*pageSize {
			_ = file.Close() // another memfd
			continue
		}
		memory, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
		_ = file.Close() // the mapping stays
		if err != nil {
			return nil, nil, err
		}
		return memory, func() { _ = unix.Munmap(memory) }, nil
	}
	return nil, nil, fmt.Errorf("process %d has no guest memory", pid)
}

// readsMax is how often memory is read that a running guest may have been writing.
const readsMax = 5

// uptime returns how many ticks of 10 ms the guest of a QEMU has lived, by its memory, and what is wrong with that memory: each page must hold what the
// guest wrote to it last.
func uptime(pid int) (ticks uint32, err error) {
	memory, done, err := ram(pid)
	if err != nil {
		return 0, err
	}
	defer done()
	word := func(page, offset int) uint32 {
		return binary.LittleEndian.Uint32(memory[area+page*pageSize+offset:])
	}
	var wrong error
	for range readsMax {
		ticks, wrong = check(word)
		if wrong == nil {
			return ticks, nil
		}
	}
	return ticks, wrong
}

// check is one look at the memory.
func check(word func(page, offset int) uint32) (ticks uint32, err error) {
	pages, rate := guestOptions.Pages, guestOptions.Rate
	values := make([]uint32, pages)
	for p := range values {
		values[p] = word(p, 0)
		ticks = max(ticks, values[p])
	}
	if ticks == 0 {
		return 0, errors.New("the guest has written nothing")
	}
	turn := uint32(pages / rate) //nolint:gosec // ticks from one write of a page to the next
	bad, first := 0, ""
	note := func(format string, args ...any) {
		if bad++; first == "" {
			first = fmt.Sprintf(format, args...)
		}
	}
	for p, got := range values {
		// The page is written in ticks 1+p/rate, and every turn after it.
		begin := uint32(p/rate) + 1 //nolint:gosec // as above
		want := uint32(0)
		if ticks >= begin {
			want = ticks - (ticks-begin)%turn
		}
		if got != want && (want != ticks || got != want-turn && (got != 0 || want > turn)) { // a page of this very tick may not be written yet
			note("page %d was written in tick %d, and by tick %d it was in tick %d", p, got, ticks, want)
		}
		if got != 0 && word(p, 8) != uint32(p) { //nolint:gosec // as above
			note("page %d says that it is page %d", p, word(p, 8))
		}
	}
	for p := pages; p < pages+guestOptions.Fill; p++ {
		if address := uint32(area + p*pageSize); word(p, 0) != address^fillMark { //nolint:gosec // as above
			note("page %d of what was written once holds %#x", p, word(p, 0))
		}
	}
	if bad > 0 {
		return ticks, fmt.Errorf("%d pages of the guest's memory are wrong: %s", bad, first)
	}
	return ticks, nil
}

// TestMemoryCheckSeesALostWrite holds the check of memory to find what a migration could lose: one write of a page, the page's mark, and a page that was
// written once.
func TestMemoryCheckSeesALostWrite(t *testing.T) {
	whole := func(ticks int) map[[2]int]uint32 {
		all := map[[2]int]uint32{}
		page := 0
		for tick := 1; tick <= ticks; tick++ {
			for range guestOptions.Rate {
				all[[2]int{page, 0}], all[[2]int{page, 8}] = uint32(tick), uint32(page) //nolint:gosec // small
				page = (page + 1) % guestOptions.Pages
			}
		}
		for p := guestOptions.Pages; p < guestOptions.Pages+guestOptions.Fill; p++ {
			all[[2]int{p, 0}] = uint32(area+p*pageSize) ^ fillMark //nolint:gosec // small
		}
		return all
	}
	look := func(all map[[2]int]uint32) (uint32, error) {
		return check(func(page, offset int) uint32 { return all[[2]int{page, offset}] })
	}
	for _, ticks := range []int{1, 7, 64, 65, 200, 1001} {
		got, err := look(whole(ticks))
		if err != nil || got != uint32(ticks) { //nolint:gosec // small
			t.Errorf("after %d ticks: %d, %v", ticks, got, err)
		}
	}
	for name, spoil := range map[string]func(all map[[2]int]uint32){
		"a write lost":                     func(all map[[2]int]uint32) { all[[2]int{8, 0}] -= uint32(guestOptions.Pages / guestOptions.Rate) }, //nolint:gosec // small
		"a page of zeros":                  func(all map[[2]int]uint32) { all[[2]int{12, 0}] = 0 },
		"another page's mark":              func(all map[[2]int]uint32) { all[[2]int{13, 8}] = 14 },
		"a page that was written once":     func(all map[[2]int]uint32) { all[[2]int{guestOptions.Pages + 77, 0}] ^= 1 },
		"the last page that was, of zeros": func(all map[[2]int]uint32) { all[[2]int{guestOptions.Pages + guestOptions.Fill - 1, 0}] = 0 },
	} {
		all := whole(200)
		spoil(all)
		if ticks, err := look(all); err == nil {
			t.Errorf("%s: the memory of %d ticks is taken for whole", name, ticks)
		}
	}
}
