package warden

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hurryVariable makes this test's process one that hurries and prints the niceness of each of its threads.
const hurryVariable = "GODWIT_TEST_HURRY"

// TestHurryTakesEveryThread begins with the niceness that the tests have: all threads of a process that hurries have 10 less, if that is allowed.
func TestHurryTakesEveryThread(t *testing.T) {
	if os.Getenv(hurryVariable) != "" {
		Hurry()
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			id, _ := strconv.Atoi(thread.Name())
			n, err := unix.Getpriority(unix.PRIO_PROCESS, id)
			if err != nil {
				continue // ended since
			}
			_, _ = os.Stdout.WriteString("nice " + strconv.Itoa(20-n) + "\n")
		}
		return
	}
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := 20 - was
	if capable(unix.CAP_SYS_NICE) {
		want = max(want-urgency, -20)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestHurryTakesEveryThread$")
	cmd.Env = append(os.Environ(), hurryVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		if n, found := strings.CutPrefix(strings.TrimSpace(line), "nice "); found {
			seen++
			if n != strconv.Itoa(want) {
				t.Errorf("a thread has the niceness %s, want %d", n, want)
			}
		}
	}
	if seen == 0 {
		t.Errorf("no thread was seen:\n%s", out)
	}
}
