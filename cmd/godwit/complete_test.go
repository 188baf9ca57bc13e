package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/api/godwit/v1/godwitv1connect"
)

// actAsGodwit in the environment makes the test binary the program itself, for a shell that calls it.
const actAsGodwit = "GODWIT_TEST_ACTS"

func init() {
	if os.Getenv(actAsGodwit) != "" {
		main()
	}
}

// someAgent answers lists on a unix socket, as an agent does.
type someAgent struct {
	godwitv1connect.UnimplementedVMServiceHandler
	godwitv1connect.UnimplementedHostServiceHandler
	wait time.Duration
}

func (a *someAgent) ListVMs(ctx context.Context, _ *connect.Request[godwitv1.ListVMsRequest]) (*connect.Response[godwitv1.ListVMsResponse], error) {
	select {
	case <-time.After(a.wait):
	case <-ctx.Done():
	}
	resp := &godwitv1.ListVMsResponse{}
	for _, name := range []string{"web-1", "web-2", "db-1"} {
		resp.Vms = append(resp.Vms, &godwitv1.VM{
			Spec: &godwitv1.VMSpec{Name: name}, Status: &godwitv1.VMStatus{State: "running"}, Run: &godwitv1.VMRun{Owner: "host-1"},
		})
	}
	return connect.NewResponse(resp), nil
}

func (a *someAgent) ListHosts(context.Context, *connect.Request[godwitv1.ListHostsRequest]) (*connect.Response[godwitv1.ListHostsResponse], error) {
	resp := &godwitv1.ListHostsResponse{}
	for i := range 3 {
		resp.Hosts = append(resp.Hosts, &godwitv1.Host{Id: fmt.Sprintf("host-%d", i+1), Spec: &godwitv1.HostSpec{Address: fmt.Sprintf("192.0.2.%d:7443", i+1)}})
	}
	return connect.NewResponse(resp), nil
}

// listen serves the agent and names its socket in the environment.
func (a *someAgent) listen(t *testing.T) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(a))
	mux.Handle(godwitv1connect.NewHostServiceHandler(a))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Second}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	t.Setenv("GODWIT_SOCKET", socket)
}

// tab returns what bash offers for a line that ends at the cursor.
func tab(t *testing.T, line string) []string {
	t.Helper()
	// The package bash-completion reads the line for all completions; where it is not installed this stands in, for lines with
	// blanks between words.
	const script = `
set -eu
godwit() { "$GODWIT_TEST_BINARY" "$@"; }
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; }
__ltrim_colon_completions() { :; }
compopt() { :; }
source <(godwit completion bash)
complete -p godwit > /dev/null
read -ra COMP_WORDS <<< "$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=63
set +eu
__start_godwit
printf '%s\n' "${COMPREPLY[@]}"`
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-c", script, "bash", line)
	cmd.Env = append(os.Environ(), actAsGodwit+"=1", "GODWIT_TEST_BINARY="+self)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || said.Len() > 0 {
		t.Fatalf("bash: %v: %s", err, said.String())
	}
	var offered []string
	for word := range strings.Lines(string(out)) {
		word, _, _ = strings.Cut(strings.TrimSpace(word), " ") // the description follows
		if word != "" {
			offered = append(offered, word)
		}
	}
	slices.Sort(offered)
	return offered
}

func TestBashCompletesCommandsAndNames(t *testing.T) {
	new(someAgent).listen(t)
	for line, want := range map[string][]string{
		"godwit vm mig":                    {"migrate"},
		"godwit vm migrate we":             {"web-1", "web-2"},
		"godwit vm migrate web-1 --to ":    {"host-1", "host-2", "host-3"},
		"godwit vm migrate web-1 --band":   {"--bandwidth"},
		"godwit host info ":                {"host-1", "host-2", "host-3"},
		"godwit vm stop web-1 ":            nil, // it takes one
		"godwit completion f":              {"fish"},
		"godwit migration cancel ":         nil, // the agent does not know that call, and the shell says nothing of it
		"godwit vm destroy --delete-disks": {"--delete-disks"},
	} {
		if got := tab(t, line); !slices.Equal(got, want) {
			t.Errorf("%q offers %q, want %q", line, got, want)
		}
	}
}

func TestCompletionIsSilentWithoutAnAgent(t *testing.T) {
	t.Setenv("GODWIT_SOCKET", filepath.Join(t.TempDir(), "nobody.sock"))
	if got := tab(t, "godwit vm migrate "); got != nil {
		t.Errorf("nobody answers, and %q is offered", got)
	}
	slow := &someAgent{wait: time.Minute}
	slow.listen(t)
	if got := tab(t, "godwit vm migrate "); got != nil { // the test's own time limit says that it does not wait a minute
		t.Errorf("the agent is slow, and %q is offered", got)
	}
}

func TestScriptsForEveryShellAreWritten(t *testing.T) {
	dir := t.TempDir()
	files, err := writeCompletions(dir)
	if err != nil || len(files) != len(shells) {
		t.Fatalf("%q, %v", files, err)
	}
	for i, shell := range shells {
		text, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "__complete") {
			t.Errorf("%s does not ask godwit", files[i])
		}
		if path, err := exec.LookPath(shell.name); err == nil {
			if said, err := exec.CommandContext(t.Context(), path, "-n", files[i]).CombinedOutput(); err != nil {
				t.Errorf("%s does not take its script: %v\n%s", shell.name, err, said)
			}
		}
	}
}

func TestArgumentsAreReadFromUsage(t *testing.T) {
	for use, want := range map[string][]string{
		"migrate VM --to HOST": {"VM"}, "info [HOST]": {"HOST"}, "ls": nil, "clone VM NAME": {"VM", "NAME"}, "rm VM DISK [flags]": {"VM", "DISK"},
	} {
		if got := arguments(use); !slices.Equal(got, want) {
			t.Errorf("%q has %q, want %q", use, got, want)
		}
	}
}

func TestManualPagesAreWholeAndRender(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	files, err := writeManuals(dir)
	if err != nil {
		t.Fatal(err)
	}
	walk(newRoot(), func(c *cobra.Command) {
		file := filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1")
		text, err := os.ReadFile(file)
		if err != nil || !slices.Contains(files, file) {
			t.Errorf("%s has no page: %v", c.CommandPath(), err)
			return
		}
		for _, part := range []string{".TH ", ".SH NAME", ".SH SYNOPSIS"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s lacks %q", file, part)
			}
		}
		for verb := range strings.FieldsSeq(c.Short) {
			if !strings.Contains(plain(string(text)), plain(verb)) {
				t.Errorf("%s lost %q", file, verb)
			}
		}
	})
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Log("no groff here: how the pages render was not looked at")
		return
	}
	said, err := exec.CommandContext(t.Context(), groff, append([]string{"-man", "-Tutf8", "-ww", "-z"}, files...)...).CombinedOutput()
	if err != nil || len(said) > 0 {
		t.Errorf("groff: %v\n%s", err, said)
	}
}

// plain leaves out what roff writes in its own way.
func plain(text string) string { return strings.NewReplacer(`\`, "", "-", "", `\(`, "").Replace(text) }
