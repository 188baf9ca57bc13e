package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vm/godwit/internal/fault"
)

// plant makes files below root.
func plant(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// describe writes a descriptor as distributions have them.
func describe(code, format, machines, features string) string {
	return `{"description": "UEFI", "interface-types": ["uefi"], "mapping": {"device": "flash",
		"executable": {"filename": "` + code + `_CODE", "format": "` + format + `"}, "nvram-template": {"filename": "` + code + `_VARS", "format": "` + format + `"}},
		"targets": [{"architecture": "x86_64", "machines": ["` + machines + `"]}], "features": [` + features + `], "tags": []}`
}

func TestTheFirmwareIsTheFirstThatFits(t *testing.T) {
	root := t.TempDir()
	none := func(why string) {
		t.Helper()
		if f, err := findFirmware(root); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "ovmf") {
			t.Errorf("%s: %+v, %v", why, f, err)
		}
	}
	none("nothing is there")
	plant(t, root, map[string]string{
		"/a/secure_CODE": "1", "/a/secure_VARS": "1", "/a/qcow_CODE": "1", "/a/qcow_VARS": "1", "/a/pc_CODE": "1", "/a/pc_VARS": "1",
		"/usr/share/qemu/firmware/10-secure.json": describe("/a/secure", "raw", "pc-q35-*", `"secure-boot", "requires-smm"`),
		"/usr/share/qemu/firmware/20-qcow.json":   describe("/a/qcow", "qcow2", "pc-q35-*", ""),
		"/usr/share/qemu/firmware/30-pc.json":     describe("/a/pc", "raw", "pc-i440fx-*", ""),
		"/usr/share/qemu/firmware/40-broken.json": `{"mapping": [`,
		"/usr/share/qemu/firmware/50-gone.json":   describe("/a/gone", "raw", "pc-q35-*", ""),
	})
	none("none fits")
	plant(t, root, map[string]string{"/usr/share/OVMF/OVMF_CODE_4M.fd": "123", "/usr/share/OVMF/OVMF_VARS_4M.fd": "12"})
	if f, err := findFirmware(root); err != nil || f.Code != "/usr/share/OVMF/OVMF_CODE_4M.fd" || f.CodeSize != 3 || f.VarsSize != 2 {
		t.Errorf("at its known place: %+v, %v", f, err)
	}
	plant(t, root, map[string]string{
		"/a/good_CODE": "1234", "/a/good_VARS": "12", "/a/own_CODE": "12345", "/a/own_VARS": "12",
		"/usr/share/qemu/firmware/60-good.json": describe("/a/good", "raw", "pc-q35-*", `"acpi-s3", "verbose-dynamic"`),
		"/usr/share/qemu/firmware/70-last.json": describe("/a/own", "raw", "pc-q35-*", ""),
	})
	if f, err := findFirmware(root); err != nil || f.Code != "/a/good_CODE" || f.CodeSize != 4 {
		t.Errorf("described: %+v, %v", f, err)
	}
	plant(t, root, map[string]string{"/etc/qemu/firmware/60-good.json": ""})
	if f, err := findFirmware(root); err != nil || f.Code != "/a/own_CODE" {
		t.Errorf("with the first hidden by the administrator: %+v, %v", f, err)
	}
}

func TestAVMHasVariablesOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"code": "code", "vars": "template"})
	f, err := Firmware{Code: dir + "/code", Vars: dir + "/vars"}.measure("/")
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "web-1-vars.fd")
	if err := f.MakeVars(own, nil); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(own); string(text) != "template" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if err := f.CheckVars(own); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(own, []byte("another VM's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.MakeVars(own, nil); !fault.Is(err, fault.Exists) {
		t.Error(err)
	}
	if text, err := os.ReadFile(own); string(text) != "another VM's" || err != nil {
		t.Errorf("it is %q now, %v", text, err)
	}
	if err := f.CheckVars(own); !fault.Is(err, fault.Incompatible) {
		t.Error(err)
	}
	if err := f.MakeVars(filepath.Join(dir, "no", "such"), nil); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
}
