package rpc

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/control/task"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// images implements ImageService. A call is answered here when this host has mounted the datastore, else passed on to one that has.
type images struct{ agent *agent.Agent }

// elsewhere returns the API of a host that has mounted the datastore, nil when that is this one.
func (s *images) elsewhere(ctx context.Context, header http.Header, datastore string) (godwitv1connect.ImageServiceClient, error) {
	if header.Get(forwarded) != "" {
		return nil, nil
	}
	host, err := s.agent.HostOf(ctx, datastore)
	if err != nil || host == s.agent.Host() {
		return nil, err
	}
	client, base, err := s.agent.Reach(ctx, host)
	if err != nil {
		return nil, err
	}
	return godwitv1connect.NewImageServiceClient(client, base, markForwarded(s.agent)), nil
}

// ListImages lists the files of a datastore, or of all that this host has mounted.
func (s *images) ListImages(ctx context.Context, req *connect.Request[godwitv1.ListImagesRequest]) (*connect.Response[godwitv1.ListImagesResponse], error) {
	if name := req.Msg.GetDatastore(); name != "" {
		if remote, err := s.elsewhere(ctx, req.Header(), name); remote != nil || err != nil {
			if err != nil {
				return nil, err
			}
			return remote.ListImages(ctx, connect.NewRequest(req.Msg))
		}
	}
	all, err := s.agent.Images(ctx, req.Msg.GetDatastore())
	if err != nil {
		return nil, err
	}
	resp := &godwitv1.ListImagesResponse{}
	for _, i := range all {
		resp.Images = append(resp.Images, wire.Image(i))
	}
	return connect.NewResponse(resp), nil
}

// GetImage answers with one file.
func (s *images) GetImage(ctx context.Context, req *connect.Request[godwitv1.GetImageRequest]) (*connect.Response[godwitv1.GetImageResponse], error) {
	if remote, err := s.elsewhere(ctx, req.Header(), req.Msg.GetFile().GetDatastore()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.GetImage(ctx, connect.NewRequest(req.Msg))
	}
	i, err := s.agent.Image(ctx, wire.FromFile(req.Msg.GetFile()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.GetImageResponse{Image: wire.Image(i)}), nil
}

// CreateImage makes an empty image.
func (s *images) CreateImage(ctx context.Context, req *connect.Request[godwitv1.CreateImageRequest]) (*connect.Response[godwitv1.CreateImageResponse], error) {
	m := req.Msg
	if remote, err := s.elsewhere(ctx, req.Header(), m.GetFile().GetDatastore()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.CreateImage(ctx, connect.NewRequest(m))
	}
	i, err := s.agent.CreateImage(ctx, wire.FromFile(m.GetFile()), inventory.DiskFormat(m.GetFormat()), inventory.Bytes(m.GetSize()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CreateImageResponse{Image: wire.Image(i)}), nil
}

// ImportImage brings an image in. A file is one of the host that is asked, so only a URL is passed on.
func (s *images) ImportImage(ctx context.Context, req *connect.Request[godwitv1.ImportImageRequest]) (*connect.Response[godwitv1.ImportImageResponse], error) {
	m := req.Msg
	if strings.Contains(m.GetSource(), "://") {
		if remote, err := s.elsewhere(ctx, req.Header(), m.GetFile().GetDatastore()); remote != nil || err != nil {
			if err != nil {
				return nil, err
			}
			return remote.ImportImage(ctx, connect.NewRequest(m))
		}
	}
	source := agent.ImageSource{Location: m.GetSource(), Format: inventory.DiskFormat(m.GetSourceFormat()), SHA256: m.GetSha256()}
	// The agent may read every file of the host, its keys too, and an image can be read by whoever makes a VM of it.
	if who := task.CallerOf(ctx); !source.Remote() && !who.Role.May(inventory.Admin) {
		return nil, fault.New(fault.Denied, "%s may not import a file of the host: that takes the role admin: import from an http or https URL", who.Name)
	}
	i, err := s.agent.ImportImage(ctx, wire.FromFile(m.GetFile()), inventory.DiskFormat(m.GetFormat()), source)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.ImportImageResponse{Image: wire.Image(i)}), nil
}

// CloneImage makes a thin clone or a copy, at a host that has mounted the clone's datastore.
func (s *images) CloneImage(ctx context.Context, req *connect.Request[godwitv1.CloneImageRequest]) (*connect.Response[godwitv1.CloneImageResponse], error) {
	m := req.Msg
	if remote, err := s.elsewhere(ctx, req.Header(), m.GetFile().GetDatastore()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.CloneImage(ctx, connect.NewRequest(m))
	}
	i, err := s.agent.CloneImage(ctx, wire.FromFile(m.GetFile()), wire.FromFile(m.GetFrom()), m.GetFull(), inventory.DiskFormat(m.GetFormat()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.CloneImageResponse{Image: wire.Image(i)}), nil
}

// GrowImage makes an image larger.
func (s *images) GrowImage(ctx context.Context, req *connect.Request[godwitv1.GrowImageRequest]) (*connect.Response[godwitv1.GrowImageResponse], error) {
	if remote, err := s.elsewhere(ctx, req.Header(), req.Msg.GetFile().GetDatastore()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.GrowImage(ctx, connect.NewRequest(req.Msg))
	}
	i, err := s.agent.GrowImage(ctx, wire.FromFile(req.Msg.GetFile()), inventory.Bytes(req.Msg.GetSize()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.GrowImageResponse{Image: wire.Image(i)}), nil
}

// DeleteImage removes a file that nobody needs.
func (s *images) DeleteImage(ctx context.Context, req *connect.Request[godwitv1.DeleteImageRequest]) (*connect.Response[godwitv1.DeleteImageResponse], error) {
	if remote, err := s.elsewhere(ctx, req.Header(), req.Msg.GetFile().GetDatastore()); remote != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return remote.DeleteImage(ctx, connect.NewRequest(req.Msg))
	}
	if err := s.agent.DeleteImage(ctx, wire.FromFile(req.Msg.GetFile())); err != nil {
		return nil, err
	}
	return connect.NewResponse(&godwitv1.DeleteImageResponse{}), nil
}
