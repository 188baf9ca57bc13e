package migrate

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
)

// pair returns both ends of a unix connection, which is what QEMU and the agent have.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestRelayPassesBothWaysAndEachEnd(t *testing.T) {
	source, near := pair(t)
	far, target := pair(t)
	var relay Relay
	done := make(chan error, 1)
	go func() { done <- relay.Run(context.Background(), near, far) }()

	memory := make([]byte, 3<<20)
	_, _ = rand.Read(memory)
	var ends errgroup.Group
	ends.Go(func() error {
		_, err := source.Write(memory)
		return errors.Join(err, source.CloseWrite()) // the forward path ends first, as QEMU's does
	})
	got, err := io.ReadAll(target)
	if err != nil || !bytes.Equal(got, memory) {
		t.Fatalf("%d of %d bytes arrived (%v)", len(got), len(memory), err)
	}
	if _, err := target.Write([]byte("shut")); err != nil { // the return path still works
		t.Fatal(err)
	}
	target.Close()
	back, err := io.ReadAll(source)
	if err != nil || string(back) != "shut" {
		t.Errorf("return path carried %q (%v)", back, err)
	}
	if err := errors.Join(ends.Wait(), <-done); err != nil {
		t.Error(err)
	}
	if relay.Sent() != int64(len(memory)) {
		t.Errorf("%d bytes counted of %d", relay.Sent(), len(memory))
	}
}

func TestRelayIsCutByItsContext(t *testing.T) {
	source, near := pair(t)
	far, target := pair(t)
	ctx, cut := context.WithCancelCause(context.Background())
	var relay Relay
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx, near, far) }()
	if _, err := source.Write([]byte("page")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(target, buf); err != nil {
		t.Fatal(err)
	}
	why := errors.New("no progress")
	cut(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
	for _, end := range []net.Conn{source, target} {
		if _, err := end.Read(buf); err == nil {
			t.Error("an end is still open")
		}
	}
}

func TestRelayEndsWhenOneSideDies(t *testing.T) {
	source, near := pair(t)
	far, target := pair(t)
	var relay Relay
	done := make(chan error, 1)
	go func() { done <- relay.Run(context.Background(), near, far) }()
	target.Close() // killed: both directions at once
	// The source learns of it when it writes next, as QEMU does.
	for {
		if _, err := source.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := <-done; err == nil {
		t.Error("a broken stream ended as if in order")
	}
}
