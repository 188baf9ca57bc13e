package seed_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"go.yaml.in/yaml/v3"

	"github.com/godwit-vm/godwit/internal/driver/seed"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfkNV4OS33ImTXvorZr72q4v5XhVEQKfvqsxOEJ/XaR admin@desk"

// read returns the files of a seed by name, as the library finds them.
func read(t *testing.T, iso []byte) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, iso, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := iso9660.Read(file.New(f, true), int64(len(iso)), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if label := strings.TrimRight(fs.Label(), " \x00"); label != seed.Label {
		t.Errorf("its label is %q", label)
	}
	entries, err := fs.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, e := range entries {
		text, err := fs.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = string(text)
	}
	return found
}

func build(t *testing.T, s inventory.Seed, nics ...inventory.NIC) map[string]string {
	t.Helper()
	scratch := t.TempDir()
	iso, err := seed.Build(seed.Config{Instance: "vm-abcdefghij", VM: "web-1", Seed: s, NICs: nics, Workspace: scratch})
	if err != nil {
		t.Fatal(err)
	}
	if len(iso)%2048 != 0 || len(iso) > 512<<10 {
		t.Errorf("a seed of %d bytes", len(iso))
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	return read(t, iso)
}

// The story: an administrator gives a key and a user, and nothing else. The guest learns its name, its instance, the key, and to ask for an
// address on each NIC; nobody gets a password.
func TestKeysAndNames(t *testing.T) {
	files := build(t, inventory.Seed{SSHKeys: []string{key}, User: "ops"},
		inventory.NIC{Name: "nic0", MAC: "52:54:00:00:00:01"}, inventory.NIC{Name: "nic1", MAC: "52:54:00:00:00:02"})
	if len(files) != 3 {
		t.Errorf("the files are %v", files)
	}
	var meta map[string]string
	if err := yaml.Unmarshal([]byte(files["meta-data"]), &meta); err != nil || meta["instance-id"] != "vm-abcdefghij" || meta["local-hostname"] != "web-1" {
		t.Errorf("meta-data: %v, %v", meta, err)
	}
	if !strings.HasPrefix(files["user-data"], "#cloud-config\n") || strings.Contains(files["user-data"], "passwd") {
		t.Errorf("user-data:\n%s", files["user-data"])
	}
	var user struct {
		User map[string]string `yaml:"user"`
		Keys []string          `yaml:"ssh_authorized_keys"`
		Auth *bool             `yaml:"ssh_pwauth"`
	}
	if err := yaml.Unmarshal([]byte(files["user-data"]), &user); err != nil || len(user.Keys) != 1 || user.Keys[0] != key ||
		user.User["name"] != "ops" || user.Auth == nil || *user.Auth {
		t.Errorf("user-data: %+v, %v", user, err)
	}
	var network struct {
		Version   int
		Ethernets map[string]struct {
			Match map[string]string `json:"match"`
			Name  string            `json:"set-name"`
			DHCP  bool              `json:"dhcp4"`
		}
	}
	if err := json.Unmarshal([]byte(files["network-config"]), &network); err != nil || network.Version != 2 || len(network.Ethernets) != 2 {
		t.Fatalf("network-config: %+v, %v", network, err)
	}
	if e := network.Ethernets["eth1"]; e.Match["macaddress"] != "52:54:00:00:00:02" || e.Name != "eth1" || !e.DHCP {
		t.Errorf("eth1: %+v", e)
	}
}

func TestWhatUsersWriteIsHandedOverAsItIs(t *testing.T) {
	data := "#cloud-config\nhostname: other\n# \xc3\xa4\n" + strings.Repeat("# padding\n", 1500)
	network := "version: 2\nethernets: {}\n"
	files := build(t, inventory.Seed{UserData: data, NetworkConfig: network, Hostname: "www.example.org"})
	if files["user-data"] != data {
		t.Errorf("%d bytes of user data became %d", len(data), len(files["user-data"]))
	}
	if files["network-config"] != network || !strings.Contains(files["meta-data"], `"www.example.org"`) {
		t.Errorf("%q, %q", files["network-config"], files["meta-data"])
	}
	if !strings.Contains(build(t, inventory.Seed{User: "root", SSHKeys: []string{key}})["user-data"], `"disable_root": false`) {
		t.Error("root could not use the key")
	}
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		seed inventory.Seed
		says string
	}{
		"a private key":          {inventory.Seed{SSHKeys: []string{"-----BEGIN OPENSSH PRIVATE KEY-----"}}, "private key"},
		"no key at all":          {inventory.Seed{SSHKeys: []string{"hello"}}, "no public key"},
		"two keys in one":        {inventory.Seed{SSHKeys: []string{key + "\n" + key}}, "one line"},
		"too many keys":          {inventory.Seed{SSHKeys: bytesOf(seed.KeysMax+1, key)}, "too many"},
		"a user without key":     {inventory.Seed{User: "ops"}, "no key"},
		"a user of two words":    {inventory.Seed{User: "o ps", SSHKeys: []string{key}}, "user name"},
		"a number for a user":    {inventory.Seed{User: "0ps", SSHKeys: []string{key}}, "user name"},
		"a host name with space": {inventory.Seed{Hostname: "web 1"}, "host name"},
		"keys and user data":     {inventory.Seed{UserData: "#cloud-config\n", SSHKeys: []string{key}}, "put the SSH keys"},
		"prose as user data":     {inventory.Seed{UserData: "hello\n"}, "begins with #cloud-config"},
		"broken YAML":            {inventory.Seed{UserData: "#cloud-config\na: [\n"}, "no YAML"},
		"a list for a mapping":   {inventory.Seed{UserData: "#cloud-config\n- a\n"}, "no YAML"},
		"a book as user data":    {inventory.Seed{UserData: "#!" + strings.Repeat("a", seed.UserDataMax)}, "may have 16384"},
		"network of version 1":   {inventory.Seed{NetworkConfig: "version: 1\n"}, "version: 2"},
		"a network in a network": {inventory.Seed{NetworkConfig: "network:\n  version: 2\n"}, "leave that line out"},
		"no network at all":      {inventory.Seed{NetworkConfig: "{"}, "no YAML"},
	} {
		_, err := seed.Build(seed.Config{Seed: c.seed, VM: "a", Workspace: t.TempDir()})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	all := seed.Problems(inventory.Seed{User: "0", Hostname: "-", SSHKeys: []string{"a"}, UserData: "b", NetworkConfig: "c: ["})
	if len(all) != 6 {
		t.Errorf("six mistakes, these are named:\n%s", strings.Join(all, "\n"))
	}
}

func bytesOf(n int, text string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = text
	}
	return all
}

