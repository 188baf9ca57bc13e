package store

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// lastFailure remembers why the latest connection could not be made. gRPC tries again behind the scenes until a call runs
// out of time, and then says only that.
type lastFailure struct {
	mu  sync.Mutex
	err error
}

func (f *lastFailure) set(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
}

func (f *lastFailure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// dialOptions make gRPC dial with short times, come back quickly, and tell f what went wrong.
func dialOptions(conf *tls.Config, f *lastFailure) []grpc.DialOption {
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
		},
	}
	options := []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "tcp", hostPort(address))
			if err != nil || conf == nil {
				f.set(err)
			} // else the handshake that follows says it: until then the former one's error is what is known
			return conn, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectDelayMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectDelayMax},
			MinConnectTimeout: dialTimeout,
		}),
	}
	if conf != nil {
		creds := handshakes{credentials.NewTLS(conf), f}
		options = append(options, grpc.WithTransportCredentials(creds))
	}
	return options
}

// handshakes are TLS credentials that tell what went wrong.
type handshakes struct {
	credentials.TransportCredentials
	failure *lastFailure
}

// ClientHandshake does the handshake and remembers its error.
func (h handshakes) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	h.failure.set(err)
	return conn, info, err
}

// Clone returns credentials that tell the same.
func (h handshakes) Clone() credentials.TransportCredentials {
	return handshakes{h.TransportCredentials.Clone(), h.failure}
}

// hostPort strips the scheme that etcd's resolver may leave in front of an address.
func hostPort(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		return rest
	}
	return address
}
