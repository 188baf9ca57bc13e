package main

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/control/agent"
	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
)

// accessFlags are what init asks about a store that is not Godwit's own.
type accessFlags struct {
	endpoints            []string
	ca, certificate, key string
}

func (f *accessFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.endpoints, "etcd-endpoints", nil, "URLs of an etcd of your own; empty: Godwit runs its own on up to five hosts")
	flags.StringVar(&f.ca, "etcd-ca", "", "PEM file of the CA of that etcd; empty: the system's")
	flags.StringVar(&f.certificate, "etcd-cert", "", "PEM file of the certificate to show that etcd")
	flags.StringVar(&f.key, "etcd-key", "", "PEM file of its key")
}

// read returns the access that the flags name, nil when the store is to be Godwit's own.
func (f *accessFlags) read() (*agent.StoreAccess, error) {
	if len(f.endpoints) == 0 {
		if f.ca != "" || f.certificate != "" || f.key != "" {
			return nil, fault.New(fault.Invalid, "--etcd-ca, --etcd-cert and --etcd-key are for an etcd of your own: name it with --etcd-endpoints")
		}
		return nil, nil //nolint:nilnil // as said
	}
	for _, endpoint := range f.endpoints {
		if u, err := url.Parse(endpoint); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fault.New(fault.Invalid, "etcd endpoint %q: write it like https://192.0.2.21:2379", endpoint)
		}
	}
	access := &agent.StoreAccess{}
	for _, file := range []struct { // not by path: one file may hold several of them
		path string
		into *[]byte
	}{{f.ca, &access.CA}, {f.certificate, &access.Certificate}, {f.key, &access.Key}} {
		if file.path == "" {
			continue
		}
		text, err := os.ReadFile(file.path)
		if err != nil {
			return nil, fault.New(fault.Invalid, "access to etcd: %w", err)
		}
		*file.into = text
	}
	_, err := accessTLS(access)
	return access, err
}

// accessTLS returns the client side of TLS to a store that is not Godwit's own.
func accessTLS(access *agent.StoreAccess) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(access.CA) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(access.CA) {
			return nil, fault.New(fault.Invalid, "access to etcd: the file of its CA holds no certificate in PEM")
		}
	}
	if len(access.Certificate) > 0 || len(access.Key) > 0 {
		pair, err := tls.X509KeyPair(access.Certificate, access.Key)
		if err != nil {
			return nil, fault.New(fault.Invalid, "access to etcd: certificate and key: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// saveAccess writes the access beside the host's identity.
func saveAccess(dir string, access *agent.StoreAccess) error {
	for name, text := range map[string][]byte{accessCA: access.CA, accessCertificate: access.Certificate, accessKey: access.Key} {
		if len(text) == 0 {
			continue
		}
		if err := replace(filepath.Join(dir, name), text, 0o600); err != nil {
			return fault.New(fault.NoResources, "access to etcd: %w", err)
		}
	}
	return nil
}

// claimStore makes a store that is not Godwit's own this cluster's, which it must not be of another one, or of an earlier one of that name.
func (c *hostConfig) claimStore(cmd *cobra.Command, access *agent.StoreAccess) error {
	conf, err := accessTLS(access)
	if err != nil {
		return err
	}
	s, err := store.Open(cmd.Context(), store.Config{Endpoints: c.Endpoints, TLS: conf})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // what was written is acknowledged
	name, err := s.Cluster(cmd.Context())
	if err == nil {
		return fault.New(fault.Exists, "that etcd holds cluster %s already: join it, or remove what is below /godwit there", name)
	}
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	return s.InitCluster(cmd.Context(), c.Cluster, c.Host)
}
