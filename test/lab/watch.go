package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"

	"connectrpc.com/connect"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/vnet"
)

// AgentURL is what the clients of the API in godwitv1connect take as base URL with a Caller.
const AgentURL = "http://agent"

// Caller returns an HTTP client that reaches the host's agent, whatever its URL says.
func (h *Host) Caller() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols:   protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return h.dialLocal(ctx) },
	}}
}

// WatchMigration calls see with the migration whenever it changed, within a few milliseconds when the host is its source, until see
// returns true. It returns an error when the migration ended before, or the host's agent did.
func (h *Host) WatchMigration(ctx context.Context, id string, see func(*godwitv1.Migration) bool) error {
	caller := h.Caller()
	defer caller.CloseIdleConnections()
	client := godwitv1connect.NewMigrationServiceClient(caller, AgentURL)
	ctx, done := context.WithCancel(ctx)
	defer done()
	stream, err := client.WatchMigration(ctx, connect.NewRequest(&godwitv1.WatchMigrationRequest{Migration: id}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // enough was seen
	var last *godwitv1.Migration
	for stream.Receive() {
		last = stream.Msg().GetMigration()
		if see(last) {
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return fmt.Errorf("migration %s ended as %s: %s", id, last.GetStatus().GetPhase(), last.GetStatus().GetReason())
}

// Switch returns everything about the host's switch.
func (h *Host) Switch(ctx context.Context) (vnet.Status, error) {
	switches := vnet.NewClient(filepath.Join(h.Run, "switch.sock"))
	defer switches.Close()
	return switches.Status(ctx)
}

// Ports returns the ports of the host's switch.
func (h *Host) Ports(ctx context.Context) ([]vnet.PortStatus, error) {
	s, err := h.Switch(ctx)
	return s.Ports, err
}
