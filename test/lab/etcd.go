package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/driver/store"
)

// etcdMax bounds how long an etcd may take until it answers.
const etcdMax = 30 * time.Second

// Etcd is an etcd that is no cluster's: one process, with a CA of its own. A cluster that is told of it by Options.Init has its store there, and no host
// carries a member.
type Etcd struct {
	Access []string // what godwit init wants to know of it
	PID    int

	dir   string
	guard *guard
	cmd   *exec.Cmd
}

// StartEtcd starts an etcd out of the given binary and returns when it answers. On an error nothing is left.
func StartEtcd(ctx context.Context, binary string) (_ *Etcd, err error) {
	dir, err := os.MkdirTemp("/tmp", "gw-etcd-")
	if err != nil {
		return nil, err
	}
	e := &Etcd{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.guard, err = startGuard(dir); err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.%d.%d.9", 1+rand.IntN(250), rand.IntN(250)) //nolint:gosec // no secret
	data, pki := filepath.Join(dir, "data"), filepath.Join(dir, "data", "pki")
	init := exec.CommandContext(ctx, binary, "init", "--cluster", "other", "--name", "etcd", "--address", address, "--data", data)
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()                                                                // the child has its own
	e.cmd = exec.Command(binary, "role", "store", "--data", data, "--run", filepath.Join(dir, "run")) //nolint:noctx // Close ends it
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	e.PID = e.cmd.Process.Pid
	endpoint := "https://" + address + ":2379"
	id, err := peer.Load(pki)
	if err != nil {
		return nil, err
	}
	if err := Until(ctx, etcdMax, func() error {
		s, err := store.Open(ctx, store.Config{Endpoints: []string{endpoint}, TLS: id.StoreTLS()})
		if err == nil {
			err = s.Close()
		}
		return err
	}); err != nil {
		return nil, err
	}
	e.Access = []string{
		"--etcd-endpoints", endpoint, "--etcd-ca", filepath.Join(pki, peer.CACertificateFile),
		"--etcd-cert", filepath.Join(pki, peer.CertificateFile), "--etcd-key", filepath.Join(pki, peer.KeyFile),
	}
	return e, nil
}

// Stand makes the etcd stand still, so that it answers nobody and closes no connection.
func (e *Etcd) Stand() error { return syscall.Kill(e.PID, syscall.SIGSTOP) }

// GoOn lets an etcd that stands go on.
func (e *Etcd) GoOn() error { return syscall.Kill(e.PID, syscall.SIGCONT) }

// Close ends it, whether it stands or not, and removes its folder.
func (e *Etcd) Close() error {
	if e.cmd != nil && e.cmd.Process != nil {
		_ = e.cmd.Process.Kill() // gone already is what is wanted
		_ = e.cmd.Wait()         // it was killed
	}
	if e.guard != nil {
		e.guard.dismiss()
	}
	return os.RemoveAll(e.dir)
}
