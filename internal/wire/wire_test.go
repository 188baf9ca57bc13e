package wire_test

import (
	"math"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/inventory"
	"github.com/godwit-vm/godwit/internal/wire"
)

// fill draws a value for every field that reflection finds, so that a field added to inventory takes part by itself.
func fill(t *rapid.T, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		if rapid.Bool().Draw(t, "time set") {
			v.Set(reflect.ValueOf(time.Unix(rapid.Int64Range(-1e9, 4e9).Draw(t, "unix"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos")).UTC()))
		}
		return
	case inventory.VerdictState:
		v.SetInt(rapid.Int64Range(0, int64(inventory.VerdictBad)).Draw(t, "verdict"))
		return
	case inventory.Power:
		v.SetInt(rapid.Int64Range(0, int64(inventory.PowerOn)).Draw(t, "power"))
		return
	case inventory.VMState:
		v.SetInt(rapid.Int64Range(0, int64(inventory.Unknown)).Draw(t, "state"))
		return
	case inventory.TaskState:
		v.SetInt(rapid.Int64Range(0, int64(inventory.TaskCanceled)).Draw(t, "task state"))
		return
	case inventory.Severity:
		v.SetInt(rapid.Int64Range(0, int64(inventory.Error)).Draw(t, "severity"))
		return
	case inventory.Phase:
		v.SetInt(rapid.Int64Range(0, int64(inventory.Undecided)).Draw(t, "phase"))
		return
	}
	switch v.Kind() { //nolint:exhaustive // the nouns have no other kinds; a new one ends in default
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field)
		}
	case reflect.Slice:
		n := rapid.IntRange(0, 3).Draw(t, "len")
		if n == 0 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, v.Index(i))
		}
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "string"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int:
		v.SetInt(int64(rapid.Int32().Draw(t, "int")))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int64"))
	case reflect.Uint8:
		v.SetUint(uint64(rapid.Byte().Draw(t, "byte")))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "uint64"))
	default:
		t.Fatalf("fill has no draw for kind %v: add one", v.Kind())
	}
}

// roundTrip checks T -> message -> bytes -> message -> T, and that every message reads at all when it is nil.
func roundTrip[T any, M any, PM interface {
	*M
	proto.Message
}](t *testing.T, to func(T) PM, from func(PM) T,
) {
	t.Helper()
	var zero T
	t.Run(reflect.TypeFor[T]().Name(), func(t *testing.T) {
		if got := from(nil); !reflect.DeepEqual(got, zero) {
			t.Errorf("a nil message reads as %+v", got)
		}
		if got := from(to(zero)); !reflect.DeepEqual(got, zero) {
			t.Errorf("the zero value comes back as %+v", got)
		}
		rapid.Check(t, func(rt *rapid.T) {
			var want T
			fill(rt, reflect.ValueOf(&want).Elem())
			b, err := proto.Marshal(to(want))
			if err != nil {
				rt.Fatal(err)
			}
			m := PM(new(M))
			if err := proto.Unmarshal(b, m); err != nil {
				rt.Fatal(err)
			}
			if got := from(m); !reflect.DeepEqual(got, want) {
				rt.Fatalf("sent %+v\ngot  %+v", want, got)
			}
		})
	})
}

func TestEveryFieldComesBack(t *testing.T) {
	roundTrip(t, wire.VM, wire.FromVM)
	roundTrip(t, wire.VMSpec, wire.FromVMSpec)
	roundTrip(t, wire.VMRun, wire.FromVMRun)
	roundTrip(t, wire.VMStatus, wire.FromVMStatus)
	roundTrip(t, wire.Boot, wire.FromBoot)
	roundTrip(t, wire.File, wire.FromFile)
	roundTrip(t, wire.Disk, wire.FromDisk)
	roundTrip(t, wire.NIC, wire.FromNIC)
	roundTrip(t, wire.Host, wire.FromHost)
	roundTrip(t, wire.HostSpec, wire.FromHostSpec)
	roundTrip(t, wire.HostStatus, wire.FromHostStatus)
	roundTrip(t, wire.QEMU, wire.FromQEMU)
	roundTrip(t, wire.Network, wire.FromNetwork)
	roundTrip(t, wire.NetworkSpec, wire.FromNetworkSpec)
	roundTrip(t, wire.Task, wire.FromTask)
	roundTrip(t, wire.Event, wire.FromEvent)
	roundTrip(t, wire.Request, wire.FromRequest)
	roundTrip(t, wire.Image, wire.FromImage)
	roundTrip(t, wire.Migration, wire.FromMigration)
	roundTrip(t, wire.MigrationSpec, wire.FromMigrationSpec)
	roundTrip(t, wire.MigrationStatus, wire.FromMigrationStatus)
}

func TestNamesOfANewerVersionAreNeverTakenForOldOnes(t *testing.T) {
	if got := wire.FromVMStatus(&godwitv1.VMStatus{State: "hibernating"}).State; got != inventory.Unknown {
		t.Errorf("an unknown state reads as %v", got)
	}
	phase := wire.FromMigrationStatus(&godwitv1.MigrationStatus{Phase: "post-copy"}).Phase
	if phase != wire.PhaseUnknown || phase.Final() {
		t.Errorf("an unknown phase reads as %v, final %v", phase, phase.Final())
	}
	if got := wire.FromVMRun(&godwitv1.VMRun{Wanted: 77}).Wanted; got != inventory.PowerOff {
		t.Errorf("an unknown power reads as %v", got)
	}
	if got := wire.FromQEMU(&godwitv1.Qemu{Migration: &godwitv1.Verdict{State: 77}}).Migration.State; got != inventory.VerdictUnknown {
		t.Errorf("an unknown verdict reads as %v", got)
	}
}

func TestNumbersAreCutNotWrapped(t *testing.T) {
	if got := wire.HostSpec(inventory.HostSpec{CPUs: math.MaxInt64}).GetCpus(); got != math.MaxInt32 {
		t.Errorf("got %d CPUs", got)
	}
	if got := wire.VMStatus(inventory.VMStatus{PID: math.MinInt64}).GetPid(); got != math.MinInt32 {
		t.Errorf("got pid %d", got)
	}
}
