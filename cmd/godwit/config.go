package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/driver/datadir"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The ports of a host. The trunk and the store have their own, since their processes must outlive the agent.
const (
	portAgent     = "7443"
	portTrunk     = "7444"
	portStore     = "2379"
	portStorePeer = "2380"
)

// The usual places.
const (
	defaultData  = "/var/lib/godwit"
	defaultRun   = "/run/godwit"
	defaultCache = "/var/cache/godwit"
	defaultUser  = "godwit-vm"
)

// hostConfig is what init and join write down about a host, and what its roles start from.
type hostConfig struct {
	Schema     int              `json:"schema"`
	Cluster    string           `json:"cluster"`
	Host       inventory.HostID `json:"host"`
	Address    string           `json:"address"` // IP that other hosts reach this one at
	Witness    bool             `json:"witness,omitempty"`
	Member     bool             `json:"member"` // this host carries a member of the store; the rest of it follows
	MemberID   uint64           `json:"member_id,omitempty"`
	Folder     string           `json:"store_folder,omitempty"` // in the data folder; empty: store
	StoreJoin  string           `json:"store_join,omitempty"`   // what the member starts with; empty: it founded the store
	Endpoints  []string         `json:"endpoints"`
	Foreign    bool             `json:"foreign_store,omitempty"` // the store is not Godwit's own
	Datastores []hostDatastore  `json:"datastores"`
	Binary     string           `json:"qemu,omitempty"`
	User       string           `json:"user,omitempty"` // that VMs run as when the agent is root
	Cache      string           `json:"cache"`
	dir        string
}

// hostDatastore is a datastore as the host is told of it.
type hostDatastore struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	Local bool   `json:"local,omitempty"`
}

// configSchema is the version of the file's form; a newer one is refused.
const configSchema = 1

func (c *hostConfig) path() string { return filepath.Join(c.dir, "host.json") }

// pki is where the host's certificate lies.
func (c *hostConfig) pki() string { return filepath.Join(c.dir, "pki") }

func (c *hostConfig) agentAddress() string { return net.JoinHostPort(c.Address, portAgent) }

// storeDir is where the host's member of the store has its files.
func (c *hostConfig) storeDir() string { return filepath.Join(c.dir, cmp.Or(c.Folder, "store")) }

func (c *hostConfig) storeClient() string { return "https://" + net.JoinHostPort(c.Address, portStore) }

func (c *hostConfig) storePeer() string {
	return "https://" + net.JoinHostPort(c.Address, portStorePeer)
}

func (c *hostConfig) trunkAddress() string { return net.JoinHostPort(c.Address, portTrunk) }

// loadConfig reads a host's configuration from its data folder.
func loadConfig(dir string) (*hostConfig, error) {
	c := &hostConfig{dir: dir}
	if err := datadir.Check(dir); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(c.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "%s is no data folder of a host: run godwit init for the first host of a cluster, godwit join for another", dir)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "data folder: %w", err)
	}
	if err := json.Unmarshal(text, c); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", c.path(), err)
	}
	if c.Schema > configSchema {
		return nil, fault.New(fault.Incompatible, "%s was written by a newer godwit: upgrade this one", c.path())
	}
	return c, nil
}

// save writes the configuration, whole or not at all.
func (c *hostConfig) save() error {
	c.Schema = configSchema
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(c.path(), append(text, '\n'), 0o600); err != nil {
		return fault.New(fault.NoResources, "data folder: %w", err)
	}
	return nil
}

// How long a change of host.json waits for another one, and how often it looks: each is done in milliseconds.
const (
	changeMax  = 5 * time.Second
	changeLook = 20 * time.Millisecond
)

// change does f to what host.json holds now, and writes it. The agent and godwit datastore add write the file whenever they like: each changes
// its own part only, one after the other. An error of f leaves all as it was.
func (c *hostConfig) change(f func(now *hostConfig) error) error {
	folder, err := os.Open(c.dir) // the lock is on the folder, since the file is another one each time
	if err != nil {
		return fault.New(fault.Internal, "data folder: %w", err)
	}
	defer func() { _ = folder.Close() }() // which ends the lock
	for begun := time.Now(); ; time.Sleep(changeLook) {
		err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fault.New(fault.Internal, "data folder: %w", err)
		}
		if time.Since(begun) > changeMax {
			return fault.New(fault.Unavailable, "%s is being changed by another process: try again", c.path())
		}
	}
	now, err := loadConfig(c.dir)
	if err != nil {
		return err
	}
	if err := f(now); err != nil {
		return err
	}
	return now.save()
}

// hostFlags are what init and join ask about the new host.
type hostFlags struct {
	data, name, address, binary, user, cache string
	datastores                               []string
}

// register takes the flags of a host.
func (f *hostFlags) register(cmd *cobra.Command) {
	f.registerMachine(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&f.datastores, "datastore", nil, "NAME=PATH[,local]: a folder for images; the same on all hosts unless local; repeatable")
	flags.StringVar(&f.binary, "qemu", "", "QEMU binary; empty: the installed one")
	flags.StringVar(&f.user, "user", defaultUser, "unprivileged user that VMs run as when godwit is root")
	flags.StringVar(&f.cache, "probe-cache", defaultCache, "folder for results of probes")
}

// registerMachine takes those that a witness has too.
func (f *hostFlags) registerMachine(cmd *cobra.Command) {
	name, _ := os.Hostname() // without one the flag has to be given
	flags := cmd.Flags()
	flags.StringVar(&f.data, "data", defaultData, "data folder of the host")
	flags.StringVar(&f.name, "name", strings.ToLower(strings.SplitN(name, ".", 2)[0]), "name of the host in the cluster")
	flags.StringVar(&f.address, "address", "", "IP address at which the other hosts reach this one")
}

// config checks the flags and makes the data folder with the datastores' markers.
func (f *hostFlags) config() (*hostConfig, error) {
	var bad []string
	if err := inventory.CheckName("host", f.name); err != nil {
		bad = append(bad, err.Error())
	}
	if net.ParseIP(f.address) == nil {
		bad = append(bad, fmt.Sprintf("address %q is no IP address: give the one that the other hosts reach this one at with --address", f.address))
	}
	if dir, err := filepath.Abs(f.data); err == nil { // as godwit run and a service want it
		f.data = dir
	}
	c := &hostConfig{
		Host: inventory.HostID(f.name), Address: f.address, Binary: f.binary, Cache: f.cache, dir: f.data,
	}
	if os.Geteuid() == 0 {
		c.User = f.user
	}
	for _, text := range f.datastores {
		ds, err := parseDatastore(text)
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		c.Datastores = append(c.Datastores, ds)
	}
	if _, err := os.Stat(c.path()); err == nil {
		bad = append(bad, fmt.Sprintf("%s is the data folder of a host already: remove it to start anew", f.data))
	}
	return c, fault.Refuse(fault.Invalid, bad)
}

func parseDatastore(text string) (hostDatastore, error) {
	name, path, ok := strings.Cut(text, "=")
	ds := hostDatastore{Name: name, Path: path}
	if rest, local := strings.CutSuffix(path, ",local"); local {
		ds.Path, ds.Local = rest, true
	}
	if !ok || !filepath.IsAbs(ds.Path) {
		return ds, fault.New(fault.Invalid, "datastore %q is not NAME=PATH[,local] with an absolute path", text)
	}
	ds.Path = filepath.Clean(ds.Path)
	return ds, inventory.CheckName("datastore", name)
}
