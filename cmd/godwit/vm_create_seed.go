package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

// seedFlags are the words of "vm create" about cloud-init.
type seedFlags struct {
	keys                                    []string
	user, hostname, userData, networkConfig string
}

func (f *seedFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.keys, "ssh-key", nil, "FILE with public SSH keys that may log in, like ~/.ssh/id_ed25519.pub, or a key; repeatable")
	flags.StringVar(&f.user, "ssh-user", "", "user that the keys are for; empty: the image's own default user")
	flags.StringVar(&f.hostname, "hostname", "", "host name of the guest; empty: the VM's name")
	flags.StringVar(&f.userData, "user-data", "", "FILE with user data for cloud-init, at most 16 KiB, instead of SSH keys")
	flags.StringVar(&f.networkConfig, "network-config", "", "FILE with a network configuration for cloud-init, version 2; empty: DHCP on every NIC")
}

// request returns the seed that is asked for, nil for none. With an image there always is one: without, cloud-init would wait for the
// metadata service of a cloud.
func (f *seedFlags) request(image string) (*godwitv1.Seed, error) {
	if image == "" && len(f.keys) == 0 && f.user == "" && f.hostname == "" && f.userData == "" && f.networkConfig == "" {
		return nil, nil
	}
	seed := &godwitv1.Seed{User: f.user, Hostname: f.hostname}
	for _, key := range f.keys {
		keys, err := readKeys(key)
		if err != nil {
			return nil, err
		}
		seed.SshKeys = append(seed.SshKeys, keys...)
	}
	for flag, to := range map[string]struct {
		path string
		text *string
	}{"--user-data": {f.userData, &seed.UserData}, "--network-config": {f.networkConfig, &seed.NetworkConfig}} {
		if to.path == "" {
			continue
		}
		var err error
		if *to.text, err = readSmall(flag, to.path); err != nil {
			return nil, err
		}
		if *to.text == "" {
			return nil, fault.New(fault.Invalid, "%s %s is empty", flag, to.path)
		}
	}
	return seed, nil
}

// readKeys takes a public SSH key as it is, or the lines of a file with some. A private key leaves this machine under no circumstances.
func readKeys(key string) ([]string, error) {
	if strings.HasPrefix(key, "ssh-") && strings.Contains(key, " ") {
		return []string{key}, nil
	}
	text, err := readSmall("--ssh-key", key)
	if err != nil {
		return nil, err
	}
	if strings.Contains(text, "PRIVATE KEY") {
		return nil, fault.New(fault.Invalid, "--ssh-key %s is a private key, which nobody else may see: give the public one, %s.pub", key, key)
	}
	var keys []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fault.New(fault.Invalid, "--ssh-key %s has no key in it", key)
	}
	return keys, nil
}

// smallMax bounds the files that the command line reads into a request. What they may be long is said by who uses them.
const smallMax = 64 << 10

func readSmall(flag, path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return "", fault.New(fault.NotFound, "%s %s: there is no such file", flag, path)
	case err != nil:
		return "", fault.New(fault.Invalid, "%s: %w", flag, err)
	case !info.Mode().IsRegular():
		return "", fault.New(fault.Invalid, "%s %s is no regular file", flag, path)
	case info.Size() > smallMax:
		return "", fault.New(fault.Invalid, "%s %s has %d bytes, which is too much: it may have %d", flag, path, info.Size(), smallMax)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Denied, "%s: %w", flag, err)
	}
	return string(text), nil
}
