package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/godwit-vm/godwit/internal/inventory"
)

// fileMax bounds the file: a longer one is something else.
const fileMax = 1 << 20

// entry is one key of the file.
type entry struct {
	key  []string
	text string
	kind kind
	line int
}

type kind int

const (
	isText kind = iota
	isNumber
	isTable // [a.b], possibly without keys
	isOther
)

// readFile returns the file's keys in order. A file that is missing is an error that is fs.ErrNotExist.
func readFile(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no file")
	}
	text, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return nil, err
	}
	if len(text) > fileMax {
		return nil, fmt.Errorf("it is longer than %v", inventory.Bytes(fileMax))
	}
	return parse(text)
}

// parse reads TOML. Its syntax error names the line; only the first can be told, since what follows it is a guess.
func parse(text []byte) ([]entry, error) {
	var whole map[string]any
	if err := toml.Unmarshal(text, &whole); err != nil { // also finds keys that are given twice
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, _ := at.Position()
			text := strings.TrimPrefix(at.Error(), "toml: ")
			if strings.Contains(text, "at start of value") {
				text += ": a text wants quotes"
			}
			return nil, problem{line: row, err: errors.New(text)}
		}
		return nil, problem{err: errors.New(strings.TrimPrefix(err.Error(), "toml: "))}
	}
	// The library's decoder does not tell lines of keys that are right in form and wrong in meaning; its parser does.
	var all []entry
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind { //nolint:exhaustive // of all kinds, a file's expressions are these and comments
		case unstable.Table, unstable.ArrayTable:
			var line int
			table, line = keyOf(&p, e)
			found := entry{key: table, line: line, kind: isTable}
			if e.Kind == unstable.ArrayTable {
				found.kind = isOther
			}
			all = append(all, found)
		case unstable.KeyValue:
			all = append(all, keyValue(&p, table, e)...)
		}
	}
	if err := p.Error(); err != nil {
		return nil, problem{err: err}
	}
	return all, nil
}

// keyOf returns the dotted key of an expression and its line.
func keyOf(p *unstable.Parser, e *unstable.Node) (key []string, line int) {
	for it := e.Key(); it.Next(); {
		n := it.Node()
		key = append(key, string(n.Data))
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		}
	}
	return key, line
}

// keyValue returns the entries of "key = value": several when the value is an inline table.
func keyValue(p *unstable.Parser, table []string, e *unstable.Node) []entry {
	key, line := keyOf(p, e)
	found := entry{key: slices.Concat(table, key), line: line}
	value := e.Value()
	switch value.Kind { //nolint:exhaustive // all others are of no use here
	case unstable.String:
		found.text = string(value.Data)
	case unstable.Integer:
		found.kind, found.text = isNumber, string(value.Data)
		if n, err := strconv.ParseInt(found.text, 0, 64); err == nil { // 1_000 and 0x10 are numbers too
			found.text = strconv.FormatInt(n, 10)
		}
	case unstable.InlineTable:
		all := []entry{{key: found.key, line: line, kind: isTable}}
		for it := value.Children(); it.Next(); {
			all = append(all, keyValue(p, found.key, it.Node())...)
		}
		return all
	default:
		found.kind, found.text = isOther, string(value.Data)
	}
	return []entry{found}
}

// problem is something wrong with the configuration.
type problem struct {
	file string
	line int
	err  error
}

// Error returns file, line and cause, in the form that editors jump to.
func (p problem) Error() string {
	switch {
	case p.file == "":
		return p.err.Error()
	case p.line == 0:
		return p.file + ": " + p.err.Error()
	}
	return fmt.Sprintf("%s:%d: %v", p.file, p.line, p.err)
}

// Unwrap returns the cause.
func (p problem) Unwrap() error { return p.err }

