package rpc

import (
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
)

// reads are the first words of calls that change nothing; unkeyed are those that do and take no key.
var (
	reads   = []string{"List", "Get", "Watch", "Doctor", "Console", "Display", "Screenshot"}
	unkeyed = map[string]string{
		"CancelMigration": "a repeat finds it canceled",
		"CancelTask":      "a repeat finds it canceled",
		"Join":            "its token is the key",
		"Prepare":         "between hosts, with the migration's id",
		"Release":         "between hosts, with the migration's id",
		"Discard":         "between hosts, with the migration's id",
		"AdmitMove":       "between hosts, and changes nothing",
		"EndMove":         "between hosts, with the move's id",
	}
)

func TestEveryChangingCallTakesAKeyOrSaysWhyNot(t *testing.T) {
	known := map[string]bool{}
	files := godwitv1.File_godwit_v1_api_proto.Services()
	for i := range files.Len() {
		service := files.Get(i)
		methods := service.Methods()
		for j := range methods.Len() {
			name := string(methods.Get(j).Name())
			procedure := "/" + string(service.FullName()) + "/" + name
			known[string(service.Name())+"/"+name] = true
			read := false
			for _, word := range reads {
				read = read || strings.HasPrefix(name, word)
			}
			if n := boolCount(read, unkeyed[name] != "", Mutates(procedure)); n != 1 {
				t.Errorf("%s is in %d of the lists of reads, of calls with a key and of those without: put it into one", procedure, n)
			}
		}
	}
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
