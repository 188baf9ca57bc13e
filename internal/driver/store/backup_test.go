package store_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vm/godwit/internal/driver/store"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

var manifest = store.Manifest{Cluster: "test", Host: "host-1", CA: "PEM", Members: []string{"host-1"}, Made: time.Unix(1_700_000_000, 0)}

// backUp writes a backup of the store to a file.
func backUp(t *testing.T, s *store.Store) string {
	t.Helper()
	snapshot, err := s.Snapshot(t.Context())
	must(t, err)
	defer snapshot.Close()
	path := filepath.Join(t.TempDir(), "backup")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	must(t, store.WriteBackup(file, manifest, snapshot))
	must(t, file.Close())
	return path
}

// The story: a VM is started and migrates, the store is backed up, and goes on: another start, another VM, a token that is used. Then the disk
// is lost. What the backup brings back has every object of its time, and no number that was given after it.
func TestARestoredStoreGivesNoNumberTwice(t *testing.T) {
	m := startMember(t)
	s := m.open(t)
	ctx := t.Context()
	must(t, s.InitCluster(ctx, "test"))
	w := writer(t, s, "host-1")
	must(t, w.CreateVM(ctx, inventory.VM{ID: "vm-a", Spec: inventory.VMSpec{Name: "web-1"}, Run: inventory.VMRun{Owner: "host-1", Generation: 3, Wanted: inventory.PowerOn}}))
	must(t, w.CreateVM(ctx, inventory.VM{ID: "vm-b", Spec: inventory.VMSpec{Name: "web-2"}, Run: inventory.VMRun{Owner: "host-1", Generation: 8}}))
	must(t, w.CreateMigration(ctx, inventory.Migration{ID: "mig-b", Spec: inventory.MigrationSpec{VM: "vm-b", VMName: "web-2", Source: "host-1", Target: "host-2"}}))
	_, err := w.UpdateRun(ctx, "vm-b", func(r *inventory.VMRun) error {
		r.Heir = inventory.Heir{Host: "host-2", Generation: 9, Migration: "mig-b"}
		return nil
	})
	must(t, err)
	must(t, w.CreateToken(ctx, store.Token{ID: "t", SecretHash: []byte("x"), Expires: time.Now().Add(time.Hour)}))
	must(t, w.CreateUser(ctx, inventory.User{Name: "ann", ID: "user-1", Role: inventory.Admin, Created: time.Now(), By: "root"}))
	opens := store.UserToken{UserToken: inventory.UserToken{ID: "0a", User: "ann", UserID: "user-1", Created: time.Now(), Expires: time.Now().Add(time.Hour)}}
	opens.Seal([]byte("salt"), []byte("secret"))
	must(t, w.CreateUserToken(ctx, opens))
	must(t, w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog))
	term, err := s.Lead(ctx, "host-1", w.Epoch())
	must(t, err)
	defer term.End()
	path := backUp(t, s)

	must(t, w.UseToken(ctx, "t", []byte("x"), store.Joining{Host: "host-3"}))
	must(t, w.RevokeUserToken(ctx, "0a"))
	_, err = w.UpdateRun(ctx, "vm-a", func(r *inventory.VMRun) error { r.Generation++; return nil })
	must(t, err)
	must(t, w.CreateVM(ctx, inventory.VM{ID: "vm-c", Spec: inventory.VMSpec{Name: "web-3"}, Run: inventory.VMRun{Owner: "host-1"}}))
	before, err := s.Revision(ctx)
	must(t, err)
	m.halt(t)

	b, err := store.OpenBackup(path)
	must(t, err)
	defer b.Close()
	m.config.Dir = filepath.Join(t.TempDir(), "store")
	done, err := store.Restore(ctx, store.RestoreConfig{Backup: b, Server: m.config, TLS: m.identity.StoreTLS()})
	must(t, err)
	if done.Hosts != 1 || done.VMs != 2 || done.Migrations != 1 || done.Tokens != 2 || done.Revision <= before {
		t.Errorf("restored %+v, before it was at %d", done, before)
	}
	m.start(t)

	// The connection of before comes back to another store, and its agent is told that nobody has declared it dead.
	err = w.Renew(ctx, 8*time.Second, inventory.FencedByWatchdog)
	text := want(t, fault.Conflict, err)
	if !strings.Contains(text, "restored from a backup") {
		t.Error(text)
	}
	t.Log(text)
	vms, err := s.VMs(ctx)
	must(t, err)
	if len(vms) != 2 {
		t.Fatalf("VMs are %+v", vms)
	}
	for i, wanted := range []inventory.VMRun{
		{Owner: "host-1", Generation: 3 + store.RestoreMargin, Restored: 3, Wanted: inventory.PowerOn},
		{Owner: "host-1", Generation: 9 + store.RestoreMargin, Restored: 9},
	} {
		if vms[i].Run != wanted {
			t.Errorf("%s has %+v, not %+v", vms[i].ID, vms[i].Run, wanted)
		}
	}
	now, old, err := s.NextEpoch(ctx, "host-1", "boot")
	must(t, err)
	if now.Epoch != w.Epoch()+store.RestoreMargin+1 || !old.Restored || now.Restored {
		t.Errorf("epoch %+v follows %+v", now, old)
	}
	migration, err := s.Migration(ctx, "mig-b")
	must(t, err)
	if migration.Status.Phase != inventory.Failed || migration.Status.Reason == "" {
		t.Errorf("migration is %+v", migration.Status)
	}
	if id, err := s.ActiveMigration(ctx, "vm-b"); err != nil || id != "" {
		t.Errorf("vm-b migrates by %q (%v)", id, err)
	}
	w = s.As("host-1", now.Epoch)
	want(t, fault.Denied, w.UseToken(ctx, "t", []byte("x"), store.Joining{Host: "host-4"}))
	if _, _, err := s.UserToken(ctx, "0a"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a token that was revoked since is good again: %v", err)
	}
	if _, err := s.Leader(ctx); !fault.Is(err, fault.NotFound) {
		t.Errorf("a leader was restored: %v", err)
	}
	renewals, err := s.Renewals(ctx)
	must(t, err)
	if len(renewals) != 1 || renewals[0].Revision != 0 {
		t.Errorf("renewals are %+v", renewals)
	}
}

