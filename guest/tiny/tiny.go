// Package tiny holds Godwit's smallest guests: real-mode programs of a few hundred bytes that run as QEMU's -bios ROM and
// give their first sign of life within 300 ms. Heartbeat is for every test and trial that needs no network, Checked
// proves that a migration loses no write, Long proves that an accelerator really runs 64-bit code, and Idle does nothing. Writer is a disk, not a
// ROM: it writes numbered blocks to itself for ever.
//
// The programs are the .S files beside this one; their assembled payloads are kept in the repository, so that nobody needs an assembler to
// build Godwit, and a test compares the two. The package makes images and reads the lines the guests print; starting
// QEMU is the caller's business. All guests talk on COM1 and run on pc, q35 and microvm.
package tiny

import (
	_ "embed"
	"encoding/binary"
	"fmt"
)

//go:generate go run ./assemble

// ROMSize is the length in bytes of every ROM this package returns: one 64 KiB segment, what QEMU's -bios takes at least.
const ROMSize = 64 << 10

// PageSize is the size of an x86 page in bytes, the unit of Options.
const PageSize = 4096

// PagesMax bounds the pages a guest may touch (Options.Pages + Options.Fill): 2 GiB less the first 2 MiB, below the PCI hole of
// every machine type.
const PagesMax = (2<<30 - area) / PageSize

// RateMax bounds Options.Rate: 1 GiB/s, far more than any accelerator here can write.
const RateMax = 2621

// area is where the guests' pages start (AREA in rom.inc).
const area = 2 << 20

// Offsets of the fields that HEADER in rom.inc lays out.
const (
	offMagic = 4
	offPages = 12
	offFill  = 16
	offRate  = 20
	offEnd   = 24
)

var (
	//go:embed heartbeat.bin
	heartbeatPayload []byte
	//go:embed checked.bin
	checkedPayload []byte
	//go:embed long.bin
	longPayload []byte
	//go:embed idle.bin
	idlePayload []byte
)

// Options says how much memory a guest touches. The zero value is the guest's own default. A guest needs RAM for all of it, see Memory.
type Options struct {
	// Pages is the working set: pages at 2 MiB and up that the guest writes again and again. 0 means 1024 (4 MiB) for
	// Heartbeat and 144 for Checked; for Checked keep it below the TLB's few hundred entries, as writes through
	// entries that stay cached are the ones that get lost.
	Pages int
	// Fill is the number of pages behind the working set that are written once at start, so that a migration has
	// something to send. Checked also verifies them. 0 means none.
	Fill int
	// Rate is how many pages Heartbeat writes per tick of 10 ms; 256 is 100 MiB/s. 0 means none. Checked ignores it and writes as
	// fast as it can.
	Rate int
}

// Memory returns the RAM in bytes that a guest with these options needs at least.
func (o Options) Memory() int64 {
	return area + int64(max(o.Pages, 1024)+o.Fill)*PageSize
}

// Heartbeat returns the ROM of the heartbeat guest: it prints a line (see ParseHeartbeat) at start and then every 100 ms, sleeps
// in between, and writes memory as o says. A digit sent to COM1 changes the rate while it runs: 0 stops
// writing, n from 1 to 9 sets 2^(n-1) pages per tick.
// It panics if an option is negative or beyond its bound, as only a bug can do that.
func Heartbeat(o Options) []byte { return rom(heartbeatPayload, o) }

// Checked returns the ROM of the checked guest: it counts in all pages of the working set in lock-step, as fast as it can, and every
// 50 ms prints how many pages differ from the count in its register (see ParseCheck). Registers travel with the
// device state and are exact, so after a migration a lost write shows for ever as a bad page. It keeps one vCPU busy.
//
// What gets lost are writes to a page that was sent while the guest ran and is not seen to be dirty again. So the migration must take its
// time: by itself it would be over after the first round, as 144 pages meet any downtime limit. Migrate with max-bandwidth
// 4 MiB/s, which spreads a round over more than one of QEMU's 100 ms slots, and downtime-limit 1 ms; raise both when query-migrate's
// dirty-sync-count reaches 4. A QEMU that loses writes ends earlier, as it sees nothing dirty. Keep Fill low then.
// It panics if an option is negative or beyond its bound, as only a bug can do that.
func Checked(o Options) []byte { return rom(checkedPayload, o) }

// Long returns the ROM of the 64-bit probe: it prints "B" at once, "R" after 20 million turns of a loop in real mode, and
// LongProof after 50 million more in long mode. Under TCG the last takes about 0.6 s on an idle 2020s core. A KVM that does not
// print it within 2 s runs no 64-bit guest, whatever else it claims.
func Long() []byte { return rom(longPayload, Options{}) }

// LongProof is the byte with which the ROM of Long says that 64-bit code ran.
const LongProof = 'L'

// Idle returns the ROM of the idle guest: it prints IdleLine on COM1 and then halts for ever, with interrupts off. Its QEMU takes no
// processor time, so that what is measured beside it is not its own.
func Idle() []byte { return rom(idlePayload, Options{}) }

// IdleLine is the only line that the ROM of Idle prints, without its end.
const IdleLine = "I"

// rom expands a payload to a whole image: the payload at its start, the jump to it at the reset vector, the options in its header.
func rom(payload []byte, o Options) []byte {
	if string(payload[offMagic:offMagic+4]) != "GDWT" || len(payload) < offEnd {
		panic("tiny: payload without header; run go generate ./guest/tiny")
	}
	if o.Pages < 0 || o.Fill < 0 || o.Pages > PagesMax || o.Fill > PagesMax-max(o.Pages, 1024) {
		panic(fmt.Sprintf("tiny: %d pages and %d filled pages are not between 0 and %d together", o.Pages, o.Fill, PagesMax))
	}
	if o.Rate < 0 || o.Rate > RateMax {
		panic(fmt.Sprintf("tiny: rate of %d pages per tick is not between 0 and %d", o.Rate, RateMax))
	}
	image := make([]byte, ROMSize)
	copy(image, payload)
	if o.Pages > 0 {
		put(image[offPages:], o.Pages)
	}
	put(image[offFill:], o.Fill)
	put(image[offRate:], o.Rate)
	copy(image[ROMSize-16:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // ljmp $0xf000, $0
	return image
}

func put(at []byte, v int) {
	binary.LittleEndian.PutUint32(at, uint32(v))
}
