package rpc

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/wire"
)

// users implements UserService.
type users struct{ agent *agent.Agent }

// CreateUser makes a user.
func (s *users) CreateUser(ctx context.Context, req *connect.Request[godwitv1.CreateUserRequest]) (*connect.Response[godwitv1.CreateUserResponse], error) {
	u, err := s.agent.Desk().Create(ctx, req.Msg.GetUser(), req.Msg.GetRole())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CreateUserResponse{User: wire.User(u)}), nil
}

// ListUsers lists the users.
func (s *users) ListUsers(ctx context.Context, _ *connect.Request[godwitv1.ListUsersRequest]) (*connect.Response[godwitv1.ListUsersResponse], error) {
	all, err := s.agent.Desk().Users(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListUsersResponse{}
	for _, u := range all {
		resp.Users = append(resp.Users, wire.User(u))
	}
	return connect.NewResponse(resp), nil
}

// SetUserRole gives a user another role.
func (s *users) SetUserRole(ctx context.Context, req *connect.Request[godwitv1.SetUserRoleRequest]) (*connect.Response[godwitv1.SetUserRoleResponse], error) {
	u, err := s.agent.Desk().SetRole(ctx, req.Msg.GetUser(), req.Msg.GetRole())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.SetUserRoleResponse{User: wire.User(u)}), nil
}

// DeleteUser removes a user with all its tokens.
func (s *users) DeleteUser(ctx context.Context, req *connect.Request[godwitv1.DeleteUserRequest]) (*connect.Response[godwitv1.DeleteUserResponse], error) {
	if err := s.agent.Desk().Delete(ctx, req.Msg.GetUser()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.DeleteUserResponse{}), nil
}

// CreateUserToken makes a token and shows it.
func (s *users) CreateUserToken(ctx context.Context, req *connect.Request[godwitv1.CreateUserTokenRequest]) (*connect.Response[godwitv1.CreateUserTokenResponse], error) {
	text, t, err := s.agent.Desk().CreateToken(ctx, req.Msg.GetUser(), req.Msg.GetLifetime().AsDuration())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CreateUserTokenResponse{
		Secret: text, Token: wire.UserToken(t), Address: s.agent.Address, CaHash: s.agent.Identity.CAHash(),
	}), nil
}

// ListUserTokens lists tokens, without what opens them.
func (s *users) ListUserTokens(ctx context.Context, req *connect.Request[godwitv1.ListUserTokensRequest]) (*connect.Response[godwitv1.ListUserTokensResponse], error) {
	all, err := s.agent.Desk().Tokens(ctx, req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListUserTokensResponse{}
	for _, t := range all {
		resp.Tokens = append(resp.Tokens, wire.UserToken(t))
	}
	return connect.NewResponse(resp), nil
}

// RevokeUserToken ends a token.
func (s *users) RevokeUserToken(ctx context.Context, req *connect.Request[godwitv1.RevokeUserTokenRequest]) (*connect.Response[godwitv1.RevokeUserTokenResponse], error) {
	if err := s.agent.Desk().RevokeToken(ctx, strings.TrimSpace(req.Msg.GetToken())); err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.RevokeUserTokenResponse{}), nil
}

// WhoAmI says who calls.
func (s *users) WhoAmI(ctx context.Context, _ *connect.Request[godwitv1.WhoAmIRequest]) (*connect.Response[godwitv1.WhoAmIResponse], error) {
	who := task.CallerOf(ctx)
	return connect.NewResponse(&godwitv1.WhoAmIResponse{Name: who.Name, Role: who.Role.String(), Cluster: s.agent.Identity.Cluster()}), nil
}
