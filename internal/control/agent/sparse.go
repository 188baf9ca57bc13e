package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
)

// A file is sent as pieces: 8 bytes of offset and 4 of length (big endian), then that many bytes. Holes are left out. The last piece has
// the offset endPiece and no bytes; 8 bytes with the file's size and the SHA-256 of all that came before it follow. The answer is
// one byte, 1 when the file is on the disk there with that checksum; a receiver that cannot says nothing and closes.
const (
	pieceMax = 1 << 20
	endPiece = math.MaxUint64
)

// errChecksum is a file that did not arrive as it was sent.
var errChecksum = fault.New(fault.Internal, "the checksum of the received file is wrong: try again")

// holeless walks the parts of a file that hold data (lseek(2), SEEK_DATA); a file system that knows no holes has one part.
func holeless(file *os.File, size int64, visit func(from, to int64) error) error {
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole to the end
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			return visit(at, size)
		}
		if err != nil {
			return err
		}
		to, err := unix.Seek(int(file.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := visit(from, to); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// sendPieces writes the file; sent is called with the number of data bytes after each piece.
func sendPieces(out io.Writer, file *os.File, sent func(int)) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	sum := sha256.New()
	all := io.MultiWriter(out, sum)
	data := make([]byte, pieceMax)
	if err := holeless(file, info.Size(), func(from, to int64) error {
		for from < to {
			n, err := file.ReadAt(data[:min(int64(pieceMax), to-from)], from)
			if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
				return err
			}
			if err := writePiece(all, uint64(from), data[:n]); err != nil { //nolint:gosec // never negative
				return err
			}
			from += int64(n)
			sent(n)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := writePiece(all, endPiece, nil); err != nil {
		return err
	}
	tail := binary.BigEndian.AppendUint64(nil, uint64(info.Size())) //nolint:gosec // never negative
	sum.Write(tail)
	_, err = out.Write(sum.Sum(tail))
	return err
}

func writePiece(out io.Writer, at uint64, data []byte) error {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, at), uint32(len(data))) //nolint:gosec // at most pieceMax
	if _, err := out.Write(head); err != nil {
		return err
	}
	_, err := out.Write(data)
	return err
}

// receivePieces writes what comes into the empty file. It returns errChecksum for a file that is not what was sent.
func receivePieces(in io.Reader, file *os.File) error {
	sum := sha256.New()
	all := io.TeeReader(in, sum)
	data := make([]byte, pieceMax)
	var head [12]byte
	for {
		if _, err := io.ReadFull(all, head[:]); err != nil {
			return err
		}
		at, n := binary.BigEndian.Uint64(head[:8]), binary.BigEndian.Uint32(head[8:])
		if at == endPiece {
			return endPieces(in, file, sum)
		}
		if n > pieceMax || at > math.MaxInt64-pieceMax {
			return fault.New(fault.Invalid, "a piece of %d bytes at %d is none", n, at)
		}
		if _, err := io.ReadFull(all, data[:n]); err != nil {
			return err
		}
		if _, err := file.WriteAt(data[:n], int64(at)); err != nil { //nolint:gosec // bounded above
			return err
		}
	}
}

func endPieces(in io.Reader, file *os.File, sum hash.Hash) error {
	var tail [8 + sha256.Size]byte
	if _, err := io.ReadFull(in, tail[:]); err != nil {
		return err
	}
	sum.Write(tail[:8])
	if string(sum.Sum(nil)) != string(tail[8:]) {
		return errChecksum
	}
	size := binary.BigEndian.Uint64(tail[:8])
	if size > math.MaxInt64 {
		return fault.New(fault.Invalid, "a size of %d bytes is none", size)
	}
	return file.Truncate(int64(size)) //nolint:gosec // bounded above
}

// copyPieces copies one file into another on this host, through the same checks.
func copyPieces(to, from *os.File, sent func(int)) error {
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { // ends with the pipe
		err := sendPieces(w, from, sent)
		_ = w.CloseWithError(err) // never fails
		ended <- err
	}()
	err := receivePieces(r, to)
	_ = r.CloseWithError(err) // never fails; it ends the sender too
	if sender := <-ended; err == nil {
		err = sender
	}
	return err
}

// taken returns how many bytes a file takes on its disk, 0 for one that cannot be looked at.
func taken(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// sumOf returns the SHA-256 of a file's content.
func sumOf(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}
