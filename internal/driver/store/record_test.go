package store

import (
	"context"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// later is a field that a newer Godwit would have: number 999, a string.
func later(text string) protoreflect.RawFields {
	b := []byte{0xba, 0x3e, byte(len(text))} // 999<<3|2 as varint
	return append(b, text...)
}

func hasLater(t *testing.T, m proto.Message, text string) {
	t.Helper()
	if got := m.ProtoReflect().GetUnknown(); string(got) != string(later(text)) {
		t.Errorf("%s lost what a newer version wrote: %q is left of %q", m.ProtoReflect().Descriptor().Name(), got, text)
	}
}

func TestOlderWriterKeepsWhatItDoesNotKnow(t *testing.T) {
	disk := func(name, file string) *godwitv1.Disk {
		d := &godwitv1.Disk{Name: name, File: &godwitv1.File{Datastore: "ds", Path: file}, Format: "qcow2"}
		d.ProtoReflect().SetUnknown(later(name))
		d.GetFile().ProtoReflect().SetUnknown(later(file))
		return d
	}
	newer := &godwitv1.VMSpec{
		Name: "web-1", Cpus: 2, Boot: &godwitv1.Boot{},
		Disks: []*godwitv1.Disk{disk("disk0", "a"), disk("disk1", "b"), disk("disk2", "c")},
	}
	newer.ProtoReflect().SetUnknown(later("spec"))
	newer.GetBoot().ProtoReflect().SetUnknown(later("boot"))
	record, err := proto.Marshal(newer)
	if err != nil {
		t.Fatal(err)
	}
	env := &godwitv1.Envelope{Kind: "vm/spec", Schema: schema, Record: record}
	env.ProtoReflect().SetUnknown(later("envelope"))
	value, err := proto.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}

	// The older version takes disk1 out, swaps the others, moves disk2's file, and adds a disk.
	old, err := vmSpecs.unpack("/k", value)
	if err != nil {
		t.Fatal(err)
	}
	spec := old.value
	spec.CPUs = 4
	spec.Disks = []inventory.Disk{spec.Disks[2], spec.Disks[0], {Name: "disk9", Format: inventory.Raw}}
	spec.Disks[0].File.Path = "moved"
	text, err := vmSpecs.repack(old, spec)
	if err != nil {
		t.Fatal(err)
	}

	env = new(godwitv1.Envelope)
	got := new(godwitv1.VMSpec)
	if err := proto.Unmarshal([]byte(text), env); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(env.GetRecord(), got); err != nil {
		t.Fatal(err)
	}
	hasLater(t, env, "envelope")
	hasLater(t, got, "spec")
	hasLater(t, got.GetBoot(), "boot")
	if len(got.GetDisks()) != 3 || got.GetCpus() != 4 {
		t.Fatalf("got %v", got)
	}
	hasLater(t, got.GetDisks()[0], "disk2")
	hasLater(t, got.GetDisks()[0].GetFile(), "c")
	hasLater(t, got.GetDisks()[1], "disk0")
	if d := got.GetDisks()[0]; d.GetFile().GetPath() != "moved" {
		t.Errorf("the change itself was lost: %v", d)
	}
	if d := got.GetDisks()[2]; d.GetName() != "disk9" || len(d.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("the new disk is %v", d)
	}
}

// A value that this version reads as "unknown" must not be written back as such.
func TestOlderWriterKeepsNamesItDoesNotKnow(t *testing.T) {
	record, err := proto.Marshal(&godwitv1.MigrationStatus{Phase: "post-copy", Reason: "a"})
	if err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&godwitv1.Envelope{Kind: "migration/status", Schema: schema, Record: record})
	if err != nil {
		t.Fatal(err)
	}
	old, err := migrationStatuses.unpack("/k", value)
	if err != nil {
		t.Fatal(err)
	}
	status := old.value
	status.Reason = "b"
	text, err := migrationStatuses.repack(old, status)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "post-copy") || !strings.Contains(text, "b") {
		t.Errorf("got %q", text)
	}
}

