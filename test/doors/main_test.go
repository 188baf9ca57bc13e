package doors

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest"
	_ "github.com/godwit-vm/godwit/internal/driver/vnet" // what stands behind the doors: a change of it makes these tests run again
	_ "github.com/godwit-vm/godwit/internal/face/rpc"    // likewise
	"github.com/godwit-vm/godwit/test/lab"
)

// house is where the doors are.
type house struct {
	Socket  string            // the agent's
	Switch  string            // its control socket
	Address string            // of the agent's port
	Trunk   string            // of the switch's
	PKI     string            // the host's identity
	CAHash  string            // of the cluster
	Tokens  map[string]string // by role
}

// houseVariable tells the processes that the fuzzer starts where the host of the first one is.
const houseVariable = "GODWIT_TEST_DOORS"

// at is the house of this process.
var at house

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if text := os.Getenv(houseVariable); text != "" {
		if err := json.Unmarshal([]byte(text), &at); err != nil {
			fmt.Fprintln(os.Stderr, "doors:", err)
			return 1
		}
		return m.Run()
	}
	dir, err := lab.BuildFolder()
	if err != nil {
		fmt.Fprintln(os.Stderr, "doors:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }() // the next run takes what stays
	c, before, err := build(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "doors:", err)
		return 1
	}
	code := m.Run()
	if err := stood(c, before); err != nil {
		fmt.Fprintln(os.Stderr, "doors:", err)
		code = 1
	}
	if err := c.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "doors:", err)
		code = 1
	}
	return code
}

// startMax bounds the start of the host.
const startMax = 2 * time.Minute

// build starts a host that has a user of each role, and returns the PIDs of its roles.
func build(dir string) (_ *lab.Cluster, pids map[string]int, err error) {
	ctx, done := context.WithTimeout(context.Background(), startMax)
	defer done()
	binary := filepath.Join(dir, "godwit")
	if err := lab.Build(binary); err != nil {
		return nil, nil, err
	}
	cache, err := guest.Cache()
	if err != nil {
		return nil, nil, err
	}
	c, err := lab.Start(ctx, lab.Options{
		Binary: binary, Hosts: 1, Cache: filepath.Join(cache, "probes"),
		// Limits that a fuzzer does not meet: what they do has tests of its own.
		Run: []string{"--limits-calls-per-second=100000", "--limits-calls-burst=100000", "--limits-joins-per-minute=1000000"},
	})
	if err != nil {
		return nil, nil, err
	}
	h := c.Hosts[0]
	at = house{
		Socket: h.Socket, Switch: filepath.Join(h.Run, "switch.sock"), Address: h.Address + ":7443", Trunk: h.Address + ":7444",
		PKI: filepath.Join(h.Data, "pki"), Tokens: map[string]string{},
	}
	for _, role := range []string{"viewer", "operator", "admin"} {
		made := &godwitv1.CreateUserTokenResponse{}
		_, err := h.Godwit(ctx, "user", "create", "the-"+role, "--role", role)
		if err == nil {
			err = h.Read(ctx, made, "user", "token", "create", "the-"+role)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", err, c.Close())
		}
		at.Tokens[role], at.CAHash = made.GetSecret(), made.GetCaHash()
	}
	text, err := json.Marshal(at)
	if err == nil {
		err = os.Setenv(houseVariable, string(text))
	}
	if err == nil {
		pids, err = roles(ctx, h)
	}
	return c, pids, err
}

func roles(ctx context.Context, h *lab.Host) (map[string]int, error) {
	pids := map[string]int{}
	for _, role := range []string{"agent", "store", "switch", "warden"} {
		pid, err := h.PID(ctx, role)
		if err != nil {
			return nil, err
		}
		pids[role] = pid
	}
	return pids, nil
}

// stood returns why the host is not as it was: a process that ended meanwhile, or a panic.
func stood(c *lab.Cluster, before map[string]int) error {
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	h := c.Hosts[0]
	after, err := roles(ctx, h)
	if err != nil {
		return err
	}
	for role, pid := range before {
		if after[role] != pid {
			return fmt.Errorf("%s was process %d and is %d", role, pid, after[role])
		}
	}
	log, err := os.ReadFile(h.LogPath())
	if err != nil {
		return err
	}
	if bad := lab.Alarm(log); bad != "" {
		return fmt.Errorf("%.4000s", bad)
	}
	return nil
}
