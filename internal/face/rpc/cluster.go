package rpc

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// clusters implements ClusterService.
type clusters struct{ agent *agent.Agent }

// GetCluster says how the cluster is.
func (s *clusters) GetCluster(ctx context.Context, _ *connect.Request[godwitv1.GetClusterRequest]) (*connect.Response[godwitv1.GetClusterResponse], error) {
	c, err := s.agent.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.GetClusterResponse{Name: c.Name, Leader: string(c.Leader), Revision: c.Store.Revision, Full: c.Store.Full, Alarms: c.Alarms}
	for _, m := range c.Store.Members {
		resp.Members = append(resp.Members, &godwitv1.StoreMember{
			Name: m.Name, Endpoint: m.Endpoint, Version: m.Version, Leader: m.Leader, Learner: m.Learner, Term: m.RaftTerm,
			Size: int64(m.Size), InUse: int64(m.InUse), Quota: int64(m.Quota), NoSpace: m.NoSpace, Corrupt: m.Corrupt, Error: m.Err,
		})
	}
	for _, one := range c.Certificates {
		shown := &godwitv1.Certificate{Subject: one.Subject, Error: one.Err}
		if one.Err == "" {
			shown.Expires = timestamppb.New(one.Expires)
		}
		resp.Certificates = append(resp.Certificates, shown)
	}
	for _, setting := range c.Settings {
		resp.Settings = append(resp.Settings, &godwitv1.Setting{Name: setting[0], Value: setting[1]})
	}
	return connect.NewResponse(resp), nil
}

// pieceSize is how much of a snapshot one message carries.
const pieceSize = 128 << 10

// BackUp streams the store to a user of this machine. A backup holds everything that the cluster knows, so the gate gives it to nobody else.
func (s *clusters) BackUp(ctx context.Context, _ *connect.Request[godwitv1.BackUpRequest], out *connect.ServerStream[godwitv1.BackUpResponse]) error {
	m, snapshot, err := s.agent.BackUp(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = snapshot.Close() }() // it was read to its end, or an error is told
	head := &godwitv1.BackupHead{
		Cluster: m.Cluster, Host: string(m.Host), Version: m.Version, Etcd: m.Etcd, Revision: m.Revision, Members: m.Members, Vms: int32(m.VMs), Ca: s.agent.Identity.CA(), //nolint:gosec // VMs are counted in thousands
	}
	if err := out.Send(&godwitv1.BackUpResponse{Head: head}); err != nil {
		return err
	}
	piece := make([]byte, pieceSize)
	for {
		n, err := io.ReadFull(snapshot, piece)
		if n > 0 {
			if err := out.Send(&godwitv1.BackUpResponse{Piece: piece[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fault.New(fault.Unavailable, "back up store: it broke off: %w", err)
		}
	}
}

// RotateCertificate gives this host a new certificate, or asks the one that is named to get one.
func (s *clusters) RotateCertificate(ctx context.Context, req *connect.Request[godwitv1.RotateCertificateRequest]) (*connect.Response[godwitv1.RotateCertificateResponse], error) {
	host := inventory.HostID(req.Msg.GetHost())
	if host != "" && host != s.agent.Host() && req.Header().Get(forwarded) == "" {
		client, base, err := s.agent.Reach(ctx, host)
		if err != nil {
			return nil, err
		}
		return godwitv1connect.NewClusterServiceClient(client, base, markForwarded(s.agent)).RotateCertificate(ctx, connect.NewRequest(req.Msg))
	}
	expires, err := s.agent.RotateCertificate(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.RotateCertificateResponse{Host: string(s.agent.Host()), Expires: timestamppb.New(expires)}), nil
}

// certificates implements CertificateService, which only other hosts reach.
type certificates struct{ agent *agent.Agent }

// SignCertificate signs for the host that calls, and for no other.
func (s *certificates) SignCertificate(ctx context.Context, req *connect.Request[godwitv1.SignCertificateRequest]) (*connect.Response[godwitv1.SignCertificateResponse], error) {
	host := hostOf(ctx)
	if host == "" || req.Header().Get(forwarded) != "" {
		return nil, fault.New(fault.Denied, "only a host has its own certificate signed")
	}
	certificate, err := s.agent.SignCertificate(ctx, host, req.Msg.GetCsr())
	return connect.NewResponse(&godwitv1.SignCertificateResponse{Certificate: certificate}), err
}
