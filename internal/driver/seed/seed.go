// Package seed makes the small read-only disks that cloud-init's NoCloud data source reads: an ISO 9660 file system with the label cidata and the
// files meta-data, user-data and network-config (cloud-init documentation, "NoCloud").
//
// All that Godwit itself writes into them is JSON, which is YAML too and which no name or key can break out of. A seed sets no password
// for anybody. The package keeps nothing and knows no VM.
package seed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// Label is the label of the file system, by which cloud-init finds it.
const Label = "cidata"

// The bounds of a seed. EC2 takes 16 KiB of user data, so what is written for clouds fits.
const (
	UserDataMax      = 16 << 10
	NetworkConfigMax = 16 << 10
	KeysMax          = 64
	keyMax           = 8 << 10
)

// beginnings are how user data begins, so that cloud-init knows what it is (cloud-init documentation, "User-data formats").
var beginnings = []string{
	"#cloud-config\n", "#!", "#include\n", "#include-once\n", "#cloud-boothook\n", "#part-handler\n", "#cloud-config-archive\n",
	"## template: jinja\n", "#cloud-config-jsonp\n", "Content-Type: multipart/", "MIME-Version:", "From nobody ",
}

// Problems lists everything that is wrong with what a user wants in a seed, each as one line; none means that Build will take it.
func Problems(s inventory.Seed) []string {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if s.Hostname != "" && !hostname(s.Hostname) {
		add("host name %q is not usable: take labels of letters, digits and dashes with dots between them, like web-1.example.org", s.Hostname)
	}
	if s.User != "" && !userName(s.User) {
		add("user name %q is not usable: take 1 to 32 lower-case letters, digits, dashes and underscores, beginning with a letter", s.User)
	}
	if s.User != "" && len(s.SSHKeys) == 0 {
		add("a user for SSH keys is given, but no key: give one with --ssh-key")
	}
	if len(s.SSHKeys) > KeysMax {
		add("%d SSH keys are too many: at most %d", len(s.SSHKeys), KeysMax)
	}
	for i, key := range s.SSHKeys {
		if err := checkKey(key); err != nil {
			add("SSH key %d: %v", i+1, err)
		}
	}
	if s.UserData != "" {
		if len(s.SSHKeys) > 0 || s.User != "" {
			add("user data is given, which is handed over as it is: put the SSH keys and their user into it")
		}
		if err := checkUserData(s.UserData); err != nil {
			add("user data: %v", err)
		}
	}
	if s.NetworkConfig != "" {
		if err := checkNetworkConfig(s.NetworkConfig); err != nil {
			add("network configuration: %v", err)
		}
	}
	return bad
}

// checkKey takes one line of an authorized_keys file (sshd(8)).
func checkKey(key string) error {
	switch {
	case strings.Contains(key, "PRIVATE KEY"):
		return errors.New("it is a private key, which nobody else may see: give the public one, from the file that ends in .pub")
	case len(key) > keyMax:
		return fmt.Errorf("it has %d bytes, more than any key", len(key))
	case strings.ContainsAny(key, "\n\r"):
		return errors.New("it is more than one line")
	}
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key)); err != nil { //nolint:dogsled // only whether it is one
		return errors.New("it is no public key: it begins like ssh-ed25519 AAAA")
	}
	return nil
}

func checkUserData(text string) error {
	if len(text) > UserDataMax {
		return fmt.Errorf("it has %d bytes and may have %d: let it fetch the rest with #include", len(text), UserDataMax)
	}
	text = strings.ReplaceAll(text, "\r\n", "\n")
	known := false
	for _, b := range beginnings {
		known = known || strings.HasPrefix(text, b) || text == strings.TrimSpace(b)
	}
	if !known {
		return errors.New("cloud-init would not know what it is: it begins with #cloud-config, or with #! and an interpreter")
	}
	if strings.HasPrefix(text, "#cloud-config\n") {
		var found map[string]any
		if err := yaml.Unmarshal([]byte(text), &found); err != nil {
			return fmt.Errorf("it is no YAML of keys and values, so cloud-init would ignore it: %s", oneLine(err))
		}
	}
	return nil
}

func checkNetworkConfig(text string) error {
	if len(text) > NetworkConfigMax {
		return fmt.Errorf("it has %d bytes and may have %d", len(text), NetworkConfigMax)
	}
	var found struct {
		Version int `yaml:"version"`
		Network struct {
			Version int `yaml:"version"`
		} `yaml:"network"`
	}
	if err := yaml.Unmarshal([]byte(text), &found); err != nil {
		return fmt.Errorf("it is no YAML of keys and values: %s", oneLine(err))
	}
	if found.Network.Version != 0 {
		return errors.New("it begins with network:, which NoCloud does not want: leave that line out and move the rest to the left")
	}
	if found.Version != 2 {
		return errors.New("it does not say version: 2, the format of netplan, as its first key")
	}
	return nil
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
}

// hostname takes a name of RFC 1123 with dots.
func hostname(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(name), ".") {
		if inventory.CheckName("host", label) != nil {
			return false
		}
	}
	return true
}

