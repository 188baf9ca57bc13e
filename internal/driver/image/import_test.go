package image_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/image"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The story: disks come from VMware, VirtualBox and Hyper-V, as files and by download. Each becomes an image with the same bytes.
func TestImportsFromOthers(t *testing.T) {
	f := folder(t)
	from, content := t.TempDir(), noise(1<<20)
	raw := filepath.Join(from, "disk.raw")
	try(t, os.WriteFile(raw, content, 0o600)) // only root may read it: the agent opens it, not qemu-img
	server := httptest.NewServer(http.FileServer(http.Dir(from)))
	defer server.Close()
	for _, c := range []struct{ format, options string }{
		{"raw", ""}, {"qcow2", ""}, {"vmdk", "subformat=monolithicSparse"}, {"vmdk", "subformat=streamOptimized"}, {"vdi", ""}, {"vhdx", ""}, {"vpc", "force_size=on"},
	} {
		name := strings.ReplaceAll(c.format+"-"+c.options, "=", "-")
		source := filepath.Join(from, name)
		args := []string{"convert", "-f", "raw", "-O", c.format, raw, source}
		if c.options != "" {
			args = append(args, "-o", c.options)
		}
		tool(t, args...)
		try(t, os.Chmod(source, 0o600))
		said := inventory.DiskFormat("")
		if c.format == "raw" {
			said = inventory.Raw
		}
		for to, location := range map[inventory.DiskFormat]string{inventory.Qcow2: source, inventory.Raw: server.URL + "/" + name} {
			text, err := os.ReadFile(source)
			try(t, err)
			path := filepath.Join(f.Root, name+"."+string(to))
			doing := map[string]bool{}
			err = f.Import(within(t), path, to, image.Source{Location: location, Format: said, SHA256: sumOf(text)}, func(_, _ inventory.Bytes, what string) { doing[what] = true })
			if err != nil {
				t.Errorf("%s to %s: %v", name, to, err)
				continue
			}
			if got := bytesOf(t, path, string(to)); !bytes.Equal(got, content) {
				t.Errorf("%s to %s: %d bytes, not those of the disk", name, to, len(got))
			}
			if !doing["copying"] && !doing["downloading"] || doing["converting"] != (string(to) != c.format) {
				t.Errorf("%s to %s: its progress spoke of %v", name, to, doing)
			}
		}
	}
	tidy(t, f)
}

