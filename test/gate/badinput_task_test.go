package gate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "github.com/godwit-vm/godwit/api/godwit/v1"
	"github.com/godwit-vm/godwit/guest/tiny"
	"github.com/godwit-vm/godwit/test/lab"
)

// The story: people make mistakes with tasks, events and keys too. The answers are in testdata/bad-input-task.txt.
func TestBadInputTask(t *testing.T) {
	t.Parallel()
	m := &mistakes{Cluster: startCluster(t, lab.Options{Hosts: 1})}
	m.full = filepath.Join(m.Dir, "full")
	for _, name := range []string{"full", "other", "copied"} { // that state looks at
		if err := os.Mkdir(filepath.Join(m.Dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.Datastore, "tiny.rom"), tiny.Heartbeat(tiny.Options{}), 0o644); err != nil {
		t.Fatal(err)
	}
	first := m.Hosts[0]
	if _, err := first.Godwit(step(t), words("vm create rests --memory 48M --firmware tiny.rom --request taken")...); err != nil {
		t.Fatal(err)
	}
	all := &godwitv1.ListTasksResponse{}
	if err := first.Read(step(t), all, "task", "ls", "--object", "rests"); err != nil || len(all.GetTasks()) != 1 {
		t.Fatalf("tasks %v, %v", all.GetTasks(), err)
	}
	over := all.GetTasks()[0].GetId()
	var file strings.Builder
	file.WriteString("# What Godwit answers to mistakes with tasks, events and keys. Made by -rewrite; read it as prose.\n")
	for _, c := range []mistake{
		{"a task that never was", 1, words("task info task-9"), 3},
		{"following it", 1, words("task watch task-9"), 3},
		{"canceling it", 1, words("task cancel task-9"), 3},
		{"canceling a task that is over", 1, words("task cancel " + over), 4},
		{"no task", 1, words("task cancel"), 2},
		{"a negative number of tasks", 1, words("task ls --limit -1"), 2},
		{"a number that is none", 1, words("task ls --limit many"), 2},
		{"a verb that tasks do not have", 1, words("task start " + over), 2},
		{"a time that is none", 1, words("event ls --since yesterday"), 2},
		{"a time in the future", 1, words("event ls --since -1h"), 2},
		{"an event by its name", 1, words("event ls ev-1"), 2},
		{"a key that is none", 1, []string{"vm", "start", "rests", "--request", "my key"}, 2},
		{"a key that is too long", 1, words("vm start rests --request " + strings.Repeat("k", 129)), 2},
		{"a key that was used for something else", 1, words("vm create web-9 --memory 48M --firmware tiny.rom --request taken"), 4},
	} {
		t.Run(c.what, func(t *testing.T) { file.WriteString(m.try(t, c)) })
	}
	compare(t, "testdata/bad-input-task.txt", file.String())
}
