package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/datadir"
)

// The agent remembers its part in the store while datastores are added: neither undoes what the other wrote.
func TestTwoWritersOfHostJSON(t *testing.T) {
	dir, folder := t.TempDir(), t.TempDir()
	if err := datadir.Init(dir); err != nil {
		t.Fatal(err)
	}
	first := &hostConfig{dir: dir, Host: "host-1"}
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	agent, err := loadConfig(dir) // at its start
	if err != nil {
		t.Fatal(err)
	}
	add := newDatastoreAdd()
	add.SetOut(io.Discard)
	add.SetArgs([]string{"--data", dir, "shared=" + folder})
	if err := add.Execute(); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			if err := agent.change(func(c *hostConfig) error { c.Endpoints = append(c.Endpoints, fmt.Sprint(i)); return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	now, err := loadConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(now.Datastores) != 1 || now.Datastores[0].Path != folder || len(now.Endpoints) != 20 || now.Host != "host-1" {
		t.Errorf("%+v", now)
	}
	if err := agent.change(func(*hostConfig) error { return io.EOF }); err != io.EOF { //nolint:errorlint // the very one
		t.Error(err)
	}
	slices.Sort(now.Endpoints)
	if now.Endpoints = slices.Compact(now.Endpoints); len(now.Endpoints) != 20 {
		t.Error("a change was lost")
	}
}