// A seed says the same to whom nothing changed: the contents do not depend on the order of a map.
func TestSameSeedSameFiles(t *testing.T) {
	a := build(t, inventory.Seed{SSHKeys: []string{key}}, inventory.NIC{MAC: "52:54:00:00:00:01"})
	b := build(t, inventory.Seed{SSHKeys: []string{key}}, inventory.NIC{MAC: "52:54:00:00:00:01"})
	for name := range a {
		if !bytes.Equal([]byte(a[name]), []byte(b[name])) {
			t.Errorf("%s differs", name)
		}
	}
}

// The story: a VM is cloned. The clone has the keys and a name, an instance and NICs of its own; a network that somebody wrote down stays.
func TestRenew(t *testing.T) {
	was := seed.Config{
		Instance: "vm-abcdefghij", VM: "web-1", NICs: []inventory.NIC{{MAC: "52:54:00:00:00:01"}}, Workspace: t.TempDir(),
		Seed: inventory.Seed{SSHKeys: []string{key}, Hostname: "old"},
	}
	now := seed.Config{Instance: "vm-klmnopqrst", VM: "web-2", NICs: []inventory.NIC{{MAC: "52:54:00:00:00:02"}}, Workspace: was.Workspace}
	for _, network := range []string{"", "version: 2\n# mine\n"} {
		was.Seed.NetworkConfig = network
		old, err := seed.Build(was)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := seed.Renew(old, was, now)
		if err != nil {
			t.Fatal(err)
		}
		before, after := read(t, old), read(t, fresh)
		if after["user-data"] != before["user-data"] || !strings.Contains(after["meta-data"], "vm-klmnopqrst") || !strings.Contains(after["meta-data"], `"web-2"`) {
			t.Errorf("user-data %q, meta-data %q", after["user-data"], after["meta-data"])
		}
		if network == "" && !strings.Contains(after["network-config"], "00:02") || network != "" && after["network-config"] != network {
			t.Errorf("network-config %q", after["network-config"])
		}
	}
	if _, err := seed.Renew(make([]byte, 64<<10), was, now); !fault.Is(err, fault.Invalid) {
		t.Errorf("of no seed: %v", err)
	}
}
