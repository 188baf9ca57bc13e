package tiny

import (
	_ "embed"
	"encoding/binary"
)

//go:embed writer.bin
var writerSector []byte

// WriterSize is the length in bytes of the disk that Writer returns.
const WriterSize = 1 << 20

// Writer returns the disk of the writing guest, as a raw image: a machine with a BIOS that starts from it writes a block of 4 KiB to it with every tick of the
// BIOS clock, 18.2 times a second, and prints a line on COM1 (see ParseWriter) when the disk has taken it. Each block carries a number (see
// ParseBlock) that is one more than the last one's; after a restart the guest goes on behind the highest number on the disk. So numbers show a
// lost write, and a second copy that writes. It needs 1 MiB of memory, and more for the firmware.
func Writer() []byte {
	disk := make([]byte, WriterSize)
	copy(disk, writerSector)
	return disk
}

// Block is what the writing guest wrote in one of its blocks.
type Block struct {
	Number uint32 // from 1; wraps round after years
	Boots  uint32 // how often the guest has been started
}

// ParseBlock reads a block of the writing guest; false for any other content.
func ParseBlock(block []byte) (Block, bool) {
	if len(block) < 20 || string(block[:8]) != "GWWRITER" {
		return Block{}, false
	}
	return Block{Number: binary.LittleEndian.Uint32(block[8:]), Boots: binary.LittleEndian.Uint32(block[16:])}, true
}

// ParseWriter reads a line "W<8 hex>" of the writing guest, without its line end, and returns the number of the block that the disk has
// taken.
func ParseWriter(line string) (number uint32, ok bool) {
	if len(line) != 9 || line[0] != 'W' {
		return 0, false
	}
	return hex(line[1:])
}
