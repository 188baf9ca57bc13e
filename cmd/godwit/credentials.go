package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
)

// tokenVariable holds a user's token itself: what runs commands for others has no file to put it into.
const tokenVariable = "GODWIT_TOKEN" //nolint:gosec // the name of a variable

// credentialsMax bounds the files that tokens are read from.
const credentialsMax = 1 << 20

// login is what a user needs to call a cluster from anywhere.
type login struct {
	Server string `json:"server"`  // HOST:PORT of an agent
	CAHash string `json:"ca_hash"` // of the cluster's CA
	Token  string `json:"token"`
}

// serverAddress reads a server's address; the port may be left out.
func serverAddress(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil { // no port; an IPv6 address may stand without brackets then
		host, port = strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), portAgent
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if ip := net.ParseIP(host); err != nil || number == 0 || host == "" || ip == nil && strings.ContainsAny(host, ":/@[] \t\r\n") {
		return "", usageError{fault.New(fault.Invalid, "server %q: write it as HOST:PORT, like 192.0.2.11:%s", text, portAgent)}
	}
	return net.JoinHostPort(host, port), nil
}

// login finds what the command is to call the server with: token and CA hash from flags, the environment, or the credentials file.
func (d door) login(cmd *cobra.Command) (login, error) {
	l := login{Server: d.server}
	file, err := cmd.Flags().GetString("token-file")
	if err != nil {
		return l, err
	}
	if l.CAHash, err = cmd.Flags().GetString("ca-hash"); err != nil {
		return l, err
	}
	switch {
	case file != "":
		if l.Token, err = tokenFrom(file); err != nil {
			return l, err
		}
	case os.Getenv(tokenVariable) != "":
		l.Token = os.Getenv(tokenVariable)
	}
	if l.Token == "" || l.CAHash == "" {
		kept, err := readCredentials()
		if err != nil {
			return l, err
		}
		for _, k := range kept {
			if k.Server != l.Server {
				continue
			}
			if l.Token == "" {
				l.Token = k.Token
			}
			if l.CAHash == "" {
				l.CAHash = k.CAHash
			}
		}
	}
	var missing []string
	if l.Token == "" {
		missing = append(missing, "no token for "+l.Server+": run godwit login "+l.Server+", or give one with --token-file or "+tokenVariable)
	}
	if l.CAHash == "" {
		missing = append(missing, "nothing says which cluster "+l.Server+" belongs to: give the hash of its CA with --ca-hash, or run godwit login "+l.Server)
	}
	if err := fault.Refuse(fault.Invalid, missing); err != nil {
		return l, err
	}
	return l, l.check()
}

// check reads token and hash before anything is sent.
func (l login) check() error {
	_, badToken := peer.ParseUserToken(l.Token)
	_, badHash := peer.ParseCAHash(l.CAHash)
	var bad []string
	for _, err := range []error{badToken, badHash} {
		if err != nil {
			bad = append(bad, err.Error())
		}
	}
	return fault.Refuse(fault.Invalid, bad)
}

// client returns a client that shows the token with each call. The login must have been checked.
func (l login) client() *http.Client {
	sum, err := peer.ParseCAHash(l.CAHash)
	if err != nil {
		sum = [len(sum)]byte{} // no CA has it: nothing is trusted
	}
	return peer.ShowToken(peer.DialUser(l.Server, sum), strings.TrimSpace(l.Token))
}

// tokenFrom reads a file that holds a token and nothing else. Others on this machine must not be able to read it.
func tokenFrom(path string) (string, error) {
	text, err := readSecret(path)
	if err != nil {
		return "", fault.Wrap("token file", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// readSecret reads a file that only its owner may read.
func readSecret(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "there is no such file")
	case err != nil:
		return nil, fault.New(fault.Denied, "%w", err)
	case info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0:
		return nil, fault.New(fault.Denied, "others on this machine may read it: chmod 600 %s", path)
	case info.Size() > credentialsMax:
		return nil, fault.New(fault.Invalid, "it has %d bytes, far more than a token", info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Denied, "%w", err)
	}
	return text, nil
}

// credentialsFile is where godwit login keeps what it was given.
func credentialsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.New(fault.Invalid, "there is no place for credentials: %w", err)
	}
	return filepath.Join(dir, "godwit", "credentials"), nil
}

// readCredentials returns what login has kept; nothing when there is no file.
func readCredentials() ([]login, error) {
	path, err := credentialsFile()
	if err != nil {
		return nil, err
	}
	text, err := readSecret(path)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap("credentials", path, err)
	}
	var kept struct {
		Logins []login `json:"logins"`
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, fault.New(fault.Invalid, "credentials %s are damaged (%w): remove the file and log in again", path, err)
	}
	return kept.Logins, nil
}

// changeCredentials replaces what is kept for a server; a nil login removes it. It returns the file, and whether there was something before.
func changeCredentials(server string, l *login) (path string, before bool, err error) {
	if path, err = credentialsFile(); err != nil {
		return "", false, err
	}
	kept, err := readCredentials()
	if err != nil {
		return path, false, err
	}
	rest := slices.DeleteFunc(slices.Clone(kept), func(k login) bool { return k.Server == server })
	before = len(rest) < len(kept)
	if l != nil {
		rest = append(rest, *l)
	}
	text, err := json.MarshalIndent(map[string][]login{"logins": rest}, "", "  ")
	if err != nil {
		return path, before, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return path, before, fault.New(fault.Denied, "%w", err)
	}
	if err := replace(path, append(text, '\n'), 0o600); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return path, before, fault.New(fault.Denied, "%w", err)
		}
		return path, before, fault.New(fault.NoResources, "%w", err)
	}
	return path, before, nil
}
