package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// FuzzHeader wants that no header, whoever wrote it, makes its reader do more than say no.
func FuzzHeader(f *testing.F) {
	dir := f.TempDir()
	for i, args := range [][]string{
		{"-f", "qcow2"}, {"-f", "qcow2", "-o", "compat=0.10"}, {"-f", "qcow2", "-u", "-F", "raw", "-b", "base"}, {"-f", "vmdk"}, {"-f", "vpc"}, {"-f", "vhdx"},
	} {
		path := filepath.Join(dir, string(rune('a'+i)))
		if out, err := exec.CommandContext(f.Context(), DefaultTool, append(append([]string{"create", "-q"}, args...), path, "1M")...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text[:min(len(text), 4096)])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := readHeader(bytes.NewReader(text), int64(len(text)))
		if err == nil && (len(h.backing) > qcow2BackingMax || h.virtual < 0) {
			t.Errorf("taken: %+v", h)
		}
	})
}
