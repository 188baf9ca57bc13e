package vnet

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// switchDir makes this test binary a switch process instead.
const switchDir = "GODWIT_VNET_TEST_SWITCH"

func TestMain(m *testing.M) {
	dir := os.Getenv(switchDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	sw, err := New(Config{
		Host: "host-1", Dir: filepath.Join(dir, "state"), Control: filepath.Join(dir, "switch.sock"), Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		go func() {
			<-sw.Ready()
			_, _ = os.Stdout.WriteString("ready\n")
		}()
		err = sw.Run(context.Background())
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

// A switch process that is killed with -9 in the middle of a TCP stream is started again on what it left behind, and the
// stream goes on.
func TestStreamSurvivesKilledSwitch(t *testing.T) {
	dir, err := os.MkdirTemp("", "vnet") //nolint:usetesting // t.TempDir is too long for a unix socket
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	n := &node{Client: NewClient(filepath.Join(dir, "switch.sock")), t: t, dir: dir}
	kill := spawnSwitch(t, dir)
	must(t, n.SetNetworks(t.Context(), []NetworkSpec{{ID: blue, Gateway: &GatewaySpec{Subnet: "10.77.0.0/24", Forwards: []inventory.PortForward{
		{Listen: freePort(t), Guest: "10.77.0.8:7"},
	}}}}))
	client := n.join("client", macA, netip.MustParsePrefix("10.77.0.8/24"))
	server := n.join("server", macB, netip.MustParsePrefix("10.77.0.9/24"))
	l, err := server.Listen(7)
	must(t, err)
	echo(t, l)
	conn, err := client.DialContext(t.Context(), "tcp", "10.77.0.9:7")
	must(t, err)
	defer func() { _ = conn.Close() }()
	written := make(chan error, 1)
	const bytes = 32 << 20
	go func() {
		chunk := make([]byte, 64<<10)
		for at := 0; at < bytes; at += len(chunk) {
			for i := range chunk {
				chunk[i] = byte((at + i) * 7 >> 3)
			}
			if _, err := conn.Write(chunk); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	buf := make([]byte, 64<<10)
	killed := false
	for at := 0; at < bytes; {
		must(t, conn.SetDeadline(time.Now().Add(20*time.Second))) // of standing still, not of slowness
		k, err := io.ReadFull(conn, buf[:min(len(buf), bytes-at)])
		if err != nil {
			t.Fatalf("after %d bytes: %v", at, err)
		}
		for i := range k {
			if buf[i] != byte((at+i)*7>>3) {
				t.Fatalf("byte %d is wrong", at+i)
			}
		}
		at += k
		if !killed && at > bytes/2 {
			killed = true
			kill()
			spawnSwitch(t, dir)
		}
	}
	must(t, <-written)
	ports, err := n.Ports(t.Context())
	must(t, err)
	if len(ports) != 2 {
		t.Fatalf("after the restart: %d ports, want 2", len(ports))
	}
}

// spawnSwitch runs a switch process and waits until it is ready. It returns how to kill it, which the test's end does too.
func spawnSwitch(t *testing.T, dir string) func() {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), switchDir+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	dead := false
	kill := func() {
		if !dead {
			dead = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("switch process: %q, %v", line, err)
	}
	return kill
}
