package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Source is where an imported image comes from.
type Source struct {
	Location string               // absolute path on this host, or an http or https URL
	Format   inventory.DiskFormat // empty: what its header says; raw has none and has to be said
	SHA256   string               // in hex, of the source as it is; empty: not checked
}

// Remote reports whether the source is a URL.
func (s Source) Remote() bool {
	return strings.HasPrefix(s.Location, "http://") || strings.HasPrefix(s.Location, "https://")
}

var sha256RE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Problems lists what is wrong with the source before anything is opened.
func (s Source) Problems() []string {
	var bad []string
	switch u, err := url.Parse(s.Location); {
	case s.Location == "":
		bad = append(bad, "no source is given: name a file or a URL")
	case s.Remote() && (err != nil || u.Host == ""):
		bad = append(bad, "the URL "+s.Location+" is malformed: write it like https://example.org/debian-12.qcow2")
	case !s.Remote() && strings.Contains(s.Location, "://"):
		bad = append(bad, "only http and https URLs can be imported: download "+s.Location+" and import the file")
	case !s.Remote() && !filepath.IsAbs(s.Location):
		bad = append(bad, "the path "+s.Location+" is not absolute, and the agent does not know your folder: write it whole")
	}
	if s.SHA256 != "" && !sha256RE.MatchString(s.SHA256) {
		bad = append(bad, "the SHA-256 sum is not 64 hexadecimal digits in lower case")
	}
	switch s.Format {
	case "", inventory.Raw, inventory.Qcow2, VMDK, VDI, VHDX, VPC:
	default:
		bad = append(bad, "source format "+string(s.Format)+" cannot be imported: take raw, qcow2, vmdk, vdi, vhdx or vpc, or convert it first")
	}
	return bad
}

// keptFree is how much of the datastore an import leaves free: VMs need room to write.
const keptFree = 64 * inventory.MiB

// Import brings in an image from a file of this host or from a URL. It is copied beside its place first, so that nobody can change it once it has
// been looked at, then checked, then converted unless it has the format already. Raw must be said: that a file has no known header
// proves nothing. A sum that differs, a header that names other files and an image that does not fit are refused, and nothing is left.
//
// Errors: fault.Exists; fault.Invalid for a source that is refused; fault.NotFound and fault.Unavailable for one that is not there or stops
// to send; fault.NoResources when it does not fit.
func (f Folder) Import(ctx context.Context, path string, format inventory.DiskFormat, source Source, progress Progress) error {
	return fault.Wrap("import image", path, f.importFrom(ctx, path, format, source, progress))
}

func (f Folder) importFrom(ctx context.Context, path string, format inventory.DiskFormat, source Source, progress Progress) error {
	if format != inventory.Raw && format != inventory.Qcow2 {
		return fault.New(fault.Invalid, "format %q is unknown: take raw or qcow2", string(format))
	}
	if err := fault.Refuse(fault.Invalid, source.Problems()); err != nil {
		return err
	}
	p, err := f.begin(path)
	if err != nil {
		return err
	}
	defer p.discard()
	if err := f.fetch(ctx, p, source, progress); err != nil {
		return err
	}
	found, virtual, err := p.inspect(ctx, source)
	if err != nil {
		return err
	}
	if found == format {
		return p.publish(modeDisk)
	}
	q, err := f.begin(path)
	if err != nil {
		return err
	}
	defer q.discard()
	if err := q.handOver(); err != nil {
		return err
	}
	if err := f.convert(ctx, q, format, p.path, found, virtual, progress); err != nil {
		return err
	}
	return q.publish(modeDisk)
}

// fetch copies the source into the part and compares its sum.
func (f Folder) fetch(ctx context.Context, p *part, source Source, progress Progress) error {
	free, err := f.free()
	if err != nil {
		return err
	}
	room := max(0, free-keptFree)
	var from io.ReadCloser
	var size int64
	doing := "copying"
	if source.Remote() {
		doing = "downloading"
		from, size, err = download(ctx, source.Location)
	} else {
		from, size, err = openFile(source.Location)
	}
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // only read
	if inventory.Bytes(size) > room {
		return fault.New(fault.NoResources, "the source has %v and there is room for %v: free some space on the datastore", inventory.Bytes(size), room)
	}
	to, err := os.OpenFile(p.path, os.O_WRONLY, 0)
	if err != nil {
		return fileError(err)
	}
	sum := sha256.New()
	copied, err := transfer(ctx, io.MultiWriter(to, sum), io.LimitReader(from, int64(room)+1), func(done int64) {
		progress.tell(inventory.Bytes(done), inventory.Bytes(max(size, 0)), doing)
	})
	if err := errors.Join(err, to.Close()); err != nil {
		return fileError(err)
	}
	switch got := hex.EncodeToString(sum.Sum(nil)); {
	case inventory.Bytes(copied) > room:
		return fault.New(fault.NoResources, "the source has more than %v, for which there is room: free some space on the datastore", room)
	case size >= 0 && copied != size:
		return fault.New(fault.Unavailable, "the source ended after %d of %d bytes: try again", copied, size)
	case source.SHA256 != "" && got != source.SHA256:
		return fault.New(fault.Invalid, "its SHA-256 sum is %s and not %s: it is damaged, or not the file that was meant", got, source.SHA256)
	}
	return p.handOver()
}

// transferBlock is how much is copied between two looks at the context.
const transferBlock = 1 << 20

