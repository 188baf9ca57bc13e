package store

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// The bounds of users and their tokens. They are looked at before a record is made and not in its transaction: hosts that make some at the
// same moment may end up a few above.
const (
	UsersMax      = 1000
	UserTokensMax = 20 // of one user; with the user they go in one transaction, which may have 128 operations
	// userTokenKept is how long an expired token is remembered, so that whoever calls with it is told so.
	userTokenKept = 30 * 24 * time.Hour
)

// UserToken is a user's token as it is stored. Its secret is random with 256 bits: a plain SHA-256 of it cannot be searched, and the salt
// keeps equal secrets, should a generator ever fail, from showing as equal records.
type UserToken struct {
	inventory.UserToken

	Salt []byte
	Hash []byte // SHA-256 of salt and secret
}

// Seal sets salt and hash for a secret.
func (t *UserToken) Seal(salt, secret []byte) { t.Salt, t.Hash = salt, saltedHash(salt, secret) }

// Opens reports whether the secret is the token's, in a time that does not depend on how much of it is right.
func (t *UserToken) Opens(secret []byte) bool {
	return len(t.Hash) == sha256.Size && subtle.ConstantTimeCompare(t.Hash, saltedHash(t.Salt, secret)) == 1
}

func saltedHash(salt, secret []byte) []byte {
	h := sha256.New()
	h.Write(salt)
	h.Write(secret)
	return h.Sum(nil)
}

func userTokenMessage(t UserToken) *godwitv1.StoredUserToken {
	return &godwitv1.StoredUserToken{Token: wire.UserToken(t.UserToken), Salt: t.Salt, Hash: t.Hash}
}

func fromUserTokenMessage(m *godwitv1.StoredUserToken) UserToken {
	return UserToken{UserToken: wire.FromUserToken(m.GetToken()), Salt: m.GetSalt(), Hash: m.GetHash()}
}

func noUser(name string) error {
	return fault.New(fault.NotFound, "no user %q: see godwit user ls", name)
}

func noUserToken(id string) error {
	return fault.New(fault.NotFound, "no token %q: see godwit user token ls", id)
}

// User returns the user of that name, or fault.NotFound.
func (s *Store) User(ctx context.Context, name string) (inventory.User, error) {
	if checkID("user", name) != nil {
		return inventory.User{}, noUser(name)
	}
	rec, revision, err := load(ctx, s, keyUser(name), users)
	if err != nil {
		return inventory.User{}, fault.Wrap("read", "user "+name, err)
	}
	if revision == 0 {
		return inventory.User{}, noUser(name)
	}
	return rec.value, nil
}

// Users returns all users as of one moment, by name.
func (s *Store) Users(ctx context.Context) ([]inventory.User, error) {
	all, _, err := s.users(ctx)
	return all, fault.Wrap("list", "users", err)
}

// users also returns the revision at which each was last written.
func (s *Store) users(ctx context.Context) ([]inventory.User, map[string]int64, error) {
	resp, err := s.get(ctx, rootUser, clientv3.WithPrefix())
	if err != nil {
		return nil, nil, err
	}
	var all []inventory.User
	revisions := map[string]int64{}
	for _, kv := range resp.Kvs {
		u, err := read(users, string(kv.Key), kv)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, u)
		revisions[u.Name] = kv.ModRevision
	}
	return all, revisions, nil
}

// CreateUser records a user. A repeat with the same id is done already; another user of the name is fault.Exists, and UsersMax users
// are fault.NoResources.
func (w *Writer) CreateUser(ctx context.Context, u inventory.User) error {
	if err := checkID("user", u.Name); err != nil {
		return err
	}
	if u.ID == "" || u.Role == inventory.NoRole {
		return fault.New(fault.Invalid, "create user %s: it needs an id and a role", u.Name)
	}
	count, err := w.s.get(ctx, rootUser, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fault.Wrap("create", "user "+u.Name, err)
	}
	if count.Count >= UsersMax {
		return fault.New(fault.NoResources, "create user %s: there are %d, the most that there may be: delete some", u.Name, count.Count)
	}
	value, err := users.pack(u)
	if err != nil {
		return fault.Wrap("create", "user "+u.Name, err)
	}
	done, err := w.commit(ctx, []clientv3.Cmp{absent(keyUser(u.Name))}, clientv3.OpPut(keyUser(u.Name), value))
	if err != nil {
		return fault.Wrap("create", "user "+u.Name, err)
	}
	if !done {
		there, err := w.s.User(ctx, u.Name)
		if err == nil && there.ID == u.ID {
			return nil
		}
		return fault.New(fault.Exists, "create user %s: there is one of that name: change it with godwit user set-role", u.Name)
	}
	return nil
}

