package store

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// The bounds of the embedded member. They fit an inventory of some 10,000 VMs and keep the process small: etcd's own
// defaults are made for a Kubernetes cluster.
const (
	quotaBytes          = 512 << 20 // the store refuses writes beyond it
	historyKept         = "1h"      // older revisions are compacted by etcd itself; the leader does that long before (control/cluster)
	snapshotEvery       = 2000      // transactions
	catchUpEntries      = 500       // raft entries kept in memory for a slow member
	defragmentMegabytes = 64        // free at start: then the file is shrunk
	clientPingsMin      = time.Second
	clientRequestsMax   = 4096 // streams of one client
)

// ServerConfig says how the embedded member runs.
type ServerConfig struct {
	Name string // of the member: the host's id
	// Join makes the member one that the store knows already (Term.AddMember): all members with their peer URLs, as
	// MemberPlan.Join has them. Empty founds a store. It counts only for as long as Dir is empty.
	Join string
	// MemberID is that of the member that the host remembers to have; 0: none. It founds no store with one: there was a store, whose
	// data was moved away.
	MemberID  uint64
	Dir       string // data directory, made with mode 0700 when it is not there
	ClientURL string // https://ADDRESS:2379; port 0 takes a free one
	PeerURL   string // https://ADDRESS:2380
	// CAFile, CertFile and KeyFile are PEM files of this host's identity. They serve both ports; each demands a client
	// certificate of the same CA. All three are needed with https, and none with http, which only tests use.
	CAFile, CertFile, KeyFile string
	// CRLFile lists the certificates that the CA has taken back; it is read at every handshake on both ports. Empty: none is.
	CRLFile string
	// LogFile gets etcd's own warnings and errors as JSON lines; empty: stderr.
	LogFile string
	// Quota is how large the member's file may become; 0: 512 MiB. All members of a store have the same.
	Quota inventory.Bytes
	// Ready is called once with the URL that clients can dial, when the member answers. It may be nil.
	Ready func(endpoint string)
	// Proofs is closed upon by Serve's loop: whoever sends a channel there gets it closed while the loop runs. It may be nil.
	Proofs <-chan chan struct{}
}

// Serve runs an embedded etcd member until ctx ends, and returns when it has written everything and let go of its files and ports. It
// returns nil for an end that ctx asked for. It starts from what is in the data directory; when that is empty it founds a store, or joins
// one as cfg.Join says. A directory that once held a member and is empty now is fault.Conflict: a member that has forgotten what it
// voted for must not vote again under the same name.
//
// A member that was removed from its store ends with fault.Denied, also at each start after that.
//
// etcd ends the process by itself when its disk fails under it; the warden starts it again.
func Serve(ctx context.Context, cfg ServerConfig) error {
	removed := new(atomic.Bool)
	conf, err := cfg.etcd(removed)
	if err != nil {
		return fault.Wrap("start", "store", err)
	}
	if err := cfg.checkBorn(); err != nil {
		return err
	}
	server, err := embed.StartEtcd(conf)
	if err != nil {
		return fault.New(fault.Unavailable, "start store in %s at %s: check that no other store runs there, that the addresses are this host's, and that the disk is not full: %w", cfg.Dir, cfg.ClientURL, err)
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return cfg.stopped(removed, err)
	case <-server.Server.StopNotify():
		return cfg.stopped(removed, errors.New("it stopped by itself: see its log"))
	case <-ctx.Done():
		return nil
	}
	if err := noteBorn(cfg.Dir); err != nil {
		return err
	}
	if cfg.Ready != nil {
		cfg.Ready(conf.ListenClientUrls[0].Scheme + "://" + server.Clients[0].Addr().String())
	}
	return cfg.watch(ctx, server, removed)
}

// How often the member is asked to read its own data, and how long that may take: a disk that stands still for seconds is an
// ordinary thing, and killing the member makes it no faster.
const (
	readEvery = 5 * time.Second
	readMax   = 30 * time.Second
)

// watch follows a member that answers, until ctx ends or something is wrong with it.
func (cfg ServerConfig) watch(ctx context.Context, server *embed.Etcd, removed *atomic.Bool) error {
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
			return cfg.stopped(removed, err)
		case <-server.Server.StopNotify():
			return cfg.stopped(removed, errors.New("it stopped by itself: see its log"))
		case <-ctx.Done():
			return nil
		}
	}
}

