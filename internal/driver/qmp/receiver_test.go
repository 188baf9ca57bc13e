package qmp_test

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

// playReceiver plays a QEMU that gets a file by getfd, writes hello into it and answers.
func playReceiver(t *testing.T, conn *net.UnixConn) {
	text, rights := make([]byte, 4096), make([]byte, 256)
	if _, err := fmt.Fprintf(conn, "%s\r\n", greeting); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(text); err != nil { // qmp_capabilities, id 1
		t.Error(err)
	}
	if _, err := fmt.Fprintf(conn, "{\"return\": {}, \"id\": 1}\r\n"); err != nil {
		t.Error(err)
	}
	n, oobn, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		t.Error(err)
		return
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:oobn])
	if err != nil || len(messages) != 1 {
		t.Errorf("no file came with %q: %v", text[:n], err)
		return
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Errorf("%d files, %v", len(fds), err)
		return
	}
	passed := os.NewFile(uintptr(fds[0]), "passed")
	defer passed.Close()
	if _, err := passed.WriteString("hello"); err != nil {
		t.Error(err)
	}
	if _, err := fmt.Fprintf(conn, "{\"return\": {}, \"id\": 2}\r\n"); err != nil {
		t.Error(err)
	}
}
