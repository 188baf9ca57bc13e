package store

import (
	"context"
	"net"
	"net/url"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The bounds of the embedded member. They fit an inventory of some 10,000 VMs and keep the process small: etcd's own
// defaults are made for a Kubernetes cluster.
const (
	quotaBytes          = 512 << 20 // the store refuses writes beyond it
	historyKept         = "1h"      // older revisions are compacted
	snapshotEvery       = 2000      // transactions
	catchUpEntries      = 500       // raft entries kept in memory for a slow member
	defragmentMegabytes = 64        // free at start: then the file is shrunk
	clientPingsMin      = time.Second
	clientRequestsMax   = 4096 // streams of one client
)

// ServerConfig says how the embedded member runs.
type ServerConfig struct {
	Name      string // of the member: the host's id
	Dir       string // data directory, made with mode 0700 when it is not there
	ClientURL string // https://ADDRESS:2379; port 0 takes a free one
	PeerURL   string // https://ADDRESS:2380
	// CAFile, CertFile and KeyFile are PEM files of this host's identity. They serve both ports; each demands a client
	// certificate of the same CA. All three are needed with https, and none with http, which only tests use.
	CAFile, CertFile, KeyFile string
	// LogFile gets etcd's own warnings and errors as JSON lines; empty: stderr.
	LogFile string
	// Ready is called once with the URL that clients can dial, when the member answers. It may be nil.
	Ready func(endpoint string)
	// Proofs is closed upon by Serve's loop: whoever sends a channel there gets it closed while the loop runs. It may be nil.
	Proofs <-chan chan struct{}
}

// Serve runs an embedded etcd member, the only one of its cluster, until ctx ends, and returns when it has written
// everything and let go of its files and ports. It returns nil for an end that ctx asked for. It starts from what is in
// the data directory, or a new store when that is empty.
//
// etcd ends the process by itself when its disk fails under it; the warden starts it again.
func Serve(ctx context.Context, cfg ServerConfig) error {
	conf, err := cfg.etcd()
	if err != nil {
		return fault.Wrap("start", "store", err)
	}
	server, err := embed.StartEtcd(conf)
	if err != nil {
		return fault.New(fault.Unavailable, "start store in %s at %s: check that no other store runs there, that the addresses are this host's, and that the disk is not full: %w", cfg.Dir, cfg.ClientURL, err)
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return fault.New(fault.Internal, "start store in %s: %w", cfg.Dir, err)
	case <-server.Server.StopNotify():
		return fault.New(fault.Internal, "start store in %s: it stopped by itself: see its log", cfg.Dir)
	case <-ctx.Done():
		return nil
	}
	if cfg.Ready != nil {
		cfg.Ready(conf.ListenClientUrls[0].Scheme + "://" + server.Clients[0].Addr().String())
	}
	return cfg.watch(ctx, server)
}

// How often the member is asked to read its own data, and how long that may take: a disk that stands still for seconds is an
// ordinary thing, and killing the member makes it no faster.
const (
	readEvery = 5 * time.Second
	readMax   = 30 * time.Second
)

// watch follows a member that answers, until ctx ends or something is wrong with it.
func (cfg ServerConfig) watch(ctx context.Context, server *embed.Etcd) error {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	var asked time.Time // zero: no read is under way
	read := make(chan struct{}, 1)
	defer func() {
		if !asked.IsZero() { // the member must not be closed under a read; one that hangs is not waited for
			select {
			case <-read:
			case <-time.After(time.Second):
			}
		}
	}()
	for {
		select {
		case proven := <-cfg.Proofs:
			close(proven)
		case <-read:
			asked = time.Time{}
		case <-tick.C:
			if asked.IsZero() {
				asked = time.Now()
				go func() { // ends with the read, or with the process
					_ = server.Server.KV().Rev() // takes the locks that every request takes
					read <- struct{}{}
				}()
			} else if time.Since(asked) > readMax {
				return fault.New(fault.Internal, "store in %s has read nothing for %v: is its disk well?", cfg.Dir, readMax)
			}
		case err := <-server.Err():
			return fault.New(fault.Internal, "store in %s: %w", cfg.Dir, err)
		case <-server.Server.StopNotify():
			return fault.New(fault.Internal, "store in %s stopped by itself: see its log", cfg.Dir)
		case <-ctx.Done():
			return nil
		}
	}
}

func (cfg ServerConfig) etcd() (*embed.Config, error) {
	client, err := cfg.listen("client", cfg.ClientURL)
	if err != nil {
		return nil, err
	}
	peer, err := cfg.listen("peer", cfg.PeerURL)
	if err != nil {
		return nil, err
	}
	if cfg.Name == "" || cfg.Dir == "" {
		return nil, fault.New(fault.Invalid, "it needs a name and a data directory")
	}
	conf := embed.NewConfig()
	conf.Name, conf.Dir = cfg.Name, cfg.Dir
	conf.ListenClientUrls, conf.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	conf.InitialCluster = conf.InitialClusterFromName(cfg.Name)
	conf.InitialClusterToken = "godwit"
	if cfg.CAFile != "" {
		info := transport.TLSInfo{
			CertFile: cfg.CertFile, KeyFile: cfg.KeyFile,
			TrustedCAFile: cfg.CAFile, ClientCertAuth: true,
		}
		conf.ClientTLSInfo, conf.PeerTLSInfo = info, info
		conf.TlsMinVersion = "TLS1.3"
	}

	conf.QuotaBackendBytes = quotaBytes
	conf.AutoCompactionMode, conf.AutoCompactionRetention = embed.CompactorModePeriodic, historyKept
	conf.SnapshotCount, conf.SnapshotCatchUpEntries = snapshotEvery, catchUpEntries
	conf.BootstrapDefragThresholdMegabytes = defragmentMegabytes
	conf.MaxConcurrentStreams = clientRequestsMax
	conf.GRPCKeepAliveMinTime = clientPingsMin

	// The inventory has one door, and it is Open.
	conf.EnableGRPCGateway = false
	conf.ListenMetricsUrls = nil

	// Users are known by their certificates; etcd's own tokens stay off.
	conf.AuthToken = ""

	logger, err := cfg.logger()
	if err != nil {
		return nil, err
	}
	conf.Logger, conf.LogLevel = "zap", "warn"
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return conf, nil
}

// logger writes etcd's warnings and errors. It leaves out what etcd says at every start and end of a member that is well;
// when one of these is in earnest, Serve returns it.
func (cfg ServerConfig) logger() (*zap.Logger, error) {
	conf := logutil.DefaultZapLoggerConfig
	conf.Level = zap.NewAtomicLevelAt(zap.WarnLevel)
	conf.OutputPaths = []string{"stderr"}
	if cfg.LogFile != "" {
		conf.OutputPaths = []string{cfg.LogFile}
	}
	conf.ErrorOutputPaths = conf.OutputPaths
	logger, err := conf.Build(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return calm{core} }))
	if err != nil {
		return nil, fault.New(fault.Internal, "log %s: %w", cfg.LogFile, err)
	}
	return logger, nil
}

