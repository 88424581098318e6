"""The process that runs one program a model wrote: it gives up its powers first, then runs what it reads.

Run as a script in a process of its own. Landlock takes away every file but Python's own, for reading; seccomp
takes away processes, programs, signals, sockets and what outlives a process; capabilities go, should it be root's;
resource limits bound time, memory and file sizes. None of it needs root or another program, all of it needs Linux,
and nothing can give the powers back.
"""

import builtins
import ctypes
import os
import platform
import resource
import struct
import sys
from typing import NoReturn

FAILED, UNCONFINED = 1, 3
"""Exit codes: the program raised; it was not run, since it could not be confined."""

_FORBIDDEN: dict[str, tuple[int, int | None]] = {
    # starting processes and programs
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    # reaching other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "unshare": (272, 97),
    # what outlives this process
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # network, and ways around this filter
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    # what Landlock leaves open on files, all of it or before its ABI 3
    "truncate": (76, 45),
    "openat2": (437, 437),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
"""System calls to refuse, with their numbers on x86_64 and, where it has them, on aarch64."""
_FORBIDDEN_WITH: dict[str, tuple[tuple[int, int | None], int, int]] = {
    "prlimit64": ((302, 261), 0, 0xFFFFFFFF),  # of a process that is named; 0 is oneself
    "fcntl": ((72, 25), 1, 8),  # F_SETOWN, F_SETSIG and F_SETOWN_EX let a pipe send any signal to any process
    "open": ((2, None), 1, os.O_TRUNC),  # truncates also what is opened for reading
    "openat": ((257, 56), 2, os.O_TRUNC),
}
"""System calls to refuse where one argument has any of these bits: numbers as above, which argument, the bits."""
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> which of the numbers is its own, and how the kernel calls its architecture."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT, _PATH_BENEATH = 444, 445, 446, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS_BY_ABI = (13, 14, 15, 15, 16, 16)
"""File system rights that exist in Landlock's ABI 1, 2, ...; later ones add no right of that kind."""


def confine(seconds: int, num_bytes: int) -> None:
    """Give up, for good, everything a program that only computes does not need.

    Args:
        seconds: processor time it gets.
        num_bytes: address space it gets.

    Raises:
        OSError: if the kernel cannot do it.
    """
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, num_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _keep_only_reading(libc, {os.path.realpath(place) for place in (sys.base_prefix, *sys.path)})
    _drop_capabilities(libc)
    _forbid_calls(libc)


def _keep_only_reading(libc: ctypes.CDLL, places: set[str]) -> None:
    """Take away the file system but for reading below some folders (Landlock)."""
    abi = _call(libc.syscall, _LANDLOCK_CREATE, None, 0, 1)
    rights = (1 << _RIGHTS_BY_ABI[min(abi, len(_RIGHTS_BY_ABI)) - 1]) - 1
    handled = struct.pack("Q", rights)
    ruleset = _call(libc.syscall, _LANDLOCK_CREATE, handled, len(handled), 0)
    for place in sorted(filter(os.path.isdir, places)):
        folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, folder)
        _call(libc.syscall, _LANDLOCK_ADD, ruleset, _PATH_BENEATH, rule, 0)
        os.close(folder)
    _call(libc.syscall, _LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what makes root more than a user, but for reading the files that root may read."""
    oneself, held = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    _call(libc.capget, oneself, held)
    reading = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    kept = [powers & reading for powers in struct.unpack("3I12x", held.raw)]
    _call(libc.capset, oneself, struct.pack("3I12x", *kept))


def _forbid_calls(libc: ctypes.CDLL) -> None:
    """Make the kernel refuse calls that reach beyond this process (a seccomp filter)."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"the system calls of {machine} are not known")
    column, architecture = _MACHINES[machine]
    load, equal, above, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow = (give, 0, 0, 0x80000000), (give, 0, 0, 0x7FFF0000)
    refuse = (give, 0, 0, 0x00050001)  # errno 1, not permitted
    # A test says how many lines to skip where it holds, and where it does not.
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), kill, (load, 0, 0, 0)]
    code += [(above, 0, 1, 0x40000000), refuse]  # calls of another numbering of the same machine
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            code += [(equal, 0, 1, number), refuse]
    for numbers, argument, bits in _FORBIDDEN_WITH.values():
        if (number := numbers[column]) is not None:
            low_half = (load, 0, 0, 16 + 8 * argument)
            code += [(equal, 0, 4, number), low_half, (any_bit, 0, 1, bits), refuse, allow]
    code += [allow]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters))
    _call(libc.prctl, _PR_SET_SECCOMP, _SECCOMP_FILTER, program, 0, 0)


def _call(function: object, *arguments: object) -> int:
    result: int = function(*arguments)  # type: ignore[operator]
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def main(seconds: str, num_bytes: str, token: str) -> None:
    """Read a program from standard input, confine this process, run it, and say the token if it came to its end.

    The token, and not the exit code, is the proof: a program may leave early with any code it likes.
    """
    program = sys.stdin.read()
    report, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        confine(int(seconds), int(num_bytes))
    except OSError as error:
        _leave(UNCONFINED, report, str(error))
    # Programs take them as given, but it is `site` that brings them, which this process starts without.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # whatever a program raises, SystemExit among it, is its failure
        _leave(FAILED, report, f"{type(error).__name__}: {error}".removesuffix(": "))
    _leave(0, report, token)


def _leave(code: int, report: int, words: str) -> NoReturn:
    os.write(report, words[:200].encode())
    os._exit(code)


if __name__ == "__main__":
    arguments, sys.argv[1:] = sys.argv[1:], []
    main(*arguments)