func TestRecordsThatCannotBeReadAreRefusedInOneLine(t *testing.T) {
	pack := func(e *godwitv1.Envelope) []byte {
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		value []byte
		kind  fault.Kind
	}{
		"newer":        {pack(&godwitv1.Envelope{Kind: "vm/spec", Schema: schema + 1}), fault.Incompatible},
		"other kind":   {pack(&godwitv1.Envelope{Kind: "vm/run", Schema: schema}), fault.Internal},
		"no envelope":  {[]byte("\xff\xff"), fault.Internal},
		"broken inner": {pack(&godwitv1.Envelope{Kind: "vm/spec", Schema: schema, Record: []byte("\xff")}), fault.Internal},
	} {
		_, err := vmSpecs.unpack("/godwit/vm/vm-a/spec", c.value)
		if fault.KindOf(err) != c.kind || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "/godwit/vm/vm-a/spec") {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(err)
	}
}

// Whatever two versions of a value are, writing the second over the first reads as the second.
func TestMergeWritesWhatWasMeant(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", "b", "c"})
	mounts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) inventory.DatastoreMount {
		return inventory.DatastoreMount{
			ID: inventory.DatastoreID(word.Draw(t, "id")), Name: word.Draw(t, "name"), Path: word.Draw(t, "path"),
			Shared: rapid.Bool().Draw(t, "shared"),
		}
	}), 0, 4)
	spec := rapid.Custom(func(t *rapid.T) inventory.HostSpec {
		s := inventory.HostSpec{
			Address: word.Draw(t, "address"), CPUs: rapid.IntRange(0, 2).Draw(t, "cpus"), Datastores: mounts.Draw(t, "mounts"),
			QEMU: inventory.QEMU{
				Version: word.Draw(t, "version"), Machines: rapid.SliceOfN(word, 0, 2).Draw(t, "machines"),
				Migration: inventory.Verdict{State: inventory.VerdictState(rapid.IntRange(0, 2).Draw(t, "verdict"))},
			},
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := spec.Draw(t, "a"), spec.Draw(t, "b")
		text, err := hostSpecs.pack(a)
		if err != nil {
			t.Fatal(err)
		}
		old, err := hostSpecs.unpack("/k", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if text, err = hostSpecs.repack(old, b); err != nil {
			t.Fatal(err)
		}
		got, err := hostSpecs.unpack("/k", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(hostSpecs.to(got.value), hostSpecs.to(b)) {
			t.Fatalf("wrote %+v\nover  %+v\ngot   %+v", b, a, got.value)
		}
	})
}

func TestEveryKindCanBeDumped(t *testing.T) {
	for kind, blank := range blanks {
		if blank() == nil || strings.TrimSpace(kind) == "" {
			t.Errorf("kind %q", kind)
		}
	}
	if len(blanks) < 21 {
		t.Errorf("only %d kinds", len(blanks))
	}
	if !slices.Contains([]int{1}, schema) {
		t.Error("a new schema needs a step from the old one in unpack, and a test with a record of the old one")
	}
}

// SetMigrationsKept lets a test see migrations being forgotten without making a thousand.
func (s *Store) SetMigrationsKept(n int) { s.migrationsKept = n }

// SetAuditKept lowers the bound of audit events.
func (s *Store) SetAuditKept(n int) { s.auditKept = n }

// SetKept lowers the bounds of tasks, events and requests.
func (s *Store) SetKept(tasks, events, requests int) {
	s.tasksKept, s.eventsKept, s.requestsKept = tasks, events, requests
}

// CompactNow forgets all history, as etcd does by itself once an hour.
func (s *Store) CompactNow(ctx context.Context) error {
	resp, err := s.get(ctx, keyCluster)
	if err != nil {
		return err
	}
	_, err = s.client.Compact(ctx, resp.Header.GetRevision(), clientv3.WithCompactPhysical())
	return err
}
