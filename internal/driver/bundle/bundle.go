// Package bundle writes a support bundle: one tar.gz with what somebody needs to understand a host from afar, without its secrets.
//
// Each item is collected on its own, within its time and size; one that fails is a line in the index and no reason to stop, since
// a bundle is made when things are broken. Everything passes Redact before it is written. The package does not know what is worth
// collecting: the command that makes the bundle says so.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of a bundle.
const (
	// ItemTime is how long one item may take to collect.
	ItemTime = 15 * time.Second
	// ItemMax is how much of one item is kept, in bytes: its end, since logs matter most there.
	ItemMax = 8 << 20
	// TotalMax is how much all items may have, in bytes; further ones are left out.
	TotalMax = 128 << 20
)

// Item is something to collect.
type Item struct {
	// Name is its file in the archive, with slashes.
	Name string
	// Collect writes it. What it wrote before an error is kept.
	Collect func(ctx context.Context, w io.Writer) error
}

// Entry is an item's line in the index.
type Entry struct {
	Name     string `json:"name"`
	Bytes    int    `json:"bytes"`              // in the archive
	Cut      int64  `json:"cut,omitempty"`      // bytes that were left out at its beginning
	Redacted int    `json:"redacted,omitempty"` // secrets that were taken out
	Error    string `json:"error,omitempty"`    // why it is not there, or not whole
	Millis   int64  `json:"millis"`             // how long it took
}

// Manifest is the first file of an archive, manifest.json.
type Manifest struct {
	Made    time.Time `json:"made"`
	Version string    `json:"version"` // of Godwit
	Host    string    `json:"host"`
	Items   []Entry   `json:"items"`
}

// ManifestName is the name of the first file of an archive.
const ManifestName = "manifest.json"

// Write collects the items and writes the archive, all below the folder dir. It returns the manifest with what failed; its error is
// only that the archive could not be written, or that ctx ended.
func Write(ctx context.Context, out io.Writer, dir string, head Manifest, secrets *Redactor, items []Item) (Manifest, error) {
	texts := make([][]byte, 0, len(items))
	total := 0
	for _, item := range items {
		if err := ctx.Err(); err != nil {
			return head, err
		}
		entry := Entry{Name: item.Name}
		var text []byte
		if total >= TotalMax {
			entry.Error = fmt.Sprintf("left out: the bundle has %v already", inventory.Bytes(TotalMax))
		} else {
			text, entry = collect(ctx, item, secrets)
		}
		total += len(text)
		head.Items = append(head.Items, entry)
		texts = append(texts, text)
	}
	return head, pack(out, dir, head, secrets, texts)
}

// collect gathers one item within its bounds. A collector that does not heed its context is left behind.
func collect(ctx context.Context, item Item, secrets *Redactor) ([]byte, Entry) {
	began := time.Now()
	within, done := context.WithTimeout(ctx, ItemTime)
	defer done()
	kept := new(tail)
	failed := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil { // a bundle must come about on a broken machine too
				failed <- fmt.Errorf("panic: %v", p)
			}
		}()
		failed <- item.Collect(within, kept)
	}()
	var err error
	select {
	case err = <-failed:
	case <-within.Done():
		err = within.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it took longer than %v", ItemTime)
	}
	text, cut := kept.close()
	text, redacted := secrets.Redact(text)
	entry := Entry{Name: item.Name, Bytes: len(text), Cut: cut, Redacted: redacted, Millis: time.Since(began).Milliseconds()}
	if err != nil {
		clean, _ := secrets.Redact([]byte(err.Error()))
		entry.Error = string(clean)
	}
	return text, entry
}

// pack writes the archive: the manifest, then the items that have something.
func pack(out io.Writer, dir string, head Manifest, secrets *Redactor, texts [][]byte) error {
	zip := gzip.NewWriter(out)
	archive := tar.NewWriter(zip)
	index, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return fault.New(fault.Internal, "bundle: %w", err)
	}
	index, _ = secrets.Redact(index)
	add := func(name string, text []byte) {
		if err != nil {
			return
		}
		err = archive.WriteHeader(&tar.Header{
			Name: dir + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: head.Made, Format: tar.FormatPAX,
		})
		if err == nil {
			_, err = io.Copy(archive, bytes.NewReader(text))
		}
	}
	add(ManifestName, append(index, '\n'))
	for i, e := range head.Items {
		if len(texts[i]) > 0 {
			add(e.Name, texts[i])
		}
	}
	if err = errors.Join(err, archive.Close(), zip.Close()); err != nil {
		return fault.New(fault.NoResources, "bundle: %w", err)
	}
	return nil
}
