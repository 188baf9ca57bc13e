// Package systemd makes Godwit a service of a host with systemd, and takes every trace of that away again.
//
// Install writes a few files and notes each in a manifest, with the folders that it had to make; Uninstall removes what the
// manifest lists and nothing else. Neither knows what Godwit does, nor touches VMs, data or datastores: cmd/godwit asks and decides
// about those. Programs of systemd are run, where it runs, by the few methods at the end of systemctl.go.
package systemd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
)

// The files, as paths on the host.
const (
	UnitFile     = "/etc/systemd/system/godwit.service"
	SysusersFile = "/etc/sysusers.d/godwit.conf"
	TmpfilesFile = "/etc/tmpfiles.d/godwit.conf"
	manifestFile = "/etc/godwit/installed.json"
)

// manifestSchema is the version of the manifest's form; a newer one is refused.
const manifestSchema = 1

// File is a file to write.
type File struct {
	Path string // on the host, absolute
	Text string
	// Keep is for what belongs to the administrator from the moment it is there: it is written only where there is none, and stays
	// when it was changed.
	Keep bool
}

// manifest is what Install has written, so that Uninstall can take it away.
type manifest struct {
	Schema   int             `json:"schema"`
	Files    []manifestEntry `json:"files"`
	Folders  []string        `json:"folders"` // made by us, outer ones first
	MadeUser string          `json:"user"`    // made by us
	Places   Places          `json:"places"`  // of the data, for who takes that away too
}

type manifestEntry struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Keep   bool   `json:"keep"`
}

// Places are where the service has its data.
type Places struct {
	Data string `json:"data"`
	Run  string `json:"run"`
}

// Setup is a host's files below a root folder, "/" for this host itself. Its methods are for one goroutine.
type Setup struct {
	root string
	m    manifest
	have bool // there is a manifest
}

// Open reads what is installed below root. Errors: fault.Incompatible for a newer manifest, fault.Invalid for a malformed one.
func Open(root string) (*Setup, error) {
	s := &Setup{root: root, m: manifest{Schema: manifestSchema}}
	text, err := os.ReadFile(s.at(manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fault.New(fault.Denied, "%w", err)
	}
	if err := json.Unmarshal(text, &s.m); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", s.at(manifestFile), err)
	}
	if s.m.Schema > manifestSchema {
		return nil, fault.New(fault.Incompatible, "%s was written by a newer godwit: use that one", s.at(manifestFile))
	}
	s.have = true
	return s, nil
}

// Installed reports whether there is something to take away.
func (s *Setup) Installed() bool { return s.have }

// Places returns where the installed service has its data.
func (s *Setup) Places() Places { return s.m.Places }

// MadeUser returns the user that NoteUser noted, "" for none.
func (s *Setup) MadeUser() string { return s.m.MadeUser }

// NoteUser notes that the installation has made the user.
func (s *Setup) NoteUser(name string) error {
	s.m.MadeUser = name
	return s.save()
}

func (s *Setup) at(path string) string { return filepath.Join(s.root, path) }

// Install writes the files and returns those that it wrote, the others being as they should be. It may be repeated. It refuses, with
// all reasons and before it writes anything, to overwrite a file that is not its own or that somebody has changed.
func (s *Setup) Install(files []File, places Places) (written []string, err error) {
	var bad []string
	var todo []File
	for _, f := range files {
		has, err := os.ReadFile(s.at(f.Path))
		switch known := s.entry(f.Path); {
		case errors.Is(err, fs.ErrNotExist):
			todo = append(todo, f)
		case err != nil:
			bad = append(bad, err.Error())
		case f.Keep || string(has) == f.Text && known != nil:
		case known == nil:
			bad = append(bad, s.at(f.Path)+" is there already, and not from godwit install: remove it, or move it away")
		case known.SHA256 != sum(has):
			bad = append(bad, s.at(f.Path)+" was changed by somebody: put the changes elsewhere (systemctl edit godwit), and remove it")
		default:
			todo = append(todo, f)
		}
	}
	if err := fault.Refuse(fault.Conflict, bad); err != nil {
		return nil, err
	}
	// The manifest comes first: what is listed and not there does no harm, what is there and not listed would stay for ever.
	s.m.Places = places
	for _, f := range append(slices.Clone(todo), File{Path: manifestFile}) {
		s.noteFolders(filepath.Dir(f.Path))
	}
	for _, f := range todo {
		s.note(f)
	}
	if err := s.save(); err != nil {
		return nil, err
	}
	for _, f := range todo {
		if err := s.write(f.Path, f.Text); err != nil {
			return written, err
		}
		written = append(written, s.at(f.Path))
	}
	return written, nil
}