// transfer copies until the end, an error or ctx's end.
func transfer(ctx context.Context, to io.Writer, from io.Reader, tell func(done int64)) (int64, error) {
	var done int64
	block := make([]byte, transferBlock)
	for ctx.Err() == nil {
		n, err := from.Read(block) // not io.ReadFull, which hides the error of a body that was cut off
		if _, err := to.Write(block[:n]); err != nil {
			return done, err
		}
		done += int64(n)
		tell(done)
		switch {
		case errors.Is(err, io.EOF):
			return done, nil
		case err != nil && ctx.Err() == nil:
			return done, fault.New(fault.Unavailable, "the source stopped after %d bytes: %w", done, err)
		}
	}
	return done, fault.New(fault.Canceled, "%w", ctx.Err())
}

func openFile(path string) (io.ReadCloser, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, fault.Wrap("source", path, fileError(err))
	}
	if !info.Mode().IsRegular() { // a pipe would wait for ever, a device may have no end
		return nil, 0, fault.Wrap("source", path, fault.New(fault.Invalid, "it is no regular file"))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fault.Wrap("source", path, fileError(err))
	}
	return f, info.Size(), nil
}

// The bounds of a download. How long it takes as a whole is not bounded, only how long nothing may come.
const (
	answerMax    = 30 * time.Second
	silenceMax   = 30 * time.Second
	redirectsMax = 5
)

// download asks for a URL and returns its body, and its size or -1.
func download(ctx context.Context, location string) (io.ReadCloser, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	dialer := &net.Dialer{Timeout: answerMax}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSHandshakeTimeout: answerMax,
		ResponseHeaderTimeout: answerMax, DisableCompression: true, DisableKeepAlives: true,
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		if len(via) > redirectsMax {
			return errors.New("it is redirected too often")
		}
		if via[0].URL.Scheme == "https" && to.URL.Scheme != "https" {
			return errors.New("it is redirected from https to " + to.URL.Scheme + ", where anybody can change it")
		}
		return nil
	}}
	fail := func(err error) (io.ReadCloser, int64, error) {
		cancel(nil)
		return nil, 0, fault.Wrap("source", location, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return fail(fault.New(fault.Invalid, "%w", err))
	}
	req.Header.Set("User-Agent", "godwit")
	resp, err := client.Do(req) //nolint:bodyclose // the body that is returned closes it
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // it names the URL, as we do
		}
		return fail(fault.New(fault.Unavailable, "%w", err))
	}
	body := &body{ReadCloser: resp.Body, cancel: cancel, ctx: func() error { return context.Cause(ctx) }}
	body.silence = time.AfterFunc(silenceMax, func() { cancel(errSilent) })
	if resp.StatusCode != http.StatusOK {
		_ = body.Close() // nothing in it is wanted
		kind := fault.Unavailable
		if resp.StatusCode >= 400 && resp.StatusCode < 500 {
			kind = fault.NotFound
		}
		return fail(fault.New(kind, "the server answers %s", resp.Status))
	}
	return body, resp.ContentLength, nil
}

var errSilent = errors.New("nothing came for " + silenceMax.String())

// body is the body of a download that ends when nothing comes any more.
type body struct {
	io.ReadCloser

	silence *time.Timer
	cancel  context.CancelCauseFunc
	ctx     func() error // why the download was ended
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.silence.Reset(silenceMax)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = cmp.Or(b.ctx(), err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.silence.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// inspect looks at a part that was copied from elsewhere, and says what it is.
func (p *part) inspect(ctx context.Context, source Source) (inventory.DiskFormat, inventory.Bytes, error) {
	h, info, err := headerOf(p.path)
	if err != nil {
		return "", 0, err
	}
	switch {
	case info.Size() == 0:
		return "", 0, fault.New(fault.Invalid, "the source is empty")
	case source.Format != "" && h.format != source.Format:
		return "", 0, fault.New(fault.Invalid, "the source is a %s image, not %s: check it, or leave its format out", h.format, source.Format)
	case source.Format == "" && h.format == inventory.Raw:
		return "", 0, fault.New(fault.Invalid, "the source has the header of no format that is known: if its bytes are the disk's, say --source-format raw")
	case h.refused != "":
		return "", 0, fault.New(fault.Invalid, "%s", h.refused)
	case h.backing != "":
		return "", 0, fault.New(fault.Invalid, "it has the backing file %s: flatten it with qemu-img convert where it comes from", h.backing)
	}
	switch h.format {
	case inventory.Raw:
		// QEMU opens disks in whole sectors.
		if rest := info.Size() % 512; rest != 0 {
			if err := os.Truncate(p.path, info.Size()+512-rest); err != nil {
				return "", 0, fileError(err)
			}
		}
	case inventory.Qcow2, VMDK, VDI, VHDX, VPC:
	case "gzip", "xz", "zstd", "bzip2", "zip":
		return "", 0, fault.New(fault.Invalid, "the source is compressed with %s: unpack it first", h.format)
	default:
		return "", 0, fault.New(fault.Invalid, "the source is a %s image, which cannot be imported: convert it to qcow2 first", h.format)
	}
	seen, err := look(ctx, p.owned, p.path, h.format)
	if err != nil {
		return "", 0, err
	}
	virtual := inventory.Bytes(seen.VirtualSize)
	switch {
	case virtual <= 0:
		return "", 0, fault.New(fault.Invalid, "its size is 0")
	case virtual > inventory.DiskMax:
		return "", 0, fault.New(fault.Invalid, "its size of %v is too much: at most %v", virtual, inventory.DiskMax)
	}
	if h.format == inventory.Qcow2 { // it will be used as it is
		if _, err := (run{as: p.owned, size: virtual}).tool(ctx, "check", "-q", "-f", "qcow2", p.path); err != nil {
			return "", 0, fault.Wrap("", "qemu-img check", err)
		}
	}
	return h.format, virtual, nil
}
