package gate

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/internal/driver/peer"
	"github.com/godwit-vm/godwit/internal/fault"
	"github.com/godwit-vm/godwit/internal/wire"
	"github.com/godwit-vm/godwit/test/lab"
)

// company is a cluster of three hosts whose users work from elsewhere: their commands know a server, a token and the CA's hash, and no socket.
// The VM web-1 is host-1's.
type company struct {
	*lab.Cluster

	ca     string
	tokens map[string]*godwitv1.CreateUserTokenResponse // by user
}

// The story: users call from anywhere with tokens, may do what their role says on every host and by way of every host, are ended at once on all
// of them, and whatever changes something is written down.
func TestUsers(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	c := &company{
		Cluster: startCluster(t, lab.Options{Hosts: 3, Run: []string{"--socket-group", nobodyGroup}}),
		tokens:  map[string]*godwitv1.CreateUserTokenResponse{},
	}
	if err := os.WriteFile(filepath.Join(c.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, role := range map[string]string{"ann": "admin", "olga": "operator", "vera": "viewer"} {
		c.root(t, "user", "create", name, "--role", role)
		made := &godwitv1.CreateUserTokenResponse{}
		if err := c.Hosts[0].Read(step(t), made, "user", "token", "create", name); err != nil {
			t.Fatal(err)
		}
		c.tokens[name], c.ca = made, made.GetCaHash()
	}
	t.Run("log in and out", c.logIn)
	t.Run("roles count on every host", c.roles)
	t.Run("a call that a host passes on is judged at both ends", c.passedOn)
	t.Run("a user of the machine", c.local)
	t.Run("a revoked token ends at once, everywhere", c.revoke)
	t.Run("what was done is written down", c.audit)
}

// root runs a command as root of the first host.
func (c *company) root(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Hosts[0].Godwit(step(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// as runs a user's command at a host, over TLS.
func (c *company) as(t *testing.T, user string, host int, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(c.tokens[user].GetSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.Hosts[0].Godwit(step(t), append(args, "--server", c.Hosts[host].Address, "--token-file", file, "--ca-hash", c.ca)...)
	return string(out), err
}

// refused demands that a command was refused for want of a right, with these words.
func refused(t *testing.T, err error, says string) {
	t.Helper()
	if lab.ExitCode(err) != 5 || !strings.Contains(err.Error(), says) {
		t.Errorf("it was answered %v, not %q with exit code 5", err, says)
	}
}

// logIn is the story of a workstation.
func (c *company) logIn(t *testing.T) {
	h := c.Hosts[1]
	login := func(args ...string) (string, error) {
		cmd := h.Interactive(step(t), append([]string{"login", h.Address}, args...)...)
		cmd.Stdin = strings.NewReader(c.tokens["olga"].GetSecret() + "\n")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	foreign := "sha256:" + strings.Repeat("0", 64)
	if out, err := login("--ca-hash", foreign); lab.ExitCode(err) != 5 || !strings.Contains(out, "its cluster is not the one of the CA hash") {
		t.Errorf("with another cluster's hash: %v: %s", err, out)
	}
	if _, err := h.Godwit(step(t), "vm", "ls", "--server", h.Address); lab.ExitCode(err) != 2 {
		t.Errorf("without a login: %v", err)
	}
	if out, err := login("--ca-hash", c.ca); err != nil || !strings.HasPrefix(out, "logged in to cluster godwit as olga, role operator: ") {
		t.Fatalf("%v: %s", err, out)
	}
	kept := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "godwit", "credentials")
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials: %v %v", info, err)
	}
	if out, err := h.Godwit(step(t), "whoami", "--server", h.Address+":7443"); err != nil || string(out) != "olga, operator of cluster godwit\n" {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.Chmod(kept, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := h.Godwit(step(t), "whoami", "--server", h.Address)
	refused(t, err, "others on this machine may read it: chmod 600")
	if err := os.Chmod(kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Godwit(step(t), "logout", h.Address); err != nil {
		t.Error(err)
	}
	if _, err := h.Godwit(step(t), "whoami", "--server", h.Address); lab.ExitCode(err) != 2 {
		t.Errorf("after the logout: %v", err)
	}
}

// roles is the story of three users at three hosts, with a VM on the first.
func (c *company) roles(t *testing.T) {
	if _, err := c.as(t, "olga", 0, words("vm create web-1 --memory 48M --firmware tiny.rom")...); err != nil {
		t.Fatal(err)
	}
	for host := range c.Hosts {
		if out, err := c.as(t, "vera", host, "vm", "ls"); err != nil || !strings.Contains(out, "web-1") {
			t.Errorf("vera looks at host %d: %v: %s", host+1, err, out)
		}
		_, err := c.as(t, "vera", host, "vm", "start", "web-1")
		refused(t, err, "vera may not VMService/StartVM: that takes the role operator, and it has viewer")
		_, err = c.as(t, "olga", host, "token", "create")
		refused(t, err, "olga may not HostService/CreateToken: that takes the role admin, and it has operator")
		_, err = c.as(t, "olga", host, "user", "set-role", "olga", "admin")
		refused(t, err, "that takes the role admin")
	}
	if _, err := c.as(t, "olga", 1, "vm", "start", "web-1"); err != nil { // host-2 passes it on
		t.Error(err)
	}
	if _, err := c.as(t, "olga", 2, "vm", "console", "web-1"); err != nil { // both directions at once, and passed on; nobody types
		t.Error(err)
	}
	_, err := c.as(t, "vera", 2, "vm", "console", "web-1")
	refused(t, err, "vera may not VMService/ConsoleVM")
	key := filepath.Join(c.Hosts[0].Data, "pki", "ca.key") // root can read it; Olga shall not make a disk of it
	_, err = c.as(t, "olga", 0, "image", "import", key, "key.raw", "--source-format", "raw")
	refused(t, err, "olga may not import a file of the host: that takes the role admin")
	if _, err := c.as(t, "ann", 2, "network", "create", "lan", "--subnet", "10.9.0.0/24"); err != nil {
		t.Error(err)
	}
	_, err = c.as(t, "ann", 2, "user", "delete", "ann")
	if lab.ExitCode(err) != 4 || !strings.Contains(err.Error(), "it is the last admin") {
		t.Errorf("the last admin goes: %v", err)
	}
	if _, err := c.as(t, "ann", 1, "vm", "stop", "web-1", "--force"); err != nil {
		t.Error(err)
	}
}

// passedOn is the story of a host whose certificate is in wrong hands: it can say for whom it calls, but no user gets more than the store says, and
// without a user it changes nothing.
func (c *company) passedOn(t *testing.T) {
	identity, err := peer.Load(filepath.Join(c.Hosts[2].Data, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	dialer := peer.NewDialer(identity)
	defer dialer.Close()
	address := c.Hosts[0].Address + ":7443"
	client := godwitv1connect.NewVMServiceClient(dialer.HTTPClient("host-1", address), "https://"+address)
	for what, k := range map[string]struct {
		headers []string
		says    string
	}{
		"for itself":              {nil, "host host-3 may not VMService/StartVM"},
		"for a viewer":            {[]string{"Godwit-Caller", "vera", "Godwit-Caller-User", "vera", "Godwit-Caller-Role", "admin"}, "vera@host-3 may not VMService/StartVM"},
		"for one who is no user":  {[]string{"Godwit-Caller", "eve", "Godwit-Caller-User", "eve", "Godwit-Caller-Role", "admin"}, "there is no user eve any more"},
		"for a user without role": {[]string{"Godwit-Caller", "olga", "Godwit-Caller-User", "olga"}, "olga@host-3 may not VMService/StartVM"},
	} {
		req := connect.NewRequest(&godwitv1.StartVMRequest{Vm: "web-1"})
		if k.headers != nil {
			req.Header().Set("Godwit-Forwarded-By", "host-3")
		}
		for i := 0; i < len(k.headers); i += 2 {
			req.Header().Set(k.headers[i], k.headers[i+1])
		}
		_, err := client.StartVM(step(t), req)
		if err = wire.FromFault(err); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), k.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// local is the story of somebody who uses a host's socket: an administrator until the cluster knows a user of that name.
func (c *company) local(t *testing.T) {
	h := c.Hosts[1]
	create := func(name string) error {
		client := godwitv1connect.NewHostServiceClient(clientAs(t, h, nobody, nogroup), "http://agent")
		_, err := client.CreateNetwork(step(t), connect.NewRequest(&godwitv1.CreateNetworkRequest{Id: name, Spec: &godwitv1.NetworkSpec{Subnet: "10.8.0.0/24"}}))
		return wire.FromFault(err)
	}
	if err := create("lan-2"); err != nil {
		t.Errorf("a member of the socket's group: %v", err)
	}
	c.root(t, "user", "create", "nobody", "--role", "viewer")
	if err := create("lan-3"); !fault.Is(err, fault.Denied) || !strings.HasPrefix(err.Error(), "nobody may not HostService/CreateNetwork") {
		t.Errorf("the same one as a viewer: %v", err)
	}
	if err := listVMs(step(t), clientAs(t, h, nobody, nogroup)); err != nil {
		t.Errorf("the viewer looks: %v", err)
	}
	c.root(t, "user", "delete", "nobody")
}

// revoke is the story of a token that got into wrong hands. It is revoked at host-1; no call that begins afterwards is answered, on any host, and what
// lasts ends within 5 s and a little, lastsMax.
func (c *company) revoke(t *testing.T) {
	follow := c.follow(t, "olga", 1)
	if _, err := c.as(t, "olga", 2, "vm", "ls"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.root(t, "user", "token", "revoke", c.tokens["olga"].GetToken().GetId())
	var took time.Duration
	ended := make(chan error, 1)
	go func() { // ends with the call, which ends with the cluster at the latest
		err := <-follow
		took = time.Since(began)
		ended <- err
	}()
	for host := range c.Hosts {
		_, err := c.as(t, "olga", host, "vm", "ls")
		refused(t, err, "the cluster does not know this token: it was revoked")
	}
	select {
	case err := <-ended:
		if err = wire.FromFault(err); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "it was revoked") {
			t.Errorf("events were followed until %v", err)
		}
		t.Logf("a call that lasts ended %v after the token", took.Round(time.Millisecond))
		if took > lastsMax {
			t.Errorf("a call that lasts went on for %v, more than %v", took, lastsMax)
		}
	case <-time.After(2 * lastsMax):
		t.Error("events are followed with a token that is revoked")
	}
	if _, err := c.as(t, "vera", 1, "vm", "ls"); err != nil {
		t.Errorf("another user's token: %v", err)
	}
	short := &godwitv1.CreateUserTokenResponse{}
	if err := c.Hosts[0].Read(step(t), short, "user", "token", "create", "olga", "--life", "1ms"); err != nil {
		t.Fatal(err)
	}
	c.tokens["olga"] = short
	_, err := c.as(t, "olga", 1, "vm", "ls")
	refused(t, err, "the token of user olga expired at ")
}

// lastsMax is how long a call may go on whose token was revoked: 5 s, and the command that revokes it.
const lastsMax = 9 * time.Second

// follow follows events as the user, and returns when the first has come.
func (c *company) follow(t *testing.T, user string, host int) (ended chan error) {
	t.Helper()
	sum, err := peer.ParseCAHash(c.ca)
	if err != nil {
		t.Fatal(err)
	}
	address := c.Hosts[host].Address + ":7443"
	web := peer.ShowToken(peer.DialUser(address, sum), c.tokens[user].GetSecret())
	ctx, done := context.WithTimeout(t.Context(), stepMax)
	t.Cleanup(done)
	stream, err := godwitv1connect.NewEventServiceClient(web, "https://"+address).ListEvents(ctx, connect.NewRequest(&godwitv1.ListEventsRequest{Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	ended = make(chan error, 1)
	go func() {
		for stream.Receive() {
		}
		ended <- stream.Err()
	}()
	return ended
}

// audit looks for what the stories above have left. Events are written behind the calls, so they are followed until all have come.
func (c *company) audit(t *testing.T) {
	missing := map[string]string{
		"a create":            "call.done web-1 olga VMService/CreateVM",
		"a start by way of":   "call.done web-1 olga VMService/StartVM",
		"a console":           "call.done web-1 olga VMService/ConsoleVM: opened",
		"a role":              "call.refused  olga UserService/SetUserRole: olga may not",
		"a start for no role": "call.refused  vera VMService/StartVM: vera may not",
		"an import":           "call.failed key.raw olga ImageService/ImportImage: olga may not import a file of the host",
		"the last admin":      "call.failed ann ann UserService/DeleteUser: delete user ann: it is the last admin",
		"a stop":              "call.done web-1 ann VMService/StopVM force=yes",
		"a lying host":        "call.refused  vera@host-3 VMService/StartVM",
		"a host for itself":   "call.refused  host host-3 VMService/StartVM",
		"a user of a machine": "call.refused  nobody HostService/CreateNetwork",
		"root":                "call.done nobody root UserService/CreateUser role=viewer",
		"a revocation":        "call.done " + c.revoked(t) + " root UserService/RevokeUserToken",
		"a revoked token":     "call.refused  a stranger VMService/ListVMs: the cluster does not know this token",
	}
	cmd := c.Hosts[1].Interactive(step(t), words("event ls --audit --follow --json")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }() // it follows without end
	lines := bufio.NewReader(out)
	for len(missing) > 0 {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) || err != nil {
			t.Fatalf("%v; not written down: %v", err, missing)
		}
		e := &godwitv1.Event{}
		if err := protojson.Unmarshal(line, e); err != nil {
			t.Fatal(err)
		}
		if !e.GetAudit() || e.GetFrom() == "" {
			t.Errorf("an audit event without a place: %s", line)
		}
		if e.GetBy() == "root" && e.GetFrom() != "socket" || e.GetBy() == "olga" && !strings.HasPrefix(e.GetFrom(), "127.") {
			t.Errorf("%s called from %s", e.GetBy(), e.GetFrom())
		}
		if strings.Contains(e.GetMessage(), "gwu1.") || strings.HasPrefix(e.GetMessage(), "VMService/ListVMs:") && e.GetBy() != "a stranger" {
			t.Errorf("an audit event that should not be: %s", line)
		}
		said := strings.Join([]string{e.GetKind(), e.GetObjectName(), e.GetBy(), e.GetMessage()}, " ")
		for what, want := range missing {
			if strings.HasPrefix(said, want) {
				delete(missing, what)
			}
		}
	}
	// Without --audit there are none of them.
	for line := range strings.Lines(c.root(t, "event", "ls", "--json")) {
		if strings.Contains(line, `"call.`) {
			t.Errorf("an event about a call among the others: %s", line)
		}
	}
}

// revoked returns the id of the token that was revoked: that of the event, since olga's is another now.
func (c *company) revoked(t *testing.T) string {
	t.Helper()
	tasks := &godwitv1.ListTasksResponse{}
	if err := c.Hosts[0].Read(step(t), tasks, "task", "ls"); err != nil {
		t.Fatal(err)
	}
	for _, k := range tasks.GetTasks() {
		if k.GetSpec().GetKind() == "user.revoke-token" {
			return k.GetSpec().GetObject()
		}
	}
	t.Fatal("no task has revoked a token")
	return ""
}
