"""Runs one command under a limit of memory, and measures what it took.

The limit is that of a memory cgroup (version 1 or 2) made for the run, so that going over it kills the process;
where none can be made, that of a scope of systemd; else there is no limit, and the run says so. Linux only; needs no
package.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.02


@dataclass(frozen=True)
class Run:
    """What became of a command."""

    exit_code: int
    """Minus the signal, where one ended it."""
    wall_s: float
    cpu_s: float
    limit_bytes: int | None
    enforced_by: str | None
    """What would have killed it over the limit; none where nothing would have."""
    rss_peak_bytes: int
    """VmHWM: private memory, and pages of mapped files while they were in memory."""
    anon_peak_bytes: int
    """Private memory alone; looked at every 20 ms, so a shorter peak is missed."""
    group_peak_bytes: int | None
    """What the group was charged at most. It also counts files that were read, which the kernel gives back at will, so
    under a limit it comes near the limit whatever the program needs."""
    limit_hits: int | None
    """How often the kernel had to take pages back for the limit's sake."""
    oom_kills: int | None
    marks: dict[str, float]
    """Seconds from the start until a pattern first stood in the output."""
    out: str
    err: str


class Group:
    """A memory cgroup that lives for one run."""

    FILES = {
        1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
        2: ("memory.max", "memory.swap.max", "memory.peak", "memory.events"),
    }

    def __init__(self, root: Path, version: int, limit_bytes: int | None) -> None:
        self.version = version
        self.folder = root / f"calotype-{os.getpid()}-{time.monotonic_ns()}"
        self.folder.mkdir()
        self.limit, swap, self.peak, self.events = (self.folder / name for name in self.FILES[version])
        if limit_bytes is not None:
            self.limit.write_text(str(limit_bytes))
            # Version 1 counts memory and swap together, and with that limit set counts no hits of the other.
            if swap.exists() and (version == 2 or len(Path("/proc/swaps").read_text().splitlines()) > 1):
                swap.write_text(str(limit_bytes if version == 1 else 0))

    def join(self) -> None:
        """Puts the calling process into the group."""
        (self.folder / "cgroup.procs").write_text("0")

    def peak_bytes(self) -> int | None:
        return int(self.peak.read_text()) if self.peak.exists() else None

    def counts(self) -> tuple[int | None, int | None]:
        """How often the limit was hit, and how many processes that killed."""
        events = dict(line.split() for line in self.events.read_text().splitlines())
        hits = (self.folder / "memory.failcnt").read_text() if self.version == 1 else events.get("max")
        kills = events.get("oom_kill")
        return (None if hits is None else int(hits), None if kills is None else int(kills))

    def remove(self) -> None:
        for _ in range(100):  # the kernel may need a moment after the last process
            try:
                return self.folder.rmdir()
            except OSError:
                time.sleep(POLL_S)
        self.folder.rmdir()


def hierarchy() -> tuple[Path, int] | None:
    """Where memory cgroups can be made, and of which version they are."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        root = Path(place)
        if kind == "cgroup" and "memory" in options.split(",") and os.access(root, os.W_OK):
            return root, 1
        if kind == "cgroup2" and "memory" in (root / "cgroup.controllers").read_text().split():
            try:
                (root / "cgroup.subtree_control").write_text("+memory")
            except OSError:
                continue
            return root, 2
    return None


def scope(limit_bytes: int) -> list[str] | None:
    """The start of a command that systemd runs under the limit; it becomes the command, under the same process id."""
    if not Path("/run/systemd/system").exists() or not shutil.which("systemd-run"):
        return None
    limits = ["-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0"]
    return ["systemd-run", *([] if os.getuid() == 0 else ["--user"]), "--scope", "--quiet", *limits, "--"]


def run(
    command: Sequence[str | Path],
    limit_bytes: int | None = None,
    marks: Mapping[str, str] | None = None,
    timeout_s: float = 3600,
) -> Run:
    """Runs the command to its end. `marks` names patterns whose first appearance in its output is timed."""
    words = [str(word) for word in command]
    place = hierarchy()
    group = Group(*place, limit_bytes) if place else None
    enforced_by = f"cgroup v{group.version}" if group and limit_bytes is not None else None
    if limit_bytes is not None and group is None and (start := scope(limit_bytes)):
        words, enforced_by = start + words, "systemd-run"
    try:
        return measured(words, group, limit_bytes, enforced_by, dict(marks or {}), timeout_s)
    finally:
        if group:
            group.remove()


def measured(
    words: list[str],
    group: Group | None,
    limit_bytes: int | None,
    enforced_by: str | None,
    marks: dict[str, str],
    timeout_s: float,
) -> Run:
    patterns = {name: re.compile(pattern.encode()) for name, pattern in marks.items()}
    seen: dict[str, float] = {}
    out, err = bytearray(), bytearray()
    anon_peak_bytes = 0
    environment = {**os.environ, "STARTED": str(time.time())}
    started = time.monotonic()
    # The child joins before it becomes the command, so nothing that it allocates escapes the group.
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=group.join if group else None,
    )
    assert process.stdout and process.stderr
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        for stream, text in ((process.stdout, out), (process.stderr, err)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, text)
        try:
            while True:
                for key, _ in selector.select(POLL_S):
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    key.data.extend(chunk)
                now = time.monotonic() - started
                for name in patterns.keys() - seen.keys():
                    if patterns[name].search(out) or patterns[name].search(err):
                        seen[name] = now
                anon_peak_bytes = max(anon_peak_bytes, anon_bytes(process.pid))
                if now > timeout_s:
                    os.kill(process.pid, signal.SIGKILL)  # `Popen.kill` may reap it, and the measurements with it
                if not selector.get_map():
                    time.sleep(POLL_S)  # with both pipes closed `select` does not wait
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream, text in ((process.stdout, out), (process.stderr, err)):
            text.extend(stream.read() or b"")
    hits, kills = group.counts() if group else (None, None)
    return Run(
        exit_code=process.returncode,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        limit_bytes=limit_bytes,
        enforced_by=enforced_by,
        rss_peak_bytes=usage.ru_maxrss * 1024,  # the kernel's own VmHWM, which no poll can miss
        anon_peak_bytes=anon_peak_bytes,
        group_peak_bytes=group.peak_bytes() if group else None,
        limit_hits=hits,
        oom_kills=kills,
        marks=seen,
        out=out.decode(errors="replace"),
        err=err.decode(errors="replace"),
    )


def anon_bytes(pid: int) -> int:
    """The private memory of a process; 0 once it has none."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def evict(places: Sequence[Path]) -> int | None:
    """Drops the pages of files, and of all files in folders, from the page cache; how many bytes of them stayed.

    A page that is in the cache already is charged to nobody, so a run that finds its model there is under no limit as
    far as the model goes. Pages that another process maps stay. None where `fincore` is not there to count.
    """
    files = [f for place in places for f in ([place] if place.is_file() else place.rglob("*")) if f.is_file()]
    os.sync()  # pages that wait to be written cannot be dropped
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    if not files or not shutil.which("fincore"):
        return None
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, files)]
    return sum(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))


def warm(places: Sequence[Path]) -> None:
    """Reads files, and all files in folders, so that their pages are in the page cache, charged to no run."""
    for place in places:
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file():
                with file.open("rb", buffering=0) as opened:
                    while opened.read(1 << 22):
                        pass


def drop_caches() -> bool:
    """Drops every clean page of the machine; whether this process may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
