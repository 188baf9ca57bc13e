package bridge

import (
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"

	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/inventory"
)

// nameMax is the longest name that a link can have (IFNAMSIZ less the terminating zero; netdevice(7)).
const nameMax = 15

// idMax is how much of a VM's id a tap's name has room for; the ids of inventory.NewVMID have just that.
const idMax = 10

// aliasOwn begins the alias (ip link set alias) of every link that this package makes.
const aliasOwn = "godwit "

// TapName is the name of the tap of a VM's NIC: "gw", the letters and digits of the VM's id, a dot and the number in hexadecimal. An id of
// another form than inventory.NewVMID's is represented by a hash.
func TapName(vm inventory.VMID, nic int) string {
	id := strings.TrimPrefix(string(vm), "vm-")
	if len(id) != idMax || strings.ContainsAny(id, "/:. ") {
		id = short(string(vm), idMax)
	}
	return "gw" + id + "." + strconv.FormatInt(int64(nic), 16)
}

// bridgeName is the name of the own bridge of a network: "gw-" and the network's name, or a hash where that is too long.
func bridgeName(n inventory.NetworkID) string {
	name := "gw-" + string(n)
	if len(name) > nameMax {
		name = "gw-" + short(string(n), idMax)
	}
	return name
}

// short is a name of n letters and digits that stands for a longer text.
func short(text string, n int) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:n]
}

// Carrier is what carries a network on this host: exactly one of its fields is set.
type Carrier struct {
	Bridge string // a Linux bridge that is there, on the network's segment
	Uplink string // an interface over which a bridge is made; a tag of the network is put on there
}

// ParseCarrier reads "bridge:br0" or "uplink:eth1". Errors are fault.Invalid.
func ParseCarrier(text string) (Carrier, error) {
	kind, link, ok := strings.Cut(text, ":")
	if ok && (len(link) > nameMax || link == "" || link == "." || link == ".." || strings.ContainsAny(link, "/: \t\n")) {
		return Carrier{}, fault.New(fault.Invalid, "%q is no name of an interface: see ip link", link)
	}
	switch {
	case ok && kind == "bridge":
		return Carrier{Bridge: link}, nil
	case ok && kind == "uplink":
		return Carrier{Uplink: link}, nil
	}
	return Carrier{}, fault.New(fault.Invalid, "%q says neither which bridge nor which uplink: write bridge:br0 or uplink:eth1", text)
}

// String is what ParseCarrier reads.
func (c Carrier) String() string {
	if c.Uplink != "" {
		return "uplink:" + c.Uplink
	}
	return "bridge:" + c.Bridge
}
