package packets

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/godwit-vm/godwit/test/lab"
)

var (
	migrationsFlag = flag.Int("migrations", 0, "how many migrations complete; 0: the short form of CI")
	abortsFlag     = flag.Int("aborts", 0, "how many are aborted, with -migrations")
	rateFlag       = flag.Int("rate", 0, "packets a second each way; 0: 10,000, in CI fewer")
	bridgeFlag     = flag.Bool("bridge", false, "on the bridge driver, which is measured and may lose packets")
	keepFlag       = flag.String("keep", "", "file to keep the result in, as JSON")
)

// godwit is the binary as these tests built it from the commit, without the race detector: that would be another machine's speed.
var godwit, commit string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var remove func()
	var err error
	if godwit, commit, remove, err = lab.BuildCommit(*keepFlag != ""); err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
		return 1
	}
	defer remove()
	return m.Run()
}