// userName takes what useradd(8) of all distributions takes.
func userName(name string) bool {
	for i, c := range name {
		letter := c >= 'a' && c <= 'z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return len(name) <= 32
}

// Config is what Build needs.
type Config struct {
	Instance  inventory.VMID // cloud-init does its once-per-instance work again when it changes
	VM        string         // the host name, unless the seed says another
	Seed      inventory.Seed
	NICs      []inventory.NIC
	Workspace string // folder for the library's scratch files, which hold what the seed holds
}

// Build returns a seed. Its size is a whole number of 2 KiB sectors, some 400 KiB at most. Errors: fault.Invalid with every problem, fault.Internal.
func Build(c Config) ([]byte, error) {
	if err := fault.Refuse(fault.Invalid, Problems(c.Seed)); err != nil {
		return nil, err
	}
	files, err := c.files()
	if err != nil {
		return nil, fault.New(fault.Internal, "seed: %w", err)
	}
	iso, err := build(files, c.Workspace)
	if err != nil {
		return nil, fault.New(fault.Internal, "seed: %w", err)
	}
	return iso, nil
}

// renewMax bounds a seed that is read again; those of Build are smaller.
const renewMax = 4 << 20

// Renew returns a seed like old, which was made for the VM was, for the VM now, whose Seed may name a host and nothing else. User data stays as it
// is; a network configuration stays unless it was Build's own, which names the NICs by their addresses. Errors: fault.Invalid for what is no seed.
func Renew(old []byte, was, now Config) ([]byte, error) {
	iso, err := renew(old, was, now)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the seed cannot be read, so none can be made like it: %w", err)
	}
	return iso, nil
}

func renew(old []byte, was, now Config) ([]byte, error) {
	if len(old) > renewMax {
		return nil, fmt.Errorf("it has %d bytes", len(old))
	}
	kept, err := read(old)
	if err != nil {
		return nil, err
	}
	ours, err := was.networkConfig()
	if err != nil {
		return nil, err
	}
	if network := kept["network-config"]; !bytes.Equal(network, ours) {
		now.Seed.NetworkConfig = string(network)
	}
	files, err := now.files()
	if err != nil {
		return nil, err
	}
	for name, content := range kept {
		if name != "meta-data" && name != "network-config" {
			files[name] = content
		}
	}
	return build(files, now.Workspace)
}

// memory returns a file without a name.
func memory() (*os.File, error) {
	fd, err := unix.MemfdCreate("seed", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "seed"), nil
}

// read returns the contents of a seed by name.
func read(iso []byte) (_ map[string][]byte, err error) {
	m, err := memory()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if _, err := m.Write(iso); err != nil {
		return nil, err
	}
	fs, err := iso9660.Read(file.New(m, true), int64(len(iso)), 0, 0)
	if err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(".")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if files[e.Name()], err = fs.ReadFile(e.Name()); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// files returns the contents by name.
func (c Config) files() (map[string][]byte, error) {
	name := c.Seed.Hostname
	if name == "" {
		name = c.VM
	}
	meta, err := json.MarshalIndent(map[string]any{"instance-id": c.Instance, "local-hostname": name}, "", "  ")
	if err != nil {
		return nil, err
	}
	user, err := c.userData()
	if err != nil {
		return nil, err
	}
	network := []byte(c.Seed.NetworkConfig)
	if len(network) == 0 {
		if network, err = c.networkConfig(); err != nil {
			return nil, err
		}
	}
	return map[string][]byte{"meta-data": append(meta, '\n'), "user-data": user, "network-config": network}, nil
}

// userData gives the keys to the image's default user, whom the seed may rename (cloud-init documentation, "Users and Groups": user).
func (c Config) userData() ([]byte, error) {
	if c.Seed.UserData != "" {
		return []byte(c.Seed.UserData), nil
	}
	config := map[string]any{"ssh_pwauth": false}
	if len(c.Seed.SSHKeys) > 0 {
		config["ssh_authorized_keys"] = c.Seed.SSHKeys
	}
	if c.Seed.User != "" {
		config["user"] = map[string]any{"name": c.Seed.User}
	}
	if c.Seed.User == "root" {
		config["disable_root"] = false
	}
	text, err := json.MarshalIndent(config, "", "  ")
	return append([]byte("#cloud-config\n"), append(text, '\n')...), err
}

// networkConfig has every NIC ask for addresses. They are found by their MAC address and named eth0, eth1, as the order of the spec has them:
// cloud-init's renderers for ifupdown and network-scripts need a name, and the kernel's depends on the machine's layout.
func (c Config) networkConfig() ([]byte, error) {
	nics := map[string]any{}
	for i, n := range c.NICs {
		name := fmt.Sprintf("eth%d", i)
		nics[name] = map[string]any{"match": map[string]any{"macaddress": n.MAC}, "set-name": name, "dhcp4": true}
	}
	config := map[string]any{"version": 2}
	if len(nics) > 0 {
		config["ethernets"] = nics
	}
	text, err := json.MarshalIndent(config, "", "  ")
	return append(text, '\n'), err
}

// build makes the file system. The library wants a file to write to and a folder to collect in; the first is memory.
func build(files map[string][]byte, workspace string) (_ []byte, err error) {
	scratch, err := os.MkdirTemp(workspace, "seed-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	m, err := memory()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	fs, err := iso9660.Create(file.New(m, false), 0, 0, 0, scratch)
	if err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(scratch, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	// Rock Ridge keeps the names as they are: plain ISO 9660 has no dash and no lower case.
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: Label}); err != nil {
		return nil, err
	}
	size, err := m.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	const sector = 2048
	iso := make([]byte, (size+sector-1)/sector*sector)
	if _, err := m.ReadAt(iso[:size], 0); err != nil {
		return nil, err
	}
	return iso, nil
}
