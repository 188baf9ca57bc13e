package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/procfs"
	"google.golang.org/protobuf/types/known/durationpb"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/internal/driver/qemu"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/test/lab"
)

// moved is a guest that Godwit moves, between the first two hosts of a cluster.
type moved struct {
	cluster *lab.Cluster
	name    string
	id      string
	at      int   // index of its host
	agents  []int // their PIDs
}

// newMoved boots the Linux guest on the first host.
func newMoved(ctx context.Context, c *lab.Cluster, name string, memory inventory.Bytes) (*moved, *godwitv1.VM, error) {
	first := c.Hosts[0]
	if _, err := first.LinuxVM(ctx, name, memory, diskSize); err != nil {
		return nil, nil, err
	}
	vm, err := first.VM(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	g := &moved{cluster: c, name: name, id: vm.GetId()}
	for _, h := range c.Hosts {
		pid, err := h.PID(ctx, "agent")
		if err != nil {
			return nil, nil, err
		}
		g.agents = append(g.agents, pid)
	}
	return g, vm, nil
}

func (g *moved) host() *lab.Host { return g.cluster.Hosts[g.at] }

func (g *moved) control() string {
	return qemu.RunDir(filepath.Join(g.host().Run, "vms", g.id)).Control()
}

func (g *moved) resume(ctx context.Context) error {
	_, err := g.host().Godwit(ctx, "vm", "resume", g.name)
	return err
}

func (g *moved) suspend(ctx context.Context) error {
	_, err := g.host().Godwit(ctx, "vm", "pause", g.name)
	return err
}

func (g *moved) close(ctx context.Context) error {
	if _, err := g.host().Godwit(ctx, "vm", "stop", g.name, "--force"); err != nil {
		return err
	}
	_, err := g.host().Godwit(ctx, "vm", "destroy", g.name, "--delete-disks")
	return err
}

// migrate moves the guest to the other host through the API of the one that has it, and follows it there as vm migrate does.
func (g *moved) migrate(ctx context.Context, o options) (Sample, error) {
	after := context.WithoutCancel(ctx)
	target := g.cluster.Hosts[1-g.at]
	web := local(g.host().Socket)
	defer web.CloseIdleConnections()
	vms := godwitv1connect.NewVMServiceClient(web, "http://agent")
	migrations := godwitv1connect.NewMigrationServiceClient(web, "http://agent")
	busy := cpuOf(g.agents)
	clock := startClock()
	resp, err := vms.MigrateVM(ctx, connect.NewRequest(&godwitv1.MigrateVMRequest{
		Vm: g.name, Target: target.Name, Bandwidth: int64(o.bandwidth), DowntimeMax: durationpb.New(o.downtime),
	}))
	if err != nil {
		return Sample{}, fmt.Errorf("migrate %s: %w", g.name, err)
	}
	clock.mark("answered")
	id := resp.Msg.GetMigration().GetId()
	last, err := watch(ctx, clock, migrations, id)
	if err != nil && ctx.Err() != nil {
		_, err := migrations.CancelMigration(after, connect.NewRequest(&godwitv1.CancelMigrationRequest{Migration: id}))
		if err != nil {
			return Sample{}, fmt.Errorf("cancel %s: %w", id, err)
		}
		return Sample{Failed: tooLong, Phases: clock.phases}, nil
	}
	if err != nil {
		return Sample{}, fmt.Errorf("watch %s: %w", id, err)
	}
	if phase := last.GetStatus().GetPhase(); phase != inventory.Completed.String() {
		return Sample{Failed: phase + ": " + last.GetStatus().GetReason(), Phases: clock.phases}, nil
	}
	g.at = 1 - g.at
	r := last.GetStatus().GetResult()
	copying, ran := clock.at("pre-copy", "switchover"), clock.at("on-target", "completed")
	s := Sample{
		Total: clock.at("completed"), Running: ran, Waited: copying, Copy: clock.at("released", "on-target", "completed") - copying,
		Pause: milliseconds(r.GetStopToResume().AsDuration()), Downtime: milliseconds(r.GetDowntime().AsDuration()),
		Bytes: r.GetSent(), Rounds: int(r.GetRounds()), Phases: clock.phases,
		AgentCPU: milliseconds(cpuOf(g.agents) - busy),
	}
	return s, nil
}

// watch follows a migration to its end and marks when each phase was first seen.
func watch(ctx context.Context, clock *clock, migrations godwitv1connect.MigrationServiceClient, id string) (*godwitv1.Migration, error) {
	stream, err := migrations.WatchMigration(ctx, connect.NewRequest(&godwitv1.WatchMigrationRequest{Migration: id}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }() // read to its end or given up
	var last *godwitv1.Migration
	for stream.Receive() {
		last = stream.Msg().GetMigration()
		clock.once(last.GetStatus().GetPhase())
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if last == nil {
		return nil, errors.New("it was never seen")
	}
	return last, nil
}

// local returns a client of the agent behind a unix socket.
func local(socket string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", socket)
		},
	}}
}

// cpuOf returns the processor time that the processes have used so far, as the kernel counts it, in steps of 10 ms.
func cpuOf(pids []int) time.Duration {
	var sum float64
	for _, pid := range pids {
		proc, err := procfs.NewProc(pid)
		if err != nil {
			continue
		}
		if stat, err := proc.Stat(); err == nil {
			sum += stat.CPUTime()
		}
	}
	return time.Duration(sum * float64(time.Second))
}