// entry returns what the manifest says of a file, nil if nothing.
func (s *Setup) entry(path string) *manifestEntry {
	for i := range s.m.Files {
		if s.m.Files[i].Path == path {
			return &s.m.Files[i]
		}
	}
	return nil
}

func (s *Setup) note(f File) {
	e := manifestEntry{f.Path, sum([]byte(f.Text)), f.Keep}
	if known := s.entry(f.Path); known != nil {
		*known = e
		return
	}
	s.m.Files = append(s.m.Files, e)
}

// noteFolders notes the folders on the way to dir that are not there yet.
func (s *Setup) noteFolders(dir string) {
	var missing []string
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if _, err := os.Stat(s.at(dir)); err == nil {
			break
		}
		missing = append(missing, dir)
	}
	for _, d := range slices.Backward(missing) {
		if !slices.Contains(s.m.Folders, d) {
			s.m.Folders = append(s.m.Folders, d)
		}
	}
}

func (s *Setup) save() error {
	text, err := json.MarshalIndent(s.m, "", "  ")
	if err != nil {
		return err
	}
	s.have = true
	return s.write(manifestFile, string(text)+"\n")
}

// write replaces the file, whole or not at all.
func (s *Setup) write(path, text string) error {
	path = s.at(path)
	err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // as all of /etc
	if err == nil {
		tmp := path + ".new"
		if err = os.WriteFile(tmp, []byte(text), 0o644); err == nil { //nolint:gosec // no secret is in it
			err = os.Rename(tmp, path)
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "%w: run it as root", err)
	case err != nil:
		return fault.New(fault.NoResources, "%w", err)
	}
	return nil
}

// Uninstall removes what Install wrote. A file to Keep that was changed stays, unless all is to go. It returns what it removed, and
// what it left with the reason. Error: fault.NotFound when nothing is installed.
func (s *Setup) Uninstall(all bool) (removed, kept []string, err error) {
	if !s.have {
		return nil, nil, fault.New(fault.NotFound, "nothing is installed: %s is not there", s.at(manifestFile))
	}
	for _, e := range s.m.Files {
		path := s.at(e.Path)
		has, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && e.Keep && !all && e.SHA256 != sum(has) {
			kept = append(kept, path+": it was changed since it was written")
			continue
		}
		if err := os.Remove(path); err != nil {
			return removed, kept, fault.New(fault.Denied, "%w", err)
		}
		removed = append(removed, path)
	}
	if err := os.Remove(s.at(manifestFile)); err != nil {
		return removed, kept, fault.New(fault.Denied, "%w", err)
	}
	for _, dir := range slices.Backward(s.m.Folders) {
		// What is not empty is in use by others now.
		if err := os.Remove(s.at(dir)); err == nil {
			removed = append(removed, s.at(dir))
		}
	}
	s.have = false
	return removed, kept, nil
}

func sum(text []byte) string {
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:])
}

// Service says how the unit runs Godwit.
type Service struct {
	Binary string
	Args   []string // after "run"
	Places Places
	User   string // that VMs run as
}

// CheckBinary refuses, with all reasons, a binary that a service of root's must not be: somebody else could change it.
func CheckBinary(path string) error {
	var bad []string
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return fault.New(fault.NotFound, "binary: %w", err)
		}
		if owner, ok := ownerOf(info); ok && owner != 0 {
			bad = append(bad, fmt.Sprintf("%s belongs to user %d, who could replace what root runs: install godwit to /usr/local/bin and take that", at, owner))
		} else if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			bad = append(bad, fmt.Sprintf("%s may be written by others than root: chmod go-w %s", at, at))
		}
		if at == "/" || at == "." {
			break
		}
	}
	return fault.Refuse(fault.Denied, bad)
}

// Files returns the files that make it a service.
func (s Service) Files() ([]File, error) {
	for what, path := range map[string]string{"binary": s.Binary, "data folder": s.Places.Data, "run directory": s.Places.Run} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, " \t\n\"'\\%$;") {
			return nil, fault.New(fault.Invalid, "%s %q: a unit wants an absolute path without spaces, quotes, backslashes, %%, $ and semicolons", what, path)
		}
	}
	var unit bytes.Buffer
	if err := unitTemplate.Execute(&unit, s); err != nil {
		return nil, err
	}
	return []File{
		{Path: UnitFile, Text: unit.String()},
		{Path: SysusersFile, Text: "# The user that Godwit's VMs run as. Written by godwit install.\nu " + s.User + " - \"Virtual machines of Godwit\" /nonexistent /usr/sbin/nologin\n"},
		{Path: TmpfilesFile, Text: "# Godwit's sockets and journals. Written by godwit install.\nd " + s.Places.Run + " 0711 root root -\n"},
	}, nil
}