// stopped says why a member has stopped by itself; err is what is known without a closer look.
func (cfg ServerConfig) stopped(removed *atomic.Bool, err error) error {
	if removed.Load() {
		return fault.New(fault.Denied, "store in %s: this member was removed from the cluster's store", cfg.Dir)
	}
	return fault.New(fault.Internal, "store in %s: %w", cfg.Dir, err)
}

// born is the file beside a data directory that says that there was a member in it.
func born(dir string) string { return filepath.Clean(dir) + ".born" }

func noteBorn(dir string) error {
	if _, err := os.Stat(born(dir)); err == nil {
		return nil
	}
	f, err := os.OpenFile(born(dir), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fault.New(fault.NoResources, "start store: %w", err)
	}
	return nil
}

func (cfg ServerConfig) checkBorn() error {
	if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
		return nil
	}
	if _, err := os.Stat(born(cfg.Dir)); err != nil && (cfg.Join != "" || cfg.MemberID == 0) {
		return nil // there never was a member
	}
	return fault.New(fault.Conflict, "start store: %s held a member of the store and is empty now: a member must not forget what it has promised to the others: "+
		"they place another one by themselves; if this was the only one, use godwit cluster restore", cfg.Dir)
}

// RemoveData removes the data directory of a member that does not run, so that another one may begin there.
func RemoveData(dir string) error {
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(born(dir))); err != nil {
		return fault.New(fault.Internal, "remove store: %w", err)
	}
	return nil
}

func (cfg ServerConfig) etcd(removed *atomic.Bool) (*embed.Config, error) {
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
	if cfg.Join != "" {
		conf.InitialCluster, conf.ClusterState = cfg.Join, embed.ClusterStateFlagExisting
	}
	conf.InitialClusterToken = "godwit"
	conf.StrictReconfigCheck, conf.PreVote = true, true
	if cfg.CAFile != "" {
		info := transport.TLSInfo{
			CertFile: cfg.CertFile, KeyFile: cfg.KeyFile,
			TrustedCAFile: cfg.CAFile, ClientCertAuth: true, CRLFile: cfg.CRLFile,
			// A host is who its certificate says, from whichever of its addresses it dials; and etcd would ask the DNS for its name.
			SkipClientSANVerify: true,
		}
		conf.ClientTLSInfo, conf.PeerTLSInfo = info, info
		conf.TlsMinVersion = "TLS1.3"
	}

	conf.QuotaBackendBytes = quotaBytes
	if cfg.Quota > 0 {
		conf.QuotaBackendBytes = int64(cfg.Quota)
	}
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

	logger, err := cfg.logger(removed)
	if err != nil {
		return nil, err
	}
	conf.Logger, conf.LogLevel = "zap", "warn"
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return conf, nil
}

// logger writes etcd's warnings and errors. It leaves out what etcd says at every start and end of a member that is well;
// when one of these is in earnest, Serve returns it.
func (cfg ServerConfig) logger(removed *atomic.Bool) (*zap.Logger, error) {
	conf := logutil.DefaultZapLoggerConfig
	conf.Level = zap.NewAtomicLevelAt(zap.WarnLevel)
	conf.OutputPaths = []string{"stderr"}
	if cfg.LogFile != "" {
		conf.OutputPaths = []string{cfg.LogFile}
	}
	conf.ErrorOutputPaths = conf.OutputPaths
	logger, err := conf.Build(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return calm{core, removed} }))
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

// saysRemoved is what etcd writes when the others tell a member that it is none any more; there is no other way to learn of it.
const saysRemoved = "data-dir used by this member must be removed"

type calm struct {
	zapcore.Core

	removed *atomic.Bool // set when this member is none any more
}

// Check leaves out what is ordinary.
func (c calm) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Message == saysRemoved {
		c.removed.Store(true)
	}
	if ordinary[e.Message] {
		return to
	}
	return c.Core.Check(e, to)
}

// With keeps leaving it out.
func (c calm) With(fields []zapcore.Field) zapcore.Core { return calm{c.Core.With(fields), c.removed} }

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
