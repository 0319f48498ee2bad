"""The process in which a program that a model wrote runs: `python -I jail.py VERDICT_FD SECONDS BYTES < program`.

It depends on the standard library only. Limits come from `setrlimit`; libseccomp, where it is installed, makes the
kernel refuse what could reach beyond the process: the network, other processes, and every change of a file. Reading
files is allowed, as imports need it. The verdict goes to a pipe that is open already: `sealed` or the reason why not,
and then `passed` or what went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EQUAL_MASKED = 7  # SCMP_CMP_MASKED_EQ
CLONE_THREAD = 0x10000

# Refused whatever the arguments; names that a machine does not have are skipped.
NETWORK = "socket socketpair io_uring_setup io_uring_enter io_uring_register"
PROCESSES = """fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open
pidfd_send_signal pidfd_getfd ptrace process_vm_readv process_vm_writev process_madvise kcmp setpriority
sched_setaffinity sched_setscheduler sched_setparam sched_setattr setrlimit prlimit64 setpgid setsid"""
FILES = """creat truncate ftruncate fallocate unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat
futimesat setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat open_by_handle_at
name_to_handle_at fanotify_init inotify_init inotify_init1 copy_file_range splice sendfile"""
SYSTEM = """mount umount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot
unshare setns reboot kexec_load kexec_file_load init_module finit_module delete_module bpf perf_event_open userfaultfd
keyctl add_key request_key swapon swapoff quotactl quotactl_fd acct settimeofday clock_settime clock_adjtime adjtimex
sethostname setdomainname iopl ioperm syslog vhangup setuid setgid setreuid setregid setresuid setresgid setgroups
capset shmget shmat shmctl msgget semget mq_open mq_unlink memfd_create memfd_secret personality"""
NEWER = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466}  # than some libseccomp; one number everywhere


class Compare(ctypes.Structure):
    """`struct scmp_arg_cmp`: argument number `arg`, masked by `mask`, equals `value`."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64)]


def seal() -> str:
    """Have the kernel refuse what is listed above. Returns `sealed`, or the reason why it does not."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "libseccomp.so.2 is not installed"
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))

    def refuse(name: str, error: int = errno.EPERM, *compare: Compare) -> bool:
        number = NEWER.get(name) or library.seccomp_syscall_resolve_name(name.encode())
        action, array = ctypes.c_uint32(ERRNO | error), (Compare * len(compare))(*compare)
        # Negative numbers stand for calls that this machine has not.
        return number < 0 or not library.seccomp_rule_add_array(context, action, number, len(compare), array)

    done = [refuse(name) for name in f"{NETWORK} {PROCESSES} {FILES} {SYSTEM}".split()]
    done += [refuse(name, errno.ENOSYS) for name in ("clone3", "openat2")]  # libraries then take clone and openat
    done += [refuse("clone", errno.EPERM, Compare(0, EQUAL_MASKED, CLONE_THREAD, 0))]  # threads are allowed
    for name, flags in (("open", 1), ("openat", 2)):
        for mask, value in ((os.O_ACCMODE, os.O_WRONLY), (os.O_ACCMODE, os.O_RDWR), (os.O_ACCMODE, 3)):
            done += [refuse(name, errno.EPERM, Compare(flags, EQUAL_MASKED, mask, value))]
        for flag in (os.O_CREAT, os.O_TRUNC):
            done += [refuse(name, errno.EPERM, Compare(flags, EQUAL_MASKED, flag, flag))]
    if not all(done):
        return "libseccomp does not take the rules"
    return "sealed" if library.seccomp_load(context) == 0 else "the kernel takes no seccomp filter"


def limit(seconds: int, memory: int) -> None:
    """Limit the time on the CPU, the address space, and what may be written and opened."""
    limits = {"CPU": seconds, "AS": memory, "FSIZE": 0, "CORE": 0, "NOFILE": 64, "NPROC": 0}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, ValueError, OSError):  # a system without it; macOS knows no AS
            continue


def main() -> None:
    verdict, seconds, memory = map(int, sys.argv[1:])
    program = sys.stdin.read()
    limit(seconds, memory)
    os.write(verdict, f"{seal()}\n".encode())
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "answer"})  # noqa: S102
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:200]
    else:
        said = "passed"
    os.write(verdict, said.encode(errors="replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