// SetUserRole gives the user another role. The cluster's last admin stays one: fault.Conflict.
func (w *Writer) SetUserRole(ctx context.Context, name string, role inventory.Role) (inventory.User, error) {
	if role == inventory.NoRole {
		return inventory.User{}, fault.New(fault.Invalid, "set role of user %s: a user has a role", name)
	}
	return w.changeUser(ctx, "set role of", name, func(old stored[inventory.User]) (inventory.User, []clientv3.Op, error) {
		u := old.value
		u.Role = role
		text, err := users.repack(old, u)
		return u, []clientv3.Op{clientv3.OpPut(keyUser(name), text)}, err
	})
}

// DeleteUser removes the user, and all its tokens in the same transaction. The cluster's last admin stays: fault.Conflict.
func (w *Writer) DeleteUser(ctx context.Context, name string) error {
	_, err := w.changeUser(ctx, "delete", name, func(stored[inventory.User]) (inventory.User, []clientv3.Op, error) {
		mine, err := w.s.UserTokens(ctx, name)
		ops := []clientv3.Op{clientv3.OpDelete(keyUser(name))}
		for _, t := range mine {
			ops = append(ops, clientv3.OpDelete(keyUserToken(t.ID)))
		}
		return inventory.User{}, ops, err
	})
	return err
}

// changeUser writes what change makes of the user. If the user is an admin now and is none afterwards, the transaction compares that
// another admin's record has not changed: of two admins who end each other at the same moment one stays.
func (w *Writer) changeUser(ctx context.Context, op, name string, change func(stored[inventory.User]) (inventory.User, []clientv3.Op, error)) (inventory.User, error) {
	if checkID("user", name) != nil {
		return inventory.User{}, noUser(name)
	}
	for range attemptsMax {
		old, revision, err := load(ctx, w.s, keyUser(name), users)
		if err != nil {
			return inventory.User{}, fault.Wrap(op, "user "+name, err)
		}
		if revision == 0 {
			return inventory.User{}, noUser(name)
		}
		u, ops, err := change(old)
		if err != nil {
			return inventory.User{}, fault.Wrap(op, "user "+name, err)
		}
		cmps := []clientv3.Cmp{unchanged(keyUser(name), revision)}
		if old.value.Role == inventory.Admin && u.Role != inventory.Admin {
			other, at, err := w.otherAdmin(ctx, name)
			if err != nil {
				return inventory.User{}, fault.Wrap(op, "user "+name, err)
			}
			cmps = append(cmps, unchanged(keyUser(other), at))
		}
		done, err := w.commit(ctx, cmps, ops...)
		if err != nil {
			return inventory.User{}, fault.Wrap(op, "user "+name, err)
		}
		if done {
			return u, nil
		}
	}
	return inventory.User{}, fault.New(fault.Conflict, "%s user %s: users were changed by others %d times meanwhile: try again", op, name, attemptsMax)
}

func (w *Writer) otherAdmin(ctx context.Context, name string) (other string, revision int64, err error) {
	all, revisions, err := w.s.users(ctx)
	if err != nil {
		return "", 0, err
	}
	for _, u := range all {
		if u.Name != name && u.Role == inventory.Admin {
			return u.Name, revisions[u.Name], nil
		}
	}
	return "", 0, fault.New(fault.Conflict, "it is the last admin: make another one first")
}

