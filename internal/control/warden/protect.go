package warden

import (
	"context"
	"log/slog"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// How likely the kernel's out-of-memory killer takes which process (proc(5), oom_score_adj): a VM as likely as anybody else's
// process, a role less, the warden hardly ever. driver/qemu takes the protection from its QEMUs.
const (
	wardenScore = -900
	roleScore   = -500
)

// Protect locks this process, the warden, in memory, so that it goes on when the host pages, and shields it from the out-of-memory
// killer. What is not allowed is said in the log with what to do, and is no error.
func Protect(ctx context.Context, log *slog.Logger) {
	if err := score(wardenScore); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "not shielded from the out-of-memory killer: it takes CAP_SYS_RESOURCE, which root has outside of containers", slog.Any("err", err))
	}
	if why := lockMemory(); why != "" {
		log.LogAttrs(ctx, slog.LevelWarn, "not locked in memory", slog.String("why", why))
	}
}

// ProtectRole gives a role the protection that is its own instead of the warden's, which it has inherited.
func ProtectRole() {
	_ = score(roleScore) // where that is not allowed, the warden has said so
}

// urgency is by how much the niceness of an urgent process is less than that of its host's other processes.
const urgency = 10

// Hurry has this process, the switch, run before the host's others, QEMUs included, where that is allowed. A QEMU gives its guest's frames to a
// socket that holds some 280, and throws one away when that is full at the moment at which it stops the guest: so the switch may not be late.
func Hurry() {
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return
	}
	nice := max(20-was-urgency, -20) // the system call counts from 40 down to 1 (getpriority(2))
	// Linux has a niceness for each thread, and a new one takes it from the thread that made it: a second look finds what came in the first.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, nice) // not without CAP_SYS_NICE, and then as before
			}
		}
	}
}

func score(n int) error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(n)), 0)
}

// lockMemory locks what is in memory and what will be, page by page as it is used (mlockall(2), MCL_ONFAULT), and returns why not.
func lockMemory() (why string) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return err.Error()
	}
	// With a limit a later allocation would fail, and Go ends a process for that: better not to begin.
	if limit.Cur != unix.RLIM_INFINITY && !capable(unix.CAP_IPC_LOCK) {
		return "only " + strconv.FormatUint(limit.Cur>>10, 10) + " KiB are allowed: run godwit as root, or set LimitMEMLOCK=infinity"
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return err.Error()
	}
	return ""
}

// capable reports whether this process has the capability (capabilities(7)).
func capable(which uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[which/32].Effective&(1<<(which%32)) != 0
}
