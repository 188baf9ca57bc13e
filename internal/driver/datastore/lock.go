package datastore

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of lock records.
const (
	lockMax  = 4 << 10 // bytes of one record
	locksMax = 1000    // records of one VM; they are pruned after every change of owner
)

// Record is a lock record: the file locks/VM.lock.GENERATION. It is made once and never changed; the record with the
// highest generation says who may run the VM. A number that was taken is never given again, also when its migration was
// given up (docs/architecture.md, "The hand-over rules").
type Record struct {
	Generation inventory.Generation `json:"generation"`
	Host       inventory.HostID     `json:"host"` // empty: not readable; the record counts all the same
	Time       time.Time            `json:"time"` // by the host's clock, for people
	Nonce      string               `json:"nonce"`
}

// Lock makes the VM's lock record of this generation for the host. A record of a higher generation is fault.Conflict, one
// of the same fault.Exists, whoever made it; both name its host. When Lock returns nil the record is on the disk. Whoever
// starts a VM asks Holds again right before its CPUs run.
func (d *Datastore) Lock(vm inventory.VMID, generation inventory.Generation, host inventory.HostID) error {
	if err := d.lock(vm, generation, host); err != nil {
		return fault.Wrap("lock", "vm "+string(vm)+" on datastore "+d.Name, err)
	}
	return nil
}

func (d *Datastore) lock(vm inventory.VMID, generation inventory.Generation, host inventory.HostID) error {
	if err := checkVM(vm); err != nil {
		return err
	}
	if err := d.noneAbove(vm, generation); err != nil {
		return err
	}
	r := Record{Generation: generation, Host: host, Time: time.Now().UTC(), Nonce: rand.Text()}
	b, err := json.Marshal(r)
	if err != nil {
		return fault.New(fault.Internal, "record: %w", err)
	}
	name := lockName(vm, generation)
	if err := writeOnce(d.root, name, append(b, '\n')); err != nil {
		// NFS can say "exists" to the retransmission of a link that it did: then the record is ours.
		if !errors.Is(err, fs.ErrExist) || d.readLock(name).Nonce != r.Nonce {
			if errors.Is(err, fs.ErrExist) {
				return taken(d.readLock(name), generation)
			}
			return explain(err)
		}
	}
	return d.noneAbove(vm, generation+1) // somebody may have been quicker with a higher one
}

// noneAbove refuses when there is a record of this generation or a higher one.
func (d *Datastore) noneAbove(vm inventory.VMID, generation inventory.Generation) error {
	records, err := d.Locks(vm)
	if err != nil || len(records) == 0 {
		return err
	}
	last := records[len(records)-1]
	if last.Generation < generation {
		return nil
	}
	return taken(last, generation)
}

func taken(r Record, generation inventory.Generation) error {
	host := string(r.Host)
	if host == "" {
		host = "a host that its record does not name"
	}
	if r.Generation <= generation {
		return fault.New(fault.Exists, "generation %d was taken by %s at %s", generation, host, r.Time.Format(time.RFC3339))
	}
	return fault.New(fault.Conflict, "%s has it with generation %d, newer than %d", host, r.Generation, generation)
}

// Locks returns the VM's lock records by generation; the last one counts. A record that cannot be read is there without
// its host, because its number is taken all the same.
func (d *Datastore) Locks(vm inventory.VMID) ([]Record, error) {
	if err := checkVM(vm); err != nil {
		return nil, err
	}
	// Opened anew each time: NFS asks the server again on open (nfs(5), close-to-open consistency).
	dir, err := d.root.Open(locksDir)
	if err != nil {
		return nil, d.wrap("", explain(err))
	}
	defer func() { _ = dir.Close() }() // only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, d.wrap("", explain(err))
	}
	var records []Record
	for _, name := range names {
		number, ok := strings.CutPrefix(name, string(vm)+".lock.")
		if !ok {
			continue
		}
		generation, err := strconv.ParseUint(number, 10, 64)
		if err != nil || strconv.FormatUint(generation, 10) != number {
			continue // a file being written, or none of ours
		}
		if len(records) == locksMax {
			return nil, fault.New(fault.Internal, "vm %s has more than %d lock records on datastore %s", vm, locksMax, d.Name)
		}
		r := d.readLock(lockName(vm, inventory.Generation(generation)))
		r.Generation = inventory.Generation(generation)
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b Record) int {
		switch {
		case a.Generation < b.Generation:
			return -1
		case a.Generation > b.Generation:
			return 1
		}
		return 0
	})
	return records, nil
}