// layer reads the file into values, and finds all that is wrong with it.
func (c *Config) layer(path string, must bool) []error {
	entries, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		if p, ok := errors.AsType[problem](err); ok {
			p.file = path
			return []error{p}
		}
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err
		}
		return []error{problem{file: path, err: err}}
	}
	var bad []error
	var blamed [][]string        // keys that are wrong: what stands below one is not wrong once more
	networks := map[string]int{} // with the line that each begins at
	for _, e := range entries {
		if slices.ContainsFunc(blamed, func(key []string) bool { return below(e.key, key) }) {
			continue
		}
		if err := c.take(path, e, networks); err != nil {
			bad = append(bad, problem{file: path, line: e.line, err: err})
			blamed = append(blamed, e.key)
		}
	}
	for name, line := range networks {
		n := c.Networks[name]
		known := slices.ContainsFunc(blamed, func(key []string) bool { return below(key, []string{"networks", name}) })
		if (n.Bridge == "") == (n.Uplink == "") && !known {
			bad = append(bad, problem{file: path, line: line, err: fmt.Errorf("networks.%s wants either bridge or uplink", name)})
		}
	}
	slices.SortStableFunc(bad, func(a, b error) int {
		p, _ := errors.AsType[problem](a)
		q, _ := errors.AsType[problem](b)
		return cmp.Compare(p.line, q.line)
	})
	return bad
}

// below reports whether the key is the other one or in the table of its name.
func below(key, other []string) bool {
	return len(key) >= len(other) && slices.Equal(key[:len(other)], other)
}

// take puts one entry of the file into the configuration.
func (c *Config) take(path string, e entry, networks map[string]int) error {
	key := strings.Join(e.key, ".")
	if e.key[0] == "networks" {
		return c.takeNetwork(path, e, networks)
	}
	if e.kind == isTable {
		if key == "authority" || key == "limits" || key == "log-levels" {
			return nil
		}
		return unknown(key, true)
	}
	s, ok := lookup(key)
	switch {
	case !ok:
		return unknown(key, false)
	case s.number && e.kind != isNumber:
		return fmt.Errorf("%s wants a number, without quotes", key)
	case !s.number && e.kind != isText:
		return fmt.Errorf("%s wants a text in quotes", key)
	}
	return c.put(s, e.text, File, fmt.Sprintf("%s:%d", path, e.line))
}

func (c *Config) takeNetwork(path string, e entry, networks map[string]int) error {
	key := strings.Join(e.key, ".")
	if len(e.key) == 1 && e.kind == isTable {
		return nil
	}
	if len(e.key) < 2 {
		return errors.New("networks is a table: write [networks.NAME] and below it bridge or uplink")
	}
	name := e.key[1]
	if err := inventory.CheckName("network", name); err != nil {
		return err
	}
	if _, known := networks[name]; !known {
		networks[name] = e.line
	}
	if len(e.key) == 2 && e.kind == isTable {
		return nil
	}
	n := c.Networks[name]
	var field *string
	if len(e.key) == 3 {
		field = map[string]*string{"bridge": &n.Bridge, "uplink": &n.Uplink}[e.key[2]]
	}
	switch {
	case field == nil:
		return unknown(key, e.kind == isTable)
	case e.kind != isText:
		return fmt.Errorf("%s wants a text in quotes", key)
	case !isLink(e.text):
		return fmt.Errorf("%s: %q is no name of a network interface: 1 to 15 characters without space, slash and colon", key, e.text)
	}
	*field = e.text
	c.Networks[name] = n
	c.remember(Value{Key: key, Text: e.text, From: File, Where: fmt.Sprintf("%s:%d", path, e.line)})
	return nil
}

// isLink reports whether the kernel would take the name for an interface (dev_valid_name in net/core/dev.c).
func isLink(name string) bool {
	return name != "" && len(name) <= 15 && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r >= 0x7f })
}

// unknown says that there is no such key, and which one was probably meant.
func unknown(key string, table bool) error {
	what := "key"
	names := []string{"networks.NAME.bridge", "networks.NAME.uplink"}
	for _, s := range settings {
		names = append(names, s.Key)
	}
	if table {
		what, names = "table", []string{"authority", "limits", "log-levels", "networks"}
	}
	if parts := strings.Split(key, "."); !table && len(parts) == 3 && parts[0] == "networks" {
		for i := range names {
			names[i] = strings.Replace(names[i], "NAME", parts[1], 1)
		}
	}
	like := key
	if table {
		like, _, _ = strings.Cut(key, ".")
	}
	if near := nearest(like, names); near != "" {
		return fmt.Errorf("unknown %s %s: did you mean %s?", what, key, near)
	}
	return fmt.Errorf("unknown %s %s: \"godwit config show\" lists all", what, key)
}
