package gate

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// connectionsPerUser is what the hosts of TestAHostAndItsCallers allow.
const connectionsPerUser = 8

const hostSettings = `# of a test
socket-group = "nogroup"
[limits]
connections-per-user = 8
calls-per-second = 40
calls-burst = 80
joins-per-minute = 60
`

// secretUserData is what a guest is to be told and nobody else.
const secretUserData = "#cloud-config\nchpasswd: {list: 'root:correct-horse-battery'}\n"

// The story: a host is used by root, by a group, and by people who should not; strangers knock at its ports; its log levels are
// changed while it runs; it is started twice; and at the end somebody is sent a bundle of it, once with the agent alive and once
// with it dead. Nobody learns a secret from logs or bundle.
func TestAHostAndItsCallers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(hostSettings), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODWIT_CONFIG", file)
	t.Setenv("GODWIT_DEBUG", "1") // everything that could be in a log is
	c := startCluster(t, lab.Options{Hosts: 1})
	h := c.Hosts[0]
	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"network", "create", "lan", "--subnet", "10.11.0.0/24"},
		{"vm", "create", "web", "--memory", "48M", "--firmware", "tiny.rom", "--disk", "size=16M", "--nic", "lan"},
		{"vm", "start", "web"},
	} {
		if _, err := h.Godwit(step(t), args...); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("nothing answers strangers", func(t *testing.T) { nothingAnswersStrangers(t, c) })
	t.Run("who may call", func(t *testing.T) { whoMayCall(t, h) })
	t.Run("one connection too many", func(t *testing.T) { oneTooMany(t, h) })
	t.Run("a flood", func(t *testing.T) { aFlood(t, h) })
	t.Run("log levels", func(t *testing.T) { logLevels(t, h, file) })
	t.Run("two runs", func(t *testing.T) { twoRuns(t, h) })
	secrets := makeSecrets(t, c)
	t.Run("bundle", func(t *testing.T) { bundles(t, c, secrets) })
	for _, h := range c.Hosts {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		if h == c.Hosts[0] && !strings.Contains(string(text), "level=DEBUG") {
			t.Errorf("%s logged nothing at level debug: its log proves little", h.Name)
		}
		secrets.notIn(t, h.LogPath(), text)
	}
}

