package rpc

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// reads are the first words of calls that change nothing; unkeyed are those that do and take no key.
var (
	reads   = []string{"List", "Get", "Watch", "Doctor", "Console", "Display", "Screenshot", "WhoAmI", "BackUp"}
	unkeyed = map[string]string{
		"CancelMigration":   "a repeat finds it canceled",
		"CancelTask":        "a repeat finds it canceled",
		"RotateCertificate": "a repeat makes one more, and the last one counts",
		"SignCertificate":   "between hosts, and the last one counts",
		"Join":              "its token is the key",
		"Leave":             "its token is the key",
		"Prepare":           "between hosts, with the migration's id",
		"Release":           "between hosts, with the migration's id",
		"Discard":           "between hosts, with the migration's id",
		"AdmitMove":         "between hosts, and changes nothing",
		"EndMove":           "between hosts, with the move's id",
	}
)

func TestEveryChangingCallTakesAKeyOrSaysWhyNot(t *testing.T) {
	known := map[string]bool{}
	procedures(func(procedure string, m protoreflect.MethodDescriptor) {
		name := string(m.Name())
		known[strings.TrimPrefix(procedure, apiPath)] = true
		read := false
		for _, word := range reads {
			read = read || strings.HasPrefix(name, word)
		}
		if n := boolCount(read, unkeyed[name] != "", Mutates(procedure)); n != 1 {
			t.Errorf("%s is in %d of the lists of reads, of calls with a key and of those without: put it into one", procedure, n)
		}
	})
	for name := range keyed {
		if !known[name] {
			t.Errorf("there is no call %s", name)
		}
	}
	if Mutates("/godwit.v1.VMService/ListVMs") || Mutates("") || Mutates("/other.v1.VMService/CreateVM") {
		t.Error("a call counts as one that it is not")
	}
}

func boolCount(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}