var ordinary = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"setting up serving from embedded etcd failed.":                                        true,
	"stopping secure grpc server due to error":                                             true,
	"stopped secure grpc server due to error":                                              true,
}

type calm struct{ zapcore.Core }

// Check leaves out what is ordinary.
func (c calm) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if ordinary[e.Message] {
		return to
	}
	return c.Core.Check(e, to)
}

// With keeps leaving it out.
func (c calm) With(fields []zapcore.Field) zapcore.Core { return calm{c.Core.With(fields)} }

// listen checks one URL. etcd binds addresses, not names.
func (cfg ServerConfig) listen(what, text string) (url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return url.URL{}, fault.New(fault.Invalid, "%s url %q: %w", what, text, err)
	}
	secure := cfg.CAFile != "" && cfg.CertFile != "" && cfg.KeyFile != ""
	switch {
	case net.ParseIP(u.Hostname()) == nil || u.Port() == "":
		return url.URL{}, fault.New(fault.Invalid, "%s url %q: write it as https://ADDRESS:PORT with an IP address", what, text)
	case u.Scheme == "https" && !secure:
		return url.URL{}, fault.New(fault.Invalid, "%s url %q needs the files of the CA, the certificate and its key", what, text)
	case u.Scheme != "https" && (u.Scheme != "http" || cfg.CAFile != ""):
		return url.URL{}, fault.New(fault.Invalid, "%s url %q: the scheme must be https", what, text)
	}
	return *u, nil
}
