package matrix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vm/godwit/guest"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
	"github.com/godwit-vm/godwit/test/oracle"
)

// The bounds of what a run does beside the cells' own.
const (
	startMax = 90 * time.Second
	stepMax  = 30 * time.Second
)

// field is a cluster of two hosts on which cells are run, one after the other.
type field struct {
	*lab.Cluster

	etcd   *lab.Etcd
	oracle *oracle.Oracle
	mounts map[string]*oracle.Mount
	vms    int // made so far
}

// The names of what is on a field.
const (
	network = "lan"
	romName = "matrix.rom"
)

// guestOptions are the guest's: what a migration has to send, and what it writes meanwhile.
var guestOptions = tiny.Options{Pages: 256, Fill: 10240, Rate: 4}

// newField starts a cluster. On an error nothing is left.
func newField(ctx context.Context) (_ *field, err error) {
	ctx, done := context.WithTimeout(ctx, startMax)
	defer done()
	cache, err := guest.Cache()
	if err != nil {
		return nil, err
	}
	f := &field{mounts: map[string]*oracle.Mount{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.etcd, err = lab.StartEtcd(ctx, godwit); err != nil {
		return nil, err
	}
	if f.Cluster, err = lab.Start(ctx, lab.Options{
		Binary: godwit, Hosts: 2, Cache: filepath.Join(cache, "probes"), Init: f.etcd.Access,
		Storage: func(c *lab.Cluster, h *lab.Host) (string, error) {
			if f.oracle == nil {
				f.oracle = oracle.New(c.Datastore, oracle.Options{})
			}
			m, err := f.oracle.Mount(h.Name, filepath.Join(h.Folder(), "shared"))
			f.mounts[h.Name] = m
			if err != nil {
				return "", err
			}
			return m.At, nil
		},
	}); err != nil {
		return nil, err
	}
	rom := tiny.Heartbeat(guestOptions)
	if err := os.WriteFile(filepath.Join(f.Datastore, romName), rom, 0o644); err != nil { //nolint:gosec // QEMU's user reads it
		return nil, err
	}
	if _, err := f.Hosts[0].Godwit(ctx, "network", "create", network, "--subnet", "10.10.0.0/24"); err != nil {
		return nil, err
	}
	return f, nil
}

// close ends everything, whatever stands.
func (f *field) close() error {
	var all error
	if f.Cluster != nil {
		for _, h := range f.Hosts {
			h.Thaw() // a stopped process hears nothing of its end
		}
	}
	if f.etcd != nil && f.etcd.PID != 0 {
		_ = f.etcd.GoOn() // the hosts end in order when it answers
	}
	if f.Cluster != nil {
		for _, h := range slices.Backward(f.Hosts) {
			all = errors.Join(all, h.Down())
		}
	}
	if f.oracle != nil {
		all = errors.Join(all, f.oracle.Close())
	}
	if f.Cluster != nil {
		all = errors.Join(all, f.Close())
		if left := f.Processes(); len(left) > 0 {
			all = errors.Join(all, fmt.Errorf("processes %v outlive their cluster", left))
		}
	}
	if f.etcd != nil {
		all = errors.Join(all, f.etcd.Close())
	}
	return all
}

// alarms are what no log of a host may have, from these places on.
func (f *field) alarms(from map[string]int64) (bad []string) {
	for _, h := range f.Hosts {
		text, err := os.ReadFile(h.LogPath())
		if err != nil {
			bad = append(bad, err.Error())
			continue
		}
		if alarm := lab.Alarm(text[min(int64(len(text)), from[h.Name]):]); alarm != "" {
			bad = append(bad, fmt.Sprintf("%s: %.2000s", h.Name, alarm))
		}
	}
	return bad
}

// logEnds is how long the hosts' logs are.
func (f *field) logEnds() map[string]int64 {
	ends := map[string]int64{}
	for _, h := range f.Hosts {
		if info, err := os.Stat(h.LogPath()); err == nil {
			ends[h.Name] = info.Size()
		}
	}
	return ends
}

// locks returns the generations of a VM's lock records, lowest first.
func (f *field) locks(vm string) (all []uint64, err error) {
	found, err := filepath.Glob(filepath.Join(f.Datastore, "locks", vm+".lock.*"))
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		n, err := strconv.ParseUint(path[strings.LastIndex(path, ".")+1:], 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	slices.Sort(all)
	return all, nil
}