// UserTokens returns the tokens of a user, of all users for an empty name, as of one moment.
func (s *Store) UserTokens(ctx context.Context, user string) ([]UserToken, error) {
	resp, err := s.get(ctx, rootUserToken, clientv3.WithPrefix())
	if err != nil {
		return nil, fault.Wrap("list", "user tokens", err)
	}
	var all []UserToken
	for _, kv := range resp.Kvs {
		t, err := read(userTokens, string(kv.Key), kv)
		if err != nil {
			return nil, fault.Wrap("list", "user tokens", err)
		}
		if user == "" || t.User == user {
			all = append(all, t)
		}
	}
	return all, nil
}

// UserToken returns a token and the user that it was made for, neither older than the call: a token that was revoked
// before it, on any host, is fault.NotFound. So is one whose user is gone, whoever has the name now.
func (s *Store) UserToken(ctx context.Context, id string) (UserToken, inventory.User, error) {
	if checkID("token", id) != nil {
		return UserToken{}, inventory.User{}, noUserToken(id)
	}
	rec, revision, err := load(ctx, s, keyUserToken(id), userTokens)
	if err != nil {
		return UserToken{}, inventory.User{}, fault.Wrap("read", "token "+id, err)
	}
	if revision == 0 {
		return UserToken{}, inventory.User{}, noUserToken(id)
	}
	u, err := s.User(ctx, rec.value.User)
	if err == nil && u.ID != rec.value.UserID || fault.Is(err, fault.NotFound) {
		return UserToken{}, inventory.User{}, noUserToken(id)
	}
	return rec.value, u, err
}

// CreateUserToken records a token of the user that its UserID names. It forgets the user's tokens that expired more than
// userTokenKept ago; UserTokensMax others are fault.NoResources.
func (w *Writer) CreateUserToken(ctx context.Context, t UserToken) error {
	if err := checkID("token", t.ID); err != nil {
		return err
	}
	if len(t.Salt) == 0 || len(t.Hash) != sha256.Size || t.Expires.IsZero() {
		return fault.New(fault.Invalid, "create token: it needs a salt, a hash and a time at which it expires")
	}
	what := "token of user " + t.User
	user, revision, err := load(ctx, w.s, keyUser(t.User), users)
	if err != nil {
		return fault.Wrap("create", what, err)
	}
	if revision == 0 || user.value.ID != t.UserID {
		return noUser(t.User)
	}
	mine, err := w.s.UserTokens(ctx, t.User)
	if err != nil {
		return fault.Wrap("create", what, err)
	}
	var ops []clientv3.Op
	left := 0
	for _, other := range mine {
		if time.Since(other.Expires) > userTokenKept {
			ops = append(ops, clientv3.OpDelete(keyUserToken(other.ID)))
		} else {
			left++
		}
	}
	if left >= UserTokensMax {
		return fault.New(fault.NoResources, "create %s: there are %d, the most that a user may have: revoke some with godwit user token revoke", what, left)
	}
	value, err := userTokens.pack(t)
	if err != nil {
		return fault.Wrap("create", what, err)
	}
	ops = append(ops, clientv3.OpPut(keyUserToken(t.ID), value))
	done, err := w.commit(ctx, []clientv3.Cmp{exists(keyUser(t.User)), absent(keyUserToken(t.ID))}, ops...)
	if err != nil {
		return fault.Wrap("create", what, err)
	}
	if !done {
		return fault.New(fault.Conflict, "create %s: the user was deleted meanwhile", what)
	}
	return nil
}

// RevokeUserToken forgets a token: no call that begins afterwards is answered for it. One that there is not is fault.NotFound.
func (w *Writer) RevokeUserToken(ctx context.Context, id string) error {
	if checkID("token", id) != nil {
		return noUserToken(id)
	}
	done, err := w.commit(ctx, []clientv3.Cmp{exists(keyUserToken(id))}, clientv3.OpDelete(keyUserToken(id)))
	if err != nil {
		return fault.Wrap("revoke", "token "+id, err)
	}
	if !done {
		return noUserToken(id)
	}
	return nil
}
