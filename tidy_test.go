// Package godwit_test is the house rules as tests: what no linter looks at, each failure with what to do.
package godwit_test

import (
	"bufio"
	"bytes"
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// linesMax is how long a file may be that a person is to read in one sitting.
const linesMax = 700

// tracked lists the files of the repository, those that are new and not ignored included.
func tracked(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v: these tests look at a git checkout", err)
	}
	var files []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() { // not one that was just deleted
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		t.Fatal("git lists no files: run this in the repository's root")
	}
	return files
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func generated(name string) bool {
	return strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, ".connect.go") || name == "docs/cli.md" ||
		path.Base(name) == "go.sum" || name == "LICENSE" || strings.HasPrefix(name, "bench/results/")
}

func isText(text string) bool { return !bytes.ContainsRune([]byte(text), 0) }

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	said, files := map[string]bool{}, map[string][]string{}
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(name)
		files[dir] = append(files[dir], name)
		ours := !strings.HasSuffix(name, "_test.go") || strings.HasPrefix(dir, "test") || dir == "."
		if f.Doc != nil && ours {
			said[dir] = true
		}
	}
	for dir, names := range files {
		if !said[dir] && !slices.ContainsFunc(names, generated) {
			t.Errorf("%s has no package comment: say in %s what it is for and what it does not do", dir, names[0])
		}
	}
}

func TestNoFileIsTooLongToRead(t *testing.T) {
	for _, name := range tracked(t) {
		text := read(t, name)
		if generated(name) || strings.Contains(name, "testdata/") || strings.Contains(name, "/results/") || !isText(text) {
			continue // nobody reads those in a sitting
		}
		if n := strings.Count(text, "\n"); n > linesMax {
			t.Errorf("%s has %d lines: split it by what its parts are about (%d at most)", name, n, linesMax)
		}
	}
}

// TestNoProgramIsCheckedIn finds what a build left in the tree.
func TestNoProgramIsCheckedIn(t *testing.T) {
	for _, name := range tracked(t) {
		if strings.HasPrefix(read(t, name), "\x7fELF") {
			t.Errorf("%s is a built program: remove it, and let .gitignore name it", name)
		}
	}
}

// TestNothingOfOneMachineIsWrittenDown finds paths and host names of the machine that a change was made on.
func TestNothingOfOneMachineIsWrittenDown(t *testing.T) {
	paths := regexp.MustCompile(`(^|[\s"'=:(` + "`" + `])/(work|root)/`)
	mirrors := mirrors()
	for _, name := range tracked(t) {
		text := read(t, name)
		if !isText(text) {
			continue
		}
		number := 0
		for line := range strings.Lines(text) {
			number++
			if found := paths.FindString(line); found != "" {
				t.Errorf("%s:%d has %q, a path of one machine: take a flag, $HOME, or a folder of the test's own", name, number, strings.TrimSpace(found))
			}
			for _, host := range mirrors {
				if strings.Contains(line, host) {
					t.Errorf("%s:%d names %s, which this machine downloads from: others download elsewhere", name, number, host)
				}
			}
		}
	}
}

// mirrors lists the hosts that this machine gets packages and modules from.
func mirrors() []string {
	texts := []string{os.Getenv("GOPROXY")}
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*"} {
		names, _ := filepath.Glob(pattern) // the pattern is well formed
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil {
				texts = append(texts, string(text))
			}
		}
	}
	var hosts []string
	for _, found := range regexp.MustCompile(`https?://[^\s,|\]]+`).FindAllString(strings.Join(texts, "\n"), -1) {
		if u, err := url.Parse(found); err == nil && strings.Contains(u.Hostname(), ".") && !slices.Contains(hosts, u.Hostname()) {
			hosts = append(hosts, u.Hostname())
		}
	}
	return slices.DeleteFunc(hosts, func(h string) bool { return strings.HasPrefix(h, "127.") || h == "github.com" })
}

// TestLinterRulesAreTheSharedOnes compares the linter's rules with those that all of Godwit's repositories share, where these are.
func TestLinterRulesAreTheSharedOnes(t *testing.T) {
	const shared = "../shared/golangci.yml"
	want, err := os.ReadFile(shared)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("there are no shared rules beside this repository")
	}
	if err != nil {
		t.Fatal(err)
	}
	if read(t, ".golangci.yml") != string(want) {
		t.Errorf(".golangci.yml differs from %s: copy that, or change it first", shared)
	}
}

