"""Python as on Windows: for an interpreter, and its children, with this file's folder first in PYTHONPATH.

POSIX's modules, functions and signals that Windows lacks are removed, except what other packages need because they see
Linux. Files follow Windows' rules: one that is open or mapped can be neither renamed, replaced nor deleted, folders
cannot be opened, a file that is open for reading cannot be flushed, links are not allowed, and names contain no colon.
Processes are spawned. Text files without an encoding are an error in the project's code.
"""

import errno
import fcntl
import io
import multiprocessing
import multiprocessing.context
import os
import re
import shutil
import signal
import sys
import warnings

import psutil  # noqa: F401  # its part for Linux needs `resource`

MODULES = ("fcntl", "resource", "pwd", "grp", "syslog")
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP", "setitimer", "getitimer", "alarm", "siginterrupt")
FUNCTIONS = (
    "fork forkpty sched_getaffinity getgid getegid getpgid setsid killpg O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK "
    "sysconf mkfifo statvfs posix_fadvise pread preadv pwrite chown chroot nice wait3 wait4 sync fdatasync getloadavg"
).split()
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')

_status_flags, _get_flags = fcntl.fcntl, fcntl.F_GETFL
_open, _fsync, _replace, _rename, _unlink = os.open, os.fsync, os.replace, os.rename, os.unlink
_inside = [False]  # while this file reads /proc


def _used_files() -> set[str]:
    used = set()
    _inside[0] = True
    try:
        for number in os.listdir("/proc/self/fd"):
            try:
                used.add(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        with io.open("/proc/self/maps", encoding="utf-8") as file:  # noqa: UP020
            used |= {fields[5].rstrip("\n") for line in file if len(fields := line.split(None, 5)) == 6}
    finally:
        _inside[0] = False
    return used


def _refuse_used(*paths: object) -> None:
    used = _used_files()
    for path in paths:
        real = os.path.realpath(os.fsdecode(path))
        if any(name == real or name.startswith(f"{real}/") for name in used):
            raise PermissionError(errno.EACCES, "it is used by this process, so Windows refuses", os.fspath(path))


def open_(path, flags, mode=0o777, *, dir_fd=None):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Windows opens no folders", os.fspath(path))
    return _open(path, flags, mode, dir_fd=dir_fd)


def fsync(descriptor):
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if _status_flags(number, _get_flags) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Windows flushes no file that is open for reading")
    _fsync(number)


def replace(source, target, **options):
    _refuse_used(source, target)
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "Windows replaces no folders", os.fspath(target))
    _replace(source, target, **options)


def rename(source, target, **options):
    _refuse_used(source, target)
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "Windows renames to a new name only", os.fspath(target))
    _rename(source, target, **options)


def unlink(path, **options):
    if not sys._getframe(1).f_code.co_filename.endswith("tempfile.py"):  # which sees Linux
        _refuse_used(path)
    _unlink(path, **options)


def symlink(*_, **__):
    raise OSError(errno.EPERM, "Windows allows no links")


def _check_names(event: str, arguments: tuple) -> None:
    if event not in ("open", "os.mkdir", "os.rename") or _inside[0]:
        return
    for path in arguments[: 2 if event == "os.rename" else 1]:
        name = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if FORBIDDEN.search(name) and not name.startswith(("/proc/", "/sys/")):
            raise OSError(errno.EINVAL, "Windows does not allow this name", name)


def get_context(self, method=None, _get=multiprocessing.context.DefaultContext.get_context):
    if method in ("fork", "forkserver"):
        raise ValueError(f"cannot find context for {method!r}")
    return _get(self, method)


sys.modules.update(dict.fromkeys(MODULES))
for owner, names in ((signal, SIGNALS), (os, FUNCTIONS)):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
os.open, os.fsync, os.replace, os.rename, os.symlink = open_, fsync, replace, rename, symlink
os.unlink = os.remove = unlink
shutil._use_fd_functions = False  # `rmtree` then calls `unlink` with paths, as on Windows
sys.addaudithook(_check_names)
multiprocessing.set_start_method("spawn")
multiprocessing.context.DefaultContext.get_context = get_context
multiprocessing.get_context = multiprocessing.context._default_context.get_context
warnings.filterwarnings("error", category=EncodingWarning, module=r"audiolm_lite|data_prep")
