package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// The story: whatever is written where into a file, the copy holds the same bytes and is as long, and holes stay holes.
func TestSparseFilesArriveAsTheyWere(t *testing.T) {
	dir := t.TempDir()
	number := 0
	rapid.Check(t, func(t *rapid.T) {
		number++
		from, to := open(t, dir, "from"), open(t, dir, "to")
		defer from.Close()
		defer to.Close()
		for range rapid.IntRange(0, 5).Draw(t, "writes") {
			at := rapid.Int64Range(0, 8<<20).Draw(t, "at")
			data := rapid.SliceOfN(rapid.Byte(), 1, 9000).Draw(t, "data")
			if _, err := from.WriteAt(data, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := from.Truncate(rapid.Int64Range(0, 9<<20).Draw(t, "size")); err != nil {
			t.Fatal(err)
		}
		sent := 0
		if err := copyPieces(to, from, func(n int) { sent += n }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, from), content(t, to)) {
			t.Fatal("the copy differs")
		}
		if was, is := taken(from.Name()), taken(to.Name()); is > was+64<<10 {
			t.Fatalf("the original takes %d bytes and the copy %d", was, is)
		}
	})
}

type fataler interface{ Fatal(args ...any) }

func open(t fataler, dir, name string) *os.File {
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func content(t fataler, file *os.File) []byte {
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The story: a bit that changes on the way, or an end that comes early, is never taken for the file.
func TestDamagedFilesAreNotTaken(t *testing.T) {
	dir := t.TempDir()
	from := open(t, dir, "from")
	defer from.Close()
	if _, err := from.WriteAt(bytes.Repeat([]byte("godwit"), 1000), 64<<10); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := sendPieces(&stream, from, func(int) {}); err != nil {
		t.Fatal(err)
	}
	whole := stream.Bytes()
	try := func(text []byte) error {
		to := open(t, dir, "to")
		defer to.Close()
		return receivePieces(bytes.NewReader(text), to)
	}
	if err := try(whole); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{20, len(whole) / 2, len(whole) - 1, len(whole) - 36} {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1
		if err := try(damaged); !errors.Is(err, errChecksum) {
			t.Errorf("byte %d of %d changed: %v", at, len(whole), err)
		}
	}
	for _, n := range []int{0, 5, 12, 100, len(whole) - 1} {
		if err := try(whole[:n]); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("only %d of %d bytes: %v", n, len(whole), err)
		}
	}
	huge := append([]byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0xff, 0xff, 0xff, 0xff)
	if err := try(huge); err == nil {
		t.Error("a piece of 4 GiB at the end of the world was taken")
	}
}
