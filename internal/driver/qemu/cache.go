package qemu

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
)

// cache keeps one result in one file, together with the key that it was found under. A key that differs, and any damage, mean that it is not there.
type cache[T any] struct {
	dir  string // "": keep nothing
	name string
}

// entry is the file's content.
type entry[T any] struct {
	Key   string    `json:"key"`
	Found time.Time `json:"found"`
	Value T         `json:"value"`
}

func (c cache[T]) path() string { return filepath.Join(c.dir, c.name+".json") }

// load returns the value kept under the key.
func (c cache[T]) load(key string) (value T, ok bool) {
	if c.dir == "" {
		return value, false
	}
	text, err := os.ReadFile(c.path())
	if err != nil {
		return value, false
	}
	var e entry[T]
	if json.Unmarshal(text, &e) != nil || e.Key != key {
		return value, false
	}
	return e.Value, true
}

// save keeps the value under the key.
func (c cache[T]) save(key string, value T) error {
	if c.dir == "" {
		return nil
	}
	text, err := json.MarshalIndent(entry[T]{Key: key, Found: time.Now().UTC(), Value: value}, "", "  ")
	if err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return fault.New(fault.Internal, "%w", err)
	}
	return writeFile(c.path(), append(text, '\n'), 0o644)
}

// digest returns a short name for s.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// buildOf returns what tells one build of a binary from another: size, time of change and the build id of the linker,
// or a hash of the file when it has none.
func buildOf(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fault.New(fault.NotFound, "%w: run make setup, or install qemu-system-x86", err)
	case err != nil:
		return "", fault.New(fault.Internal, "%w", err)
	case !info.Mode().IsRegular():
		return "", fault.New(fault.Invalid, "%s is no program", path)
	}
	id, err := buildID(path)
	if err != nil {
		return "", fault.New(fault.Internal, "%w", err)
	}
	return fmt.Sprintf("%s-%x-%x", id, info.Size(), info.ModTime().Unix()), nil
}

// buildID returns the GNU build id of an ELF file, a hash of any other file.
func buildID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // read only
	if e, err := elf.NewFile(f); err == nil {
		if section := e.Section(".note.gnu.build-id"); section != nil {
			// An ELF note: three words, the name "GNU\0", then the id (elf(5)).
			if note, err := section.Data(); err == nil && len(note) > 16 && bytes.Equal(note[12:16], []byte("GNU\x00")) {
				return hex.EncodeToString(note[16:]), nil
			}
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:20]), nil
}
