package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/internal/fault"
)

func TestDisksAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]*godwitv1.DiskRequest{
		"size=20G":                        {Size: 20 << 30},
		"web.qcow2":                       {Path: "web.qcow2"},
		"a/web.img@shared,format=raw":     {Path: "a/web.img", Datastore: "shared", Format: "raw"},
		"size=1G,path=x@ds2,format=qcow2": {Size: 1 << 30, Path: "x", Datastore: "ds2", Format: "qcow2"},
		"size=64M,datastore=fast":         {Size: 64 << 20, Datastore: "fast"},
	} {
		got, err := parseDisk(text)
		if err != nil || got.String() != want.String() {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "size=0", "size=big", "size=1G,colour=red", "format=raw", "a,b"} {
		if got, err := parseDisk(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q was taken for %v", text, got)
		}
	}
}

func TestNICsAsPeopleWriteThem(t *testing.T) {
	got, err := parseNIC("lan,mac=52:54:00:AB:CD:EF")
	if err != nil || got.GetNetwork() != "lan" || got.GetMac() != "52:54:00:ab:cd:ef" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := parseNIC("lan,vlan=3"); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestExitCodes(t *testing.T) {
	for code, err := range map[int]error{
		exitUsage: usageError{errors.New("x")}, exitNotFound: fault.New(fault.NotFound, "x"), exitConflict: fault.New(fault.Exists, "x"),
		exitRefused: fault.Refuse(fault.Incompatible, []string{"x"}), exitUnavailable: fault.New(fault.Unavailable, "x"),
		exitCanceled: context.Canceled, exitInternal: io.EOF,
	} {
		if got := exitCode(err); got != code {
			t.Errorf("%v ends with %d, want %d", err, got, code)
		}
	}
}

// Every command line is refused the same way: exit code 2 and nothing done.
func TestMalformedCommandLines(t *testing.T) {
	t.Setenv("GODWIT_SOCKET", t.TempDir()+"/nobody.sock")
	for _, line := range []string{
		"vm", "vm fly", "host info a b", "vm start", "vm migrate web-1", "vm create --memory lots x", "--frobnicate", "vm create x --disk size=1Q",
		"datastore add nowhere", "network create lan --forward 22", "migration cancel", "vm migrate web-1 --to b --bandwidth fast",
	} {
		want := exitUsage
		switch line {
		case "vm":
			want = exitOK // help
		case "datastore add nowhere":
			want = exitNotFound // the data folder is looked at first
			line += " --data " + t.TempDir()
		}
		if got := run(strings.Fields(line)); got != want {
			t.Errorf("godwit %s ends with %d, want %d", line, got, want)
		}
	}
	if got := run([]string{"vm", "ls"}); got != exitUnavailable {
		t.Errorf("without an agent it ends with %d", got)
	}
}

func TestFlagsComeFromTheEnvironmentToo(t *testing.T) {
	t.Setenv("GODWIT_MEMORY", "not a size")
	if got := run([]string{"vm", "create", "x"}); got != exitUsage {
		t.Errorf("a flag from the environment was not read: exit %d", got)
	}
	t.Setenv("GODWIT_CPUS", "many")
	if got := run([]string{"vm", "create", "x", "--memory", "1G"}); got != exitUsage {
		t.Errorf("a malformed variable was taken: exit %d", got)
	}
}

func TestDetachKeyEndsTheInput(t *testing.T) {
	var sent strings.Builder
	copyInput(strings.NewReader("ls\n\x1dnever"), func(b []byte) error { sent.Write(b); return nil })
	if sent.String() != "ls\n" {
		t.Errorf("sent %q", sent.String())
	}
}