func (d *Datastore) readLock(name string) Record {
	var r Record
	b, err := readSmall(d.root, name, lockMax)
	if err != nil || json.Unmarshal(b, &r) != nil {
		return Record{}
	}
	return r
}

// Holds reports whether the record of this generation is the VM's highest. No record at all is no.
func (d *Datastore) Holds(vm inventory.VMID, generation inventory.Generation) (bool, error) {
	records, err := d.Locks(vm)
	if err != nil || len(records) == 0 {
		return false, err
	}
	return records[len(records)-1].Generation == generation, nil
}

// Prune removes the VM's lock records up to this generation, but never the highest one there is: its number must not be
// given again.
func (d *Datastore) Prune(vm inventory.VMID, upTo inventory.Generation) error {
	records, err := d.Locks(vm)
	if err != nil {
		return err
	}
	if len(records) == 0 {
		return nil
	}
	for _, r := range records[:len(records)-1] {
		if r.Generation > upTo {
			break
		}
		if err := d.removeLock(vm, r.Generation); err != nil {
			return err
		}
	}
	return nil
}

// Forget removes all lock records of a VM that was destroyed, the highest last.
func (d *Datastore) Forget(vm inventory.VMID) error {
	records, err := d.Locks(vm)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := d.removeLock(vm, r.Generation); err != nil {
			return err
		}
	}
	return nil
}

func (d *Datastore) removeLock(vm inventory.VMID, generation inventory.Generation) error {
	err := d.root.Remove(lockName(vm, generation))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.wrap("unlock vm "+string(vm)+" on", explain(err))
	}
	return nil
}

func lockName(vm inventory.VMID, generation inventory.Generation) string {
	return locksDir + "/" + string(vm) + ".lock." + strconv.FormatUint(uint64(generation), 10)
}

func checkVM(vm inventory.VMID) error {
	if err := inventory.CheckName("vm id", string(vm)); err != nil {
		return fault.New(fault.Invalid, "vm id %q is not usable in a file name", string(vm))
	}
	return nil
}

// writeOnce makes a file with this content, whole and on the disk, or fails with fs.ErrExist when there is one of that
// name. link(2) makes it appear in one step also on NFS; where the file system has no hard links, O_EXCL does, and a
// reader may find the file short for a moment.
func writeOnce(root *os.Root, name string, content []byte) error {
	tmp := name + ".tmp-" + rand.Text()
	if err := writeNew(root, tmp, content); err != nil {
		return err
	}
	err := root.Link(tmp, name)
	removed := root.Remove(tmp)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOSYS):
		err = writeNew(root, name, content)
	case err == nil:
		err = removed
	}
	if err != nil {
		return err
	}
	return syncDir(root, name)
}

// writeNew writes a file that must not exist. What could not be written whole is removed again.
func writeNew(root *os.Root, name string, content []byte) error {
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if closed := file.Close(); err == nil {
		err = closed // NFS reports a full disk here at the latest
	}
	if err != nil {
		return errors.Join(err, root.Remove(name))
	}
	return nil
}

// syncDir makes the name last: without it a host that loses power may find the file nameless (fsync(2)).
func syncDir(root *os.Root, name string) error {
	parent := "."
	if i := strings.LastIndexByte(name, '/'); i > 0 {
		parent = name[:i]
	}
	dir, err := root.Open(parent)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // a file system whose directories need no sync
	}
	return errors.Join(err, dir.Close())
}

func readSmall(root *os.Root, name string, limit int64) ([]byte, error) {
	file, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // only read
	return io.ReadAll(io.LimitReader(file, limit))
}
