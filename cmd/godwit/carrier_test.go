package main

import (
	"maps"
	"testing"

	"github.com/godwit-vm/godwit/internal/driver/config"
	"github.com/godwit-vm/godwit/internal/driver/vnet/bridge"
)

// The story: the file says what carries a network on this host, and the command line has the last word on those that it names.
func TestTheCommandLineCountsBeforeTheFile(t *testing.T) {
	set := &config.Config{Networks: map[string]config.Network{"lan": {Bridge: "br0"}, "dmz": {Uplink: "eth1"}}}
	got, err := carriersOf(set, []string{"dmz=bridge:br1", "lab=uplink:eth2"})
	if err != nil {
		t.Fatal(err)
	}
	want := carriers{"lan": bridge.Carrier{Bridge: "br0"}, "dmz": bridge.Carrier{Bridge: "br1"}, "lab": bridge.Carrier{Uplink: "eth2"}}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := carriersOf(set, []string{"dmz"}); err == nil {
		t.Error("nonsense was taken")
	}
}
