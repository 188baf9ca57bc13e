package defect

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestNothingIsSeeded holds a program that was built without a tag to have no defect, and each defect to have its file and tag.
func TestNothingIsSeeded(t *testing.T) {
	if len(Names) != 0 {
		t.Skipf("this program was built with %s", strings.Join(Names, ", "))
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	seeds := map[string]bool{}
	for _, name := range files {
		if name == "defect.go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tag := strings.TrimSuffix(name, ".go")
		method := regexp.MustCompile(`func \(seeded\) (\w+)\(\) bool \{ return true \}`).FindSubmatch(text)
		if method == nil || !strings.HasPrefix(string(text), "//go:build defect_"+tag+"\n") || !strings.Contains(string(text), `"`+tag+`"`) {
			t.Errorf("%s does not seed a defect under the tag defect_%s", name, tag)
			continue
		}
		seeds[string(method[1])] = true
	}
	all := reflect.ValueOf(Seeded)
	for i := range all.NumMethod() {
		name := all.Type().Method(i).Name
		if all.Method(i).Call(nil)[0].Bool() {
			t.Errorf("%s is seeded without its tag", name)
		}
		if !seeds[name] {
			t.Errorf("%s has no file that seeds it", name)
		}
	}
	if all.NumMethod() != len(seeds) || len(seeds) < 15 {
		t.Errorf("%d defects, %d files", all.NumMethod(), len(seeds))
	}
}