// A raw image of an odd length would leave its last bytes out of QEMU's reach.
func TestRawImagesEndWithASector(t *testing.T) {
	f := folder(t)
	source, path := filepath.Join(t.TempDir(), "odd"), filepath.Join(f.Root, "odd.raw")
	try(t, os.WriteFile(source, noise(1000), 0o600))
	try(t, f.Import(within(t), path, inventory.Raw, image.Source{Location: source, Format: inventory.Raw}, nil))
	if got, err := os.ReadFile(path); err != nil || len(got) != 1024 || !bytes.Equal(got[:1000], noise(1000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The story: somebody hands in an image that is a trap. It names the host's password file, or another secret, as its backing file, its data
// file or an extent; imported, it would show that file to a guest. Each is refused, and nothing is left.
func TestTraps(t *testing.T) {
	f, from := folder(t), t.TempDir()
	in := func(name string) string { return filepath.Join(from, name) }
	write := func(name string, text []byte) string {
		try(t, os.WriteFile(in(name), text, 0o644))
		return in(name)
	}
	secret := write("secret", bytes.Repeat([]byte("root:secret\n"), 512))
	tool(t, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", in("backing"))
	tool(t, "create", "-q", "-u", "-f", "qcow2", "-b", secret, "-F", "raw", in("local"), "1M")
	tool(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+in("data")+",data_file_raw=on", in("external"), "1M")
	// The same with the feature bit taken away: the extension with the name still stands there.
	external, err := os.ReadFile(in("external"))
	try(t, err)
	noBit := bytes.Clone(external)
	binary.BigEndian.PutUint64(noBit[72:], 0)
	write("no-bit", noBit)
	tool(t, "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", in("flat.vmdk"), "1M")
	tool(t, "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", in("split.vmdk"), "1M")
	descriptor := write("shadow.vmdk", []byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/shadow\" 0\n"))
	// A sparse header whose capacity is 0 makes QEMU read the description within it as a description file.
	inside := make([]byte, 4096)
	copy(inside, "KDMV\x01\x00\x00\x00")
	binary.LittleEndian.PutUint64(inside[28:], 1)
	binary.LittleEndian.PutUint64(inside[36:], 2)
	text, err := os.ReadFile(descriptor)
	try(t, err)
	copy(inside[512:], text)
	write("inside.vmdk", inside)
	tool(t, "create", "-q", "-f", "vmdk", in("parent.vmdk"), "1M")
	tool(t, "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", in("parent.vmdk"), in("child.vmdk"))
	write("stretched.vmdk", func() []byte {
		b, err := os.ReadFile(in("parent.vmdk"))
		try(t, err)
		return bytes.Replace(b, []byte(`createType="monolithicSparse"`), []byte(`createType="vmfs"            `), 1)
	}())
	encrypted := "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
	tool(t, "create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2", "-o", encrypted, in("encrypted"), "1M")
	tool(t, "create", "-q", "-f", "qcow2", in("good"), "1M")
	good, err := os.ReadFile(in("good"))
	try(t, err)
	write("cut", good[:100])
	huge := bytes.Clone(good)
	binary.BigEndian.PutUint64(huge[24:], uint64(inventory.DiskMax)*2)
	write("huge", huge)
	future := bytes.Clone(good)
	binary.BigEndian.PutUint64(future[72:], 1<<40)
	write("future", future)

	for name, says := range map[string]string{
		"backing": "/etc/shadow", "local": "backing file", "external": "another file", "no-bit": "another file",
		"flat.vmdk": "other files", "split.vmdk": "other files", "shadow.vmdk": "other files", "inside.vmdk": "other files",
		"child.vmdk": "the difference", "stretched.vmdk": "other files", "encrypted": "encrypted",
		"cut": "cut off", "huge": "", "future": "does not know",
		"secret": "say --source-format raw",
	} {
		path := filepath.Join(f.Root, name)
		err := f.Import(within(t), path, inventory.Qcow2, image.Source{Location: in(name)}, nil)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (kind %v)", name, err, fault.KindOf(err))
		}
	}
	// A qcow2 image that is called raw would be handed to a guest with its header, and come back as what the guest makes of it.
	if err := f.Import(within(t), filepath.Join(f.Root, "x"), inventory.Raw, image.Source{Location: in("backing"), Format: inventory.Raw}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("qcow2 called raw: %v", err)
	}
	if files, err := os.ReadDir(f.Root); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestSourcesThatAreNotThere(t *testing.T) {
	f := folder(t)
	from := t.TempDir()
	try(t, os.WriteFile(filepath.Join(from, "disk"), noise(4096), 0o600))
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(from)))
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "9999")
		_, _ = w.Write([]byte("only this"))
	})
	mux.HandleFunc("/chunks", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("no length is said"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	mux.HandleFunc("/giant", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(int64(1)<<60))
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	server := httptest.NewServer(mux)
	defer server.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	for name, c := range map[string]struct {
		source image.Source
		kind   fault.Kind
		says   string
	}{
		"no file":            {image.Source{Location: filepath.Join(from, "nowhere")}, fault.NotFound, "no such file"},
		"a folder":           {image.Source{Location: from}, fault.Invalid, "no regular file"},
		"a device":           {image.Source{Location: "/dev/zero"}, fault.Invalid, "no regular file"},
		"a relative path":    {image.Source{Location: "disk"}, fault.Invalid, "not absolute"},
		"another protocol":   {image.Source{Location: "ftp://example.org/disk"}, fault.Invalid, "only http"},
		"no page":            {image.Source{Location: server.URL + "/nowhere"}, fault.NotFound, "404"},
		"a broken server":    {image.Source{Location: server.URL + "/broken"}, fault.Unavailable, "502"},
		"half a file":        {image.Source{Location: server.URL + "/short"}, fault.Unavailable, "stopped after"},
		"half, no length":    {image.Source{Location: server.URL + "/chunks"}, fault.Unavailable, "stopped after"},
		"too much":           {image.Source{Location: server.URL + "/giant"}, fault.NoResources, "room for"},
		"round and round":    {image.Source{Location: server.URL + "/round"}, fault.Unavailable, "too often"},
		"a stranger's proof": {image.Source{Location: secure.URL + "/disk"}, fault.Unavailable, "certificate"},
		"nobody":             {image.Source{Location: "http://127.0.0.1:1/disk"}, fault.Unavailable, "refused"},
		"another sum":        {image.Source{Location: server.URL + "/disk", Format: inventory.Raw, SHA256: sumOf(nil)}, fault.Invalid, "SHA-256"},
		"no sum":             {image.Source{Location: server.URL + "/disk", SHA256: "abc"}, fault.Invalid, "64 hexadecimal"},
		"no format":          {image.Source{Location: server.URL + "/disk", Format: "qed"}, fault.Invalid, "source format"},
	} {
		err := f.Import(within(t), filepath.Join(f.Root, "disk"), inventory.Raw, c.source, nil)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (kind %v)", name, err, fault.KindOf(err))
		}
	}
	if files, err := os.ReadDir(f.Root); err != nil || len(files) > 0 {
		t.Errorf("left: %v, %v", files, err)
	}
}

// The story: somebody changes their mind in the middle of a download, and another time in the middle of a conversion.
func TestCanceledImport(t *testing.T) {
	f := folder(t)
	disk := noise(8 << 20)
	path := filepath.Join(f.Root, "disk.qcow2")
	for _, at := range []string{"downloading", "converting"} {
		ctx, cancel := context.WithCancel(within(t))
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(disk)))
			if at == "converting" {
				_, _ = w.Write(disk)
				return
			}
			_, _ = w.Write(disk[:4<<20])
			w.(http.Flusher).Flush()
			<-r.Context().Done() // nothing more comes until the client is gone
		}))
		err := f.Import(ctx, path, inventory.Qcow2, image.Source{Location: server.URL, Format: inventory.Raw}, func(_, _ inventory.Bytes, doing string) {
			if doing == at {
				cancel()
			}
		})
		cancel()
		server.Close()
		if !fault.Is(err, fault.Canceled) {
			t.Errorf("%s: %v", at, err)
		}
		if files, err := os.ReadDir(f.Root); err != nil || len(files) > 0 {
			t.Errorf("%s: left: %v, %v", at, files, err)
		}
	}
}
