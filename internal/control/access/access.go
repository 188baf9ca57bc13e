// Package access keeps the users of the cluster and their tokens, and says whose token somebody shows.
//
// It does not judge calls (face/rpc has the table of what each role may), does not count attempts, and knows nothing of users of the machine. Its main
// type is the Desk. Each answer is read from the store when it is asked for: a token that was revoked, or a role that was changed, on any
// host counts for the next question on every other. While the store is away nobody is known.
package access

import (
	"context"
	"time"

	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The life of a user's token.
const (
	tokenLifeDefault = 30 * 24 * time.Hour
	tokenLifeMax     = 366 * 24 * time.Hour
)

// Desk is the host's desk for users. Its methods may be called by many goroutines.
type Desk struct {
	store  *store.Store
	writer *store.Writer
	tasks  *task.Keeper
}

// New returns the Desk of a host, which writes with the host's epoch.
func New(s *store.Store, w *store.Writer, tasks *task.Keeper) *Desk {
	return &Desk{store: s, writer: w, tasks: tasks}
}

// errNotKnown is the answer for a token that never was, one whose secret is wrong and one that was revoked: it does not help to guess.
var errNotKnown = fault.New(fault.Denied, "the cluster does not know this token: it was revoked, or is another cluster's: ask an admin for one (godwit user token create)")

// Token returns the user whose token the text is. A text that is no token is fault.Invalid, a token that is not known any more and one that has
// expired are fault.Denied, and a store that does not answer is fault.Unavailable.
func (d *Desk) Token(ctx context.Context, text string) (inventory.User, error) {
	shown, err := peer.ParseUserToken(text)
	if err != nil {
		return inventory.User{}, err
	}
	kept, user, err := d.store.UserToken(ctx, shown.ID)
	switch {
	case fault.Is(err, fault.NotFound), err == nil && !kept.Opens(shown.Secret[:]):
		return inventory.User{}, errNotKnown
	case err != nil:
		return inventory.User{}, fault.New(fault.Unavailable, "nobody can say whose token this is: %w", err)
	case !time.Now().Before(kept.Expires):
		return inventory.User{}, fault.New(fault.Denied, "the token of user %s expired at %s: ask an admin for another (godwit user token create %s)",
			user.Name, kept.Expires.UTC().Format(time.RFC3339), user.Name)
	}
	return user, nil
}

// User returns the user of that name, or fault.NotFound.
func (d *Desk) User(ctx context.Context, name string) (inventory.User, error) {
	return d.store.User(ctx, name)
}

// Users returns all users, by name.
func (d *Desk) Users(ctx context.Context) ([]inventory.User, error) { return d.store.Users(ctx) }

// Create makes a user. Errors: fault.Invalid for a bad name or role, with all reasons; fault.Exists; fault.NoResources beyond store.UsersMax.
func (d *Desk) Create(ctx context.Context, name, role string) (inventory.User, error) {
	var bad []string
	if err := inventory.CheckUserName(name); err != nil {
		bad = append(bad, err.Error())
	}
	r, err := inventory.ParseRole(role)
	if err != nil {
		bad = append(bad, err.Error())
	}
	if err := fault.Refuse(fault.Invalid, bad); err != nil {
		return inventory.User{}, fault.Wrap("create", "user "+name, err)
	}
	u := inventory.User{Name: name, Role: r, Created: time.Now(), By: task.CallerOf(ctx).Name}
	err = d.tasks.Run(ctx, "user.create", name, name, func(ctx context.Context, _ *task.Task) error {
		u.ID = task.ID(ctx, "user-") // a repeat finds what it has made
		return d.writer.CreateUser(ctx, u)
	})
	return u, err
}

// SetRole gives a user another role, from its next call on. The last admin stays one: fault.Conflict.
func (d *Desk) SetRole(ctx context.Context, name, role string) (inventory.User, error) {
	r, err := inventory.ParseRole(role)
	if err != nil {
		return inventory.User{}, fault.Wrap("set role of", "user "+name, err)
	}
	var u inventory.User
	err = d.tasks.Run(ctx, "user.set-role", name, name, func(ctx context.Context, _ *task.Task) (err error) {
		u, err = d.writer.SetUserRole(ctx, name, r)
		return err
	})
	return u, err
}

// Delete removes a user and its tokens. The last admin stays: fault.Conflict.
func (d *Desk) Delete(ctx context.Context, name string) error {
	return d.tasks.Run(ctx, "user.delete", name, name, func(ctx context.Context, _ *task.Task) error {
		return d.writer.DeleteUser(ctx, name)
	})
}

// CreateToken makes a token for a user that is good for life; 0 is 30 days. The text is returned this once and kept nowhere.
func (d *Desk) CreateToken(ctx context.Context, name string, life time.Duration) (text string, t inventory.UserToken, err error) {
	if life == 0 {
		life = tokenLifeDefault
	}
	if life < 0 || life > tokenLifeMax {
		return "", t, fault.New(fault.Invalid, "create token of user %s: a life of %v is not possible: take up to %d days", name, life, tokenLifeMax/(24*time.Hour))
	}
	secret, salt := peer.NewUserToken()
	kept := store.UserToken{UserToken: inventory.UserToken{
		ID: secret.ID, User: name, Created: time.Now(), Expires: time.Now().Add(life), By: task.CallerOf(ctx).Name,
	}}
	kept.Seal(salt, secret.Secret[:])
	err = d.tasks.Run(ctx, "user.create-token", name, name, func(ctx context.Context, t *task.Task) error {
		u, err := d.store.User(ctx, name)
		if err != nil {
			return err
		}
		kept.UserID = u.ID
		t.Result(kept.ID)
		return d.writer.CreateUserToken(ctx, kept)
	})
	if err != nil {
		return "", t, err
	}
	return secret.Text(), kept.UserToken, nil
}

// Tokens returns the tokens of a user, of all users for an empty name, without what opens them.
func (d *Desk) Tokens(ctx context.Context, user string) ([]inventory.UserToken, error) {
	if user != "" {
		if _, err := d.store.User(ctx, user); err != nil {
			return nil, err
		}
	}
	kept, err := d.store.UserTokens(ctx, user)
	if err != nil {
		return nil, err
	}
	all := make([]inventory.UserToken, len(kept))
	for i, t := range kept {
		all[i] = t.UserToken
	}
	return all, nil
}

// RevokeToken ends a token: no call that begins afterwards, on any host, is answered for it.
func (d *Desk) RevokeToken(ctx context.Context, id string) error {
	return d.tasks.Run(ctx, "user.revoke-token", id, "", func(ctx context.Context, _ *task.Task) error {
		return d.writer.RevokeUserToken(ctx, id)
	})
}
