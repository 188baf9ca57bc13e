package wire

import (
	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// User returns the message of a user.
func User(u inventory.User) *godwitv1.User {
	return &godwitv1.User{Name: u.Name, Id: u.ID, Role: u.Role.String(), Created: stamp(u.Created), By: u.By}
}

// FromUser returns the user of the message. A role that this version does not know reads as NoRole.
func FromUser(m *godwitv1.User) inventory.User {
	return inventory.User{Name: m.GetName(), ID: m.GetId(), Role: inventory.RoleNamed(m.GetRole()), Created: fromStamp(m.GetCreated()), By: m.GetBy()}
}

// UserToken returns the message of a token, which has no secret.
func UserToken(t inventory.UserToken) *godwitv1.UserToken {
	return &godwitv1.UserToken{Id: t.ID, User: t.User, UserId: t.UserID, Created: stamp(t.Created), Expires: stamp(t.Expires), By: t.By}
}

// FromUserToken returns the token of the message.
func FromUserToken(m *godwitv1.UserToken) inventory.UserToken {
	return inventory.UserToken{
		ID: m.GetId(), User: m.GetUser(), UserID: m.GetUserId(), Created: fromStamp(m.GetCreated()), Expires: fromStamp(m.GetExpires()), By: m.GetBy(),
	}
}