// A restore that fails leaves nothing, and touches nothing that is there.
func TestRestoreLeavesNothingBehind(t *testing.T) {
	m := startMember(t)
	s := m.open(t)
	must(t, s.InitCluster(t.Context(), "test"))
	path := backUp(t, s)
	b, err := store.OpenBackup(path)
	must(t, err)
	defer b.Close()
	t.Log(want(t, fault.Exists, errOf(store.Restore(t.Context(), store.RestoreConfig{Backup: b, Server: m.config, TLS: m.identity.StoreTLS()}))))

	// A backup whose own sum is right around a snapshot that is not.
	text, err := io.ReadAll(b.Snapshot())
	must(t, err)
	text[len(text)/2] ^= 1
	bad := filepath.Join(t.TempDir(), "bad")
	file, err := os.Create(bad)
	must(t, err)
	must(t, store.WriteBackup(file, manifest, bytes.NewReader(text)))
	must(t, file.Close())
	b, err = store.OpenBackup(bad)
	must(t, err)
	defer b.Close()
	dir := t.TempDir()
	m.config.Dir = filepath.Join(dir, "store")
	said := want(t, fault.Invalid, errOf(store.Restore(t.Context(), store.RestoreConfig{Backup: b, Server: m.config, TLS: m.identity.StoreTLS()})))
	t.Log(said)
	if strings.Contains(said, "\n") {
		t.Error("not one line")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left is %v (%v)", left, err)
	}
}

func errOf(_ store.Restored, err error) error { return err }

// aBackup is one without a real snapshot.
func aBackup(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := store.WriteBackup(&out, manifest, strings.NewReader("snapshot")); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestOpenBackupRefusesDamage(t *testing.T) {
	good := aBackup(t)
	dir := t.TempDir()
	open := func(text []byte) error {
		path := filepath.Join(dir, "backup")
		must(t, os.WriteFile(path, text, 0o600))
		b, err := store.OpenBackup(path)
		if err == nil {
			must(t, b.Close())
		}
		return err
	}
	must(t, open(good))
	for at := range good { // every bit counts, and so does every byte
		flipped := bytes.Clone(good)
		flipped[at] ^= 1 << (at % 8)
		if err := open(flipped); err == nil || strings.Contains(err.Error(), "\n") {
			t.Fatalf("with byte %d changed: %v", at, err)
		}
		if err := open(good[:at]); err == nil {
			t.Fatalf("cut off at byte %d it is taken", at)
		}
	}
	t.Log(want(t, fault.Invalid, open(good[:len(good)-1])))
	t.Log(want(t, fault.Invalid, open([]byte("PK\x03\x04"))))
	t.Log(want(t, fault.Incompatible, open(append([]byte("godwit-backup 2\n"), good[16:]...))))
	_, err := store.OpenBackup(filepath.Join(dir, "nothing"))
	t.Log(want(t, fault.NotFound, err))
	_, err = store.OpenBackup(dir)
	t.Log(want(t, fault.Invalid, err))
	if err := store.WriteBackup(io.Discard, manifest, strings.NewReader("")); err == nil {
		t.Error("a backup of nothing was made")
	}
}

// FuzzOpenBackup: whatever the bytes, the answer is a whole backup or one line.
func FuzzOpenBackup(f *testing.F) {
	good := aBackup(f)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[:20])
	f.Add([]byte("godwit-backup 1\n{}\n"))
	f.Add([]byte("godwit-backup 1\n" + strings.Repeat("x", 5000)))
	f.Add([]byte("godwit-backup 2\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "backup")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := store.OpenBackup(path)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %v", err)
			}
			return
		}
		defer b.Close()
		if n, err := io.Copy(io.Discard, b.Snapshot()); err != nil || n == 0 || b.Manifest.Cluster == "" {
			t.Errorf("a snapshot of %d bytes (%v) of %q", n, err, b.Manifest.Cluster)
		}
	})
}
