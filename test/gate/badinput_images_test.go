package gate

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The story: people make mistakes with images and with what they want a guest to be told. The answers are in testdata/bad-input-images.txt.
func TestBadInputImages(t *testing.T) {
	t.Parallel()
	m := makeMistakes(t)
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	private := "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"
	for name, text := range map[string]string{
		"disk.raw": strings.Repeat("bytes\n", 1024), "id": private, "id.pub": publicKey + "\n", "prose": "hello\n", "none": "# no key\n",
		"user.yaml": "#cloud-config\na: [\n", "user.txt": "do this\n", "net.yaml": "version: 1\n", "book": "#!" + strings.Repeat("x", 20<<10), "nothing": "",
	} {
		if err := os.WriteFile(filepath.Join(m.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", filepath.Join(m.Dir, "trap.qcow2")},
		{"-f", "vmdk", "-o", "subformat=monolithicFlat", filepath.Join(m.Dir, "flat.vmdk"), "1M"},
	} {
		if out, err := exec.CommandContext(step(t), "qemu-img", append([]string{"create", "-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "other", "base.raw"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"image create base.qcow2 16M", "image clone base.qcow2 thin.qcow2"} {
		if _, err := m.Hosts[0].Godwit(step(t), words(command)...); err != nil {
			t.Fatal(err)
		}
	}
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes with images and seeds: $ the command, its exit code, its standard error. Made by -rewrite.\n")
	in := func(command string) []string { return words(strings.ReplaceAll(command, "DIR", m.Dir)) }
	for _, c := range []mistake{
		{"an image that is not there", 1, in("image info nowhere.qcow2"), 3},
		{"images of a datastore that nobody has", 1, in("image ls fast"), 3},
		{"an image outside the datastore", 1, in("image create ../x.qcow2 1G"), 2},
		{"a hidden image", 1, in("image create .x.qcow2 1G"), 2},
		{"an image in no folder", 1, in("image create no/x.qcow2 1G"), 3},
		{"an image of no size", 1, in("image create x.qcow2 0"), 2},
		{"an image of a size that is none", 1, in("image create x.qcow2 much"), 2},
		{"an image without size", 1, in("image create x.qcow2"), 2},
		{"an image that is too large", 1, in("image create x.qcow2 99T"), 2},
		{"an image in an unknown format", 1, in("image create x.vmdk 1G --format vmdk"), 2},
		{"an image that is there", 1, in("image create base.qcow2 1G"), 4},
		{"an image on a full datastore", 3, in("image create x.qcow2@full 1G"), 5},
		{"importing a file that is not there", 1, in("image import DIR/nowhere x.qcow2"), 3},
		{"importing a file without a header", 1, in("image import DIR/disk.raw x.qcow2"), 2},
		{"importing it as what it is not", 1, in("image import DIR/disk.raw x.qcow2 --source-format vmdk"), 2},
		{"importing with another sum", 1, in("image import DIR/disk.raw x.qcow2 --source-format raw --sha256 " + sum(nil)), 2},
		{"importing with a sum that is none", 1, in("image import DIR/disk.raw x.qcow2 --sha256 abc"), 2},
		{"importing an image with a backing file", 1, in("image import DIR/trap.qcow2 x.qcow2"), 2},
		{"importing an image that describes others", 1, in("image import DIR/flat.vmdk x.qcow2"), 2},
		{"importing over an image", 1, in("image import DIR/disk.raw base.qcow2 --source-format raw"), 4},
		{"importing from an unknown protocol", 1, in("image import ftp://example.org/x x.qcow2"), 2},
		{"importing a page that is not there", 1, words("image import " + server.URL + "/x x.qcow2"), 3},
		{"importing from nobody", 1, in("image import http://127.0.0.1:1/x x.qcow2"), 6},
		{"importing to a full datastore", 3, in("image import DIR/disk.raw x.raw@full --source-format raw --format raw"), 5},
		{"a clone of nothing", 1, in("image clone nowhere.qcow2 x.qcow2"), 3},
		{"a clone of a text", 1, in("image clone note.txt x.qcow2"), 2},
		{"a thin clone that is raw", 1, in("image clone base.qcow2 x.raw --format raw"), 2},
		{"a thin clone on another datastore", 3, in("image clone base.raw@shared x.qcow2@full"), 2},
		{"a thin clone of a VM's disk", 1, in("image clone rests-disk0.qcow2 x.qcow2"), 4},
		{"a full clone of a running VM's disk", 1, in("image clone runs-disk0.qcow2 x.qcow2 --full"), 4},
		{"shrinking an image", 1, in("image grow thin.qcow2 1M"), 2},
		{"growing what a clone stands on", 1, in("image grow base.qcow2 1G"), 4},
		{"growing a VM's disk as an image", 1, in("image grow rests-disk0.qcow2 1G"), 4},
		{"deleting what a clone stands on", 1, in("image delete base.qcow2"), 4},
		{"deleting a VM's disk", 1, in("image delete runs-disk0.qcow2"), 4},
		{"deleting what VMs boot from", 1, in("image delete tiny.rom"), 4},
		{"deleting the datastore's own file", 1, in("image delete .godwit-datastore"), 2},
		{"giving a VM what a clone stands on", 1, in("vm create web-9 --disk base.qcow2"), 4},
		{"a VM from an image that is not there", 1, in("vm create web-9 --image nowhere.qcow2"), 3},
		{"a VM from a text", 1, in("vm create web-9 --image note.txt"), 2},
		{"a VM with a disk smaller than the image", 1, in("vm create web-9 --image base.qcow2 --size 1M"), 2},
		{"a VM of a name that is taken", 1, in("vm create rests --image base.qcow2"), 4},
		{"a size of no image", 1, in("vm create web-9 --size 1G"), 2},
		{"a private key", 1, in("vm create web-9 --image base.qcow2 --ssh-key DIR/id"), 2},
		{"a key file that is not there", 1, in("vm create web-9 --image base.qcow2 --ssh-key DIR/nowhere"), 3},
		{"a key file without a key", 1, in("vm create web-9 --image base.qcow2 --ssh-key DIR/none"), 2},
		{"a key that is none", 1, in("vm create web-9 --image base.qcow2 --ssh-key DIR/prose"), 2},
		{"a user without a key, with a bad name, for a bad host name", 1, in("vm create web-9 --image base.qcow2 --ssh-user 0ps --hostname a_b"), 2},
		{"user data that is prose", 1, in("vm create web-9 --image base.qcow2 --user-data DIR/user.txt"), 2},
		{"user data that is no YAML", 1, in("vm create web-9 --image base.qcow2 --user-data DIR/user.yaml"), 2},
		{"user data that is too long", 1, in("vm create web-9 --image base.qcow2 --user-data DIR/book"), 2},
		{"no user data in the file", 1, in("vm create web-9 --image base.qcow2 --user-data DIR/nothing"), 2},
		{"user data and keys", 1, in("vm create web-9 --image base.qcow2 --user-data DIR/book --ssh-key DIR/id.pub"), 2},
		{"a network configuration of another version", 1, in("vm create web-9 --image base.qcow2 --network-config DIR/net.yaml"), 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			file.WriteString(strings.ReplaceAll(m.try(t, c), server.URL, "http://SERVER"))
		})
	}
	compare(t, "testdata/bad-input-images.txt", file.String())
}
