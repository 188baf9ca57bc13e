package lab

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// An agent that has lived for long has carried more to and from the store than the memory stream of the migration that is to be struck. The stream is
// found all the same: a fault that strikes the store's connection instead looks like a strike that came too late, time and again.
func TestTheMemoryStreamIsNoneOfTheStores(t *testing.T) {
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250)) //nolint:gosec // no secret
	carry := func(port, bytes int) net.Conn {
		l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", host, port))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }() // what was accepted stays
		near, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = near.Close() })
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = far.Close() })
		sent := make(chan error, 1)
		go func() {
			_, err := near.Write(make([]byte, bytes))
			sent <- err
		}()
		if _, err := io.CopyN(io.Discard, far, int64(bytes)); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		return near
	}
	carry(2379, 8<<20)
	if _, err := MemoryStream(os.Getpid()); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the store's connection was taken for a memory stream, or it is not said that there is none: %v", err)
	}
	carry(agentPort, 4<<10)
	stream := carry(agentPort, 1<<20)
	wire, err := MemoryStream(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = wire.Close() }() // only looked at
	ports := map[int]bool{}
	for _, end := range []func(int) (unix.Sockaddr, error){unix.Getsockname, unix.Getpeername} {
		at, err := end(wire.fd)
		if err != nil {
			t.Fatal(err)
		}
		ports[at.(*unix.SockaddrInet4).Port] = true
	}
	if want := stream.LocalAddr().(*net.TCPAddr).Port; !ports[want] {
		t.Errorf("found one between ports %v, and it is from %d", ports, want)
	}
}