// logLevels changes a level in the file of a running host.
func logLevels(t *testing.T, h *lab.Host, file string) {
	if err := os.WriteFile(file, []byte(hostSettings+"[log-levels]\nswitch = \"error\"\nstore = \"warn\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	agent, err := h.PID(step(t), "agent")
	if err != nil {
		t.Fatal(err)
	}
	if err := hangUp(h); err != nil {
		t.Fatal(err)
	}
	// The switch's and the store's own words are below their new levels.
	waitForLog(t, h, "msg=\"log level read anew\" component=agent level=DEBUG")
	if now, err := h.PID(step(t), "agent"); err != nil || now != agent {
		t.Errorf("the agent was %d and is %d: %v", agent, now, err)
	}
	if err := os.WriteFile(file, []byte("log-level = \"loud\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := hangUp(h); err != nil {
		t.Fatal(err)
	}
	waitForLog(t, h, "configuration not read anew, the former one counts")
	if err := os.WriteFile(file, []byte(hostSettings), 0o644); err != nil {
		t.Fatal(err)
	}
}

// hangUp sends SIGHUP to the host's main process, which holds the lock of its data folder.
func hangUp(h *lab.Host) error {
	pid, err := mainProcess(h)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(syscall.SIGHUP)
}

func mainProcess(h *lab.Host) (int, error) {
	text, err := os.ReadFile(filepath.Join(h.Data, "lock"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func waitForLog(t *testing.T, h *lab.Host, line string) {
	t.Helper()
	for end := time.Now().Add(stepMax); ; time.Sleep(20 * time.Millisecond) { // a file has no event
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), line) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the log of %s never says %s", h.Name, line)
		}
	}
}

// twoRuns starts a second godwit run on the folder of one that runs.
func twoRuns(t *testing.T, h *lab.Host) {
	pid, err := mainProcess(h)
	if err != nil {
		t.Fatal(err)
	}
	_, errs, err := h.Command(step(t), "run", "--data", h.Data, "--run", h.Run)
	want := fmt.Sprintf("is in use by another godwit run with PID %d: end that one first", pid)
	if lab.ExitCode(err) != 4 || !strings.Contains(string(errs), want) {
		t.Errorf("the second run: %v", err)
	}
	if _, err := h.Godwit(step(t), "vm", "ls"); err != nil {
		t.Errorf("the first one afterwards: %v", err)
	}
}

// secrets are texts that nobody may read outside their place.
type secrets map[string]string

// makeSecrets uses what there is of secrets in a cluster: a token that is made and used, hosts' keys, a guest's user data.
func makeSecrets(t *testing.T, c *lab.Cluster) secrets {
	t.Helper()
	h := c.Hosts[0]
	all := secrets{"user data": "correct-horse-battery"}
	second, err := c.AddHost(step(t))
	if err != nil {
		t.Fatal(err)
	}
	token, err := h.Godwit(step(t), "token", "create")
	if err != nil {
		t.Fatal(err)
	}
	all["token"] = strings.TrimSpace(string(token))
	third := filepath.Join(c.Dir, "third")
	// The host of a token that fails to join, and one that joins.
	wrong := all["token"][:len(all["token"])-4] + "AAAA"
	for _, tok := range []string{wrong, all["token"]} {
		_, _, err = h.Command(step(t), "join", tok, "--data", third, "--name", "host-3", "--address", strings.TrimSuffix(second.Address, ".12")+".99")
		if failed := err != nil; failed != (tok == wrong) {
			t.Fatalf("join: %v", err)
		}
	}
	for _, data := range []string{h.Data, second.Data, third} {
		keys, err := filepath.Glob(filepath.Join(data, "pki", "*.key"))
		if err != nil || len(keys) == 0 {
			t.Fatalf("keys of %s: %v, %v", data, keys, err)
		}
		for _, path := range keys {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all[path] = strings.Split(string(text), "\n")[1]
		}
	}
	client := godwitv1connect.NewVMServiceClient(clientAs(t, h, 0, 0), "http://agent")
	for _, host := range []string{"", second.Name} {
		_, err := client.CreateVM(step(t), connect.NewRequest(&godwitv1.CreateVMRequest{
			Name: "seeded" + strings.TrimPrefix(host, "host"), Cpus: 1, Memory: 64 << 20, Host: host,
			Disks: []*godwitv1.DiskRequest{{Size: 16 << 20}}, Seed: &godwitv1.Seed{UserData: secretUserData},
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// notIn fails the test for each secret in the text.
func (s secrets) notIn(t *testing.T, where string, text []byte) {
	t.Helper()
	for name, secret := range s {
		if len(secret) < 12 {
			t.Fatalf("%s is too short to look for", name)
		}
		if at := strings.Index(string(text), secret); at >= 0 {
			t.Errorf("%s has the secret %q: %.300s", where, name, text[max(0, at-200):])
		}
	}
}

// bundles makes a bundle of the living host and one of the dead, given a log file full of secrets.
func bundles(t *testing.T, c *lab.Cluster, s secrets) {
	h := c.Hosts[0]
	leaky := filepath.Join(c.Dir, "leaky.log")
	var text strings.Builder
	text.WriteString("a line that stays\n")
	for name, secret := range s {
		fmt.Fprintf(&text, "oops: %s\n", secret)
		if strings.HasSuffix(name, ".key") {
			whole, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(whole)
		}
	}
	said, err := json.Marshal(map[string]string{"user_data": secretUserData})
	if err != nil {
		t.Fatal(err)
	}
	// What no program can tell from other words is the user's to look for; in a record of ours it has its name.
	leak := strings.ReplaceAll(text.String(), "oops: correct-horse-battery", string(said))
	// A foreign host's key is known here by its form only, and so a line of it alone is not.
	for name, secret := range s {
		if strings.HasSuffix(name, ".key") && !strings.HasPrefix(name, h.Data) {
			leak = strings.ReplaceAll(leak, "oops: "+secret+"\n", "")
		}
	}
	if err := os.WriteFile(leaky, []byte(leak), 0o600); err != nil {
		t.Fatal(err)
	}
	bundle := func(name string) (bundleManifest, map[string]string) {
		t.Helper()
		path := filepath.Join(c.Dir, name)
		if _, err := h.Godwit(step(t), "support-bundle", "--data", h.Data, "--run", h.Run, "--output", path, "--log", leaky, "--log", h.LogPath()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its mode is %v: %v", info.Mode(), err)
		}
		m, files := openBundle(t, path)
		for f, text := range files {
			s.notIn(t, name+"/"+f, []byte(text))
		}
		if !strings.Contains(files["log/1-leaky.log"], "a line that stays") || strings.Count(files["log/1-leaky.log"], "[redacted]") < len(s) {
			t.Errorf("of the leaky log there is %q", files["log/1-leaky.log"])
		}
		return m, files
	}
	_, alive := bundle("alive.tar.gz")
	for f, want := range map[string]string{
		"versions.txt": "QEMU emulator version", "doctor.json": `"qemu"`, "config/effective.json": `"socket-group"`, "config/config.toml": "nogroup",
		"data/host.json": `"host-1"`, "data/version": "2", "store.json": "/godwit/vm/", "qemu/processes.txt": "-machine",
		"run/tree.txt": "agent.sock", "log/2-host-1.log": "component=agent", "network/sockets.txt": ":7443", "system/mounts.txt": "/proc",
		"run/switch/switch.json": "lan",
	} {
		if !strings.Contains(alive[f], want) {
			t.Errorf("%s does not say %s: %.300s", f, want, alive[f])
		}
	}
	if _, _, err := h.Command(step(t), "support-bundle", "--data", h.Data, "--output", filepath.Join(c.Dir, "alive.tar.gz")); lab.ExitCode(err) != 4 {
		t.Errorf("a bundle over another: %v", err)
	}
	if err := h.Down(); err != nil {
		t.Fatal(err)
	}
	m, dead := bundle("dead.tar.gz")
	failed := map[string]string{}
	for _, e := range m.Items {
		failed[e.Name] = e.Error
	}
	if failed["doctor.json"] != "" || failed["store.json"] == "" || failed["data/host.json"] != "" {
		t.Errorf("the dead host's index says %q", failed)
	}
	if !strings.Contains(dead["data/host.json"], `"host-1"`) || !strings.Contains(dead["doctor.json"], `"qemu"`) || !strings.Contains(dead["qemu/processes.txt"], "-machine") {
		t.Error("the dead host's bundle lacks what can be had without an agent")
	}
	newer := filepath.Join(h.Data, "version")
	if err := os.WriteFile(newer, []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := h.Command(step(t), "run", "--data", h.Data, "--run", h.Run); lab.ExitCode(err) != 5 || !strings.Contains(string(errs), "has version 99 and this godwit reads up to 2: upgrade godwit") {
		t.Errorf("a newer data folder: %v", err)
	}
	if err := os.WriteFile(newer, []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Up(step(t)); err != nil {
		t.Fatal(err)
	}
}

type bundleManifest struct {
	Host  string
	Items []struct{ Name, Error string }
}

// openBundle reads an archive, whose first file must be the manifest.
func openBundle(t *testing.T, path string) (m bundleManifest, files map[string]string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(zip); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(head.Name, "/")
		if len(files) == 0 {
			if name != "manifest.json" {
				t.Errorf("its first file is %s", head.Name)
			}
			if err := json.Unmarshal(text, &m); err != nil {
				t.Fatal(err)
			}
		}
		files[name] = string(text)
	}
	if m.Host != "host-1" || len(m.Items) == 0 {
		t.Errorf("the manifest says %+v", m)
	}
	return m, files
}

// strangersClient speaks HTTP/2 over TLS to anybody.
func strangersClient(t *testing.T, certificates []tls.Certificate) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: stepMax}
}

// calls lists the path of every call of the API.
func calls() []string {
	var paths []string
	services := godwitv1.File_godwit_v1_api_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			paths = append(paths, fmt.Sprintf("/%s/%s", services.Get(i).FullName(), services.Get(i).Methods().Get(j).Name()))
		}
	}
	return paths
}
