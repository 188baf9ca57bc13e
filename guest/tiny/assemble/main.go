// Command assemble makes the payloads of package tiny from their sources with GNU as and ld (package binutils). It is run by
// go generate in guest/tiny and writes NAME.bin for each NAME.S there, or into the folder given with -o.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	source := flag.String("source", ".", "folder of the .S files")
	out := flag.String("o", "", "folder for the .bin files; empty means the source folder")
	flag.Parse()
	if *out == "" {
		*out = *source
	}
	if err := run(context.Background(), *source, *out); err != nil {
		fmt.Fprintln(os.Stderr, "assemble:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, source, out string) error {
	files, err := filepath.Glob(filepath.Join(source, "*.S"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no .S file in %s", source)
	}
	objects, err := os.MkdirTemp("", "assemble-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(objects) }() // only scratch: nothing is lost if it stays
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".S")
		object := filepath.Join(objects, name+".o")
		if err := tool(ctx, "as", "--64", "--fatal-warnings", "-I", source, "-o", object, file); err != nil {
			return err
		}
		if err := tool(ctx, "ld", "-Ttext", "0", "--oformat", "binary", "-o", filepath.Join(objects, name+".bin"), object); err != nil {
			return err
		}
		payload, err := os.ReadFile(filepath.Join(objects, name+".bin"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, name+".bin"), payload, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// tool runs one program; its messages become the error.
func tool(ctx context.Context, name string, args ...string) error {
	output, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w (is binutils installed? make setup does it)\n%s", name, strings.Join(args, " "), err, output)
	}
	return nil
}