// TestPolicyTellsStories wants what goes in and what comes out of every policy package written down, where it can be read as prose.
func TestPolicyTellsStories(t *testing.T) {
	const policy = "internal/policy/"
	told := map[string]bool{}
	for _, name := range tracked(t) {
		rest, ok := strings.CutPrefix(name, policy)
		if !ok {
			continue
		}
		dir, file, _ := strings.Cut(rest, "/")
		story := strings.HasPrefix(file, "testdata/") && strings.HasSuffix(file, ".txt")
		test := strings.HasSuffix(file, "_test.go") && strings.Contains(read(t, name), "\nfunc Test")
		told[dir] = told[dir] || story || test
	}
	if len(told) == 0 {
		t.Errorf("there are no packages in %s: this test looks in the wrong place", policy)
	}
	for dir, ok := range told {
		if !ok {
			t.Errorf("%s%s has no story: write down in testdata/*.txt, or in a test, what goes in and what comes out", policy, dir)
		}
	}
}

// TestTermsAreUsed wants every term of docs/terms.md in code or on another page: a word that nobody uses explains nothing.
func TestTermsAreUsed(t *testing.T) {
	var all strings.Builder
	for _, name := range tracked(t) {
		if name != "docs/terms.md" && (strings.HasSuffix(name, ".go") || strings.HasPrefix(name, "docs/") || name == "README.md") {
			all.WriteString(strings.ToLower(read(t, name)))
		}
	}
	text := all.String()
	found := terms(t)
	if len(found) < 40 {
		t.Fatalf("docs/terms.md has %d terms only: this test reads the left column of its tables", len(found))
	}
	for _, term := range found {
		if !regexp.MustCompile(`\b` + regexp.QuoteMeta(strings.ToLower(term)) + `(s|es|d|ed)?\b`).MatchString(text) {
			t.Errorf("docs/terms.md has %q, which is used nowhere: use it, or take it out", term)
		}
	}
}

// terms returns the left column of the tables in docs/terms.md.
func terms(t *testing.T) []string {
	var found []string
	lines := bufio.NewScanner(strings.NewReader(read(t, "docs/terms.md")))
	for lines.Scan() {
		cells := strings.Split(lines.Text(), "|")
		if len(cells) < 4 {
			continue
		}
		for term := range strings.SplitSeq(cells[1], ",") {
			if term = strings.TrimSpace(term); term != "" && term != "We say" && !strings.HasPrefix(term, "--") {
				found = append(found, term)
			}
		}
	}
	return found
}

// TestPagesPointSomewhere follows the links between pages, and the make targets and packages that they name.
func TestPagesPointSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	target := regexp.MustCompile("(?m)(?:^    |`)make ([a-z]+)")
	makefile := read(t, "Makefile")
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		text := read(t, name)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(path.Join(path.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
			}
		}
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s says make %s, which the Makefile does not have", name, m[1])
			}
		}
	}
}

// TestDecisionsAreComplete wants context, choice and price of each decision, a number for each, and a page at most.
func TestDecisionsAreComplete(t *testing.T) {
	names, err := filepath.Glob("docs/decisions/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("no decisions in docs/decisions (%v)", err)
	}
	seen := map[string]string{}
	for _, name := range names {
		number, _, _ := strings.Cut(filepath.Base(name), "-")
		if other := seen[number]; other != "" {
			t.Errorf("%s has the number of %s: take the next one", name, other)
		}
		seen[number] = name
		text := read(t, name)
		if !strings.HasPrefix(text, "# "+number+" ") {
			t.Errorf("%s: its title does not begin with its number", name)
		}
		for _, part := range []string{"**Context.**", "**Choice.**", "**Price.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no %s", name, part)
			}
		}
		if n := strings.Count(text, "\n"); n > 60 {
			t.Errorf("%s has %d lines: a decision is one page", name, n)
		}
	}
}

// TestChangesAreShort wants what an operator reads of a change: a title and a few sentences.
func TestChangesAreShort(t *testing.T) {
	names, err := filepath.Glob("changelog/unreleased/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text := read(t, name)
		if !strings.HasPrefix(text, "# ") {
			t.Errorf("%s has no title", name)
		}
		if n := strings.Count(text, "\n"); n > 15 {
			t.Errorf("%s has %d lines: two or three sentences for the operator", name, n)
		}
	}
}
