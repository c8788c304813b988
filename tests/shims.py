"""Machines that lack something, made by a shim in front of libc (LD_PRELOAD): needs a C compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_shims = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD"
)

NO_SEMAPHORES = """
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
sem_t *sem_open(const char *name, int flag, ...) { errno = ENOSYS; return SEM_FAILED; }
"""
"""As without /dev/shm, or with one that is read-only or full."""

NO_LINKS = """
#include <errno.h>
int link(const char *from, const char *to) { errno = EPERM; return -1; }
int linkat(int a, const char *from, int b, const char *to, int flags) { errno = EPERM; return -1; }
"""
"""A file system without hard links, as FAT."""

READ_ONLY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
static int refused(const char *path, int flags) {
    const char *kept = getenv("WRITABLE");
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT)) || path[0] != '/') return 0;
    if (!strncmp(path, "/dev/", 5) || !strncmp(path, "/proc/", 6)) return 0;
    if (kept && !strncmp(path, kept, strlen(kept))) return 0;
    errno = EROFS;
    return 1;
}
#define OPEN(name)                                                         \\
    int name(const char *path, int flags, ...) {                           \\
        static int (*real)(const char *, int, ...);                        \\
        va_list more; va_start(more, flags); int mode = va_arg(more, int); \\
        if (!real) real = dlsym(RTLD_NEXT, #name);                         \\
        return refused(path, flags) ? -1 : real(path, flags, mode);        \\
    }
#define OPENAT(name)                                                       \\
    int name(int at, const char *path, int flags, ...) {                   \\
        static int (*real)(int, const char *, int, ...);                   \\
        va_list more; va_start(more, flags); int mode = va_arg(more, int); \\
        if (!real) real = dlsym(RTLD_NEXT, #name);                         \\
        return refused(path, flags) ? -1 : real(at, path, flags, mode);    \\
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
int mkdir(const char *path, mode_t mode) {
    static int (*real)(const char *, mode_t);
    if (!real) real = dlsym(RTLD_NEXT, "mkdir");
    return refused(path, O_CREAT) ? -1 : real(path, mode);
}
"""
"""A read-only root: only what begins with $WRITABLE can be written."""


def shim(folder: Path, source: str) -> str:
    """Compile `source` in `folder`; returns the value of LD_PRELOAD."""
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "shim.c"
    code.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", code, "-ldl"], check=True)
    return str(folder / "shim.so")
