package qemu

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"github.com/godwit-vm/godwit/internal/fault"
)

// DefaultUser is the unprivileged user that make setup creates.
const DefaultUser = "godwit-vm"

// User is who QEMU runs as. A nil *User stands for whoever we are, and its methods do nothing.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
}

// LookupUser finds the named user. Its groups are extended by the group of /dev/kvm, unless that is root's.
// Errors: fault.NotFound, fault.Invalid for root, which is no unprivileged user.
func LookupUser(name string) (*User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fault.New(fault.NotFound, "user %s does not exist: run make setup, or create it with useradd --system", name)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fault.New(fault.Internal, "user %s: %w", name, err)
	}
	if uid == 0 {
		return nil, fault.New(fault.Invalid, "user %s is root: qemu runs as an unprivileged user", name)
	}
	found := &User{Name: name, UID: uint32(uid), GID: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fault.New(fault.Internal, "groups of user %s: %w", name, err)
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			found.join(uint32(n))
		}
	}
	if info, err := os.Stat(kvmDevice); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			found.join(st.Gid)
		}
	}
	return found, nil
}

// join adds a group, never root's.
func (u *User) join(gid uint32) {
	if gid != 0 && !slices.Contains(u.Groups, gid) {
		u.Groups = append(u.Groups, gid)
	}
}

// Own makes the user the owner of path: of a socket that QEMU shall connect to, or of an image. On a file system that
// does not let us (NFS with root_squash) it returns fault.Denied.
func (u *User) Own(path string) error {
	if u == nil {
		return nil
	}
	err := os.Lchown(path, int(u.UID), int(u.GID))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "%w: give the file to user %s yourself", err, u.Name)
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "%w", err)
	case err != nil:
		return fault.New(fault.Internal, "%w", err)
	}
	return nil
}

// owns reports whether path already belongs to the user.
func (u *User) owns(path string) bool {
	info, err := os.Stat(path)
	if u == nil || err != nil {
		return u == nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == u.UID
}

// credential is the user as exec wants it, nil for a nil user.
func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}

// String returns the name for messages.
func (u *User) String() string {
	if u == nil {
		return "uid " + strconv.Itoa(os.Geteuid())
	}
	return u.Name
}

// userOf returns the owner of path as far as its number tells; nil when that is us.
func userOf(path string) *User {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return nil
	}
	id := strconv.FormatUint(uint64(st.Uid), 10)
	if u, err := user.LookupId(id); err == nil {
		if found, err := LookupUser(u.Username); err == nil {
			return found
		}
	}
	return &User{Name: "uid " + id, UID: st.Uid, GID: st.Gid}
}
