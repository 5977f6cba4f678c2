"""What code in a runner's sandbox can reach, tried by code that a pickle brings in and runs."""

import contextlib
import errno
import json
import os
import pickle
import platform
import random
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from jobs.problems import Problem
from worker import sandbox as sandbox_module
from worker import seccomp
from worker.confinement import Bounds
from worker.sandbox import Place, Sandbox, find_level
from worker.template import _be_agent

MEGABYTE = 10**6
ROOMY = Bounds(cpu_seconds=60, file_bytes=10 * MEGABYTE, memory_bytes=8 * 1024**3, processes=200)

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self):
        return exec, (self.code, {})


class Cell:
    """A data folder with the jobs of two tenants, and a sandbox around one of the first's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        own, foreign = root / "tenants" / "own", root / "tenants" / "foreign"
        self.model, self.work = own / "models" / "ours", own / "jobs" / "ours"
        self.other = own / "jobs" / "other" / "model.safetensors"
        for folder in (self.model, self.work, self.other.parent, foreign):
            folder.mkdir(parents=True)
        (root / "key-secret").write_bytes(b"secret")
        (self.model / "model.safetensors").write_bytes(b"weights")
        self.other.write_bytes(b"of somebody else")

    def place(self, *readable: Path) -> Place:
        return Place(self.root, (self.model, *readable), self.work)

    def load(self, code: str, bounds: Bounds = ROOMY, *readable: Path):
        """Unpickle code in the sandbox; give what it left as `said`, and how its process ended."""
        said = self.work / "said.json"
        said.unlink(missing_ok=True)
        ending = f"\nimport json; open({str(said)!r}, 'w').write(json.dumps(said))"
        payload = pickle.dumps(Hostile(textwrap.dedent(code) + ending))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        with Sandbox(self.place(*readable)) as sandbox, ours:
            parent = os.getpid()
            agent = os.fork()
            if agent == 0:
                descriptors = [writing, os.dup(sandbox.pidfd)]
                _be_agent(theirs, parent, descriptors, bounds, lambda: pickle.loads(payload))
            theirs.close()
            os.close(writing)
            first = json.loads(ours.recv(4096))
            assert "pid" in first, first
            ended = json.loads(ours.recv(4096))["exit"]
            os.waitpid(agent, 0)
        os.close(reading)
        return (json.loads(said.read_text()) if said.exists() else None), ended


@pytest.fixture
def cell(tmp_path):
    return Cell(tmp_path)


def attempt(code: str) -> str:
    """Wrap code so that it says which errno it met, or `reached`."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    return f"try:\n{body}\n    said = 'reached'\nexcept OSError as error:\n    said = error.errno"


def test_code_in_the_sandbox_runs_and_leaves_what_it_wrote_in_its_one_folder(cell):
    said, ended = cell.load("said = open('/proc/self/status').readline()")

    assert said.startswith("Name:")
    assert ended == 0


def test_no_server_of_this_machine_can_be_reached(cell):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said, _ = cell.load(
            attempt(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
        )

    assert said in (errno.ECONNREFUSED, errno.ENETUNREACH)


def test_no_address_elsewhere_can_be_reached(cell):
    said, _ = cell.load(attempt("import socket; socket.create_connection(('192.0.2.1', 80), 2)"))

    assert said == errno.ENETUNREACH


def test_no_socket_of_redis_can_be_reached(cell, redis_url):
    path = redis_url.removeprefix("unix://")
    assert Path(path).is_socket()

    said, _ = cell.load(attempt(f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"))

    assert said == errno.ENOENT


def test_an_abstract_socket_of_the_machine_cannot_be_reached(cell):
    name = f"\0modelpress-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        said, _ = cell.load(
            attempt(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
        )

    assert said == errno.ECONNREFUSED


@pytest.mark.parametrize(
    "call",
    ["io_uring_setup", "keyctl", "userfaultfd", "bpf", "perf_event_open", "ptrace", "unshare"],
)
def test_calls_that_no_job_needs_are_refused(cell, call):
    """Not by what the process lacks: the arguments are such that an able one sees another error."""
    number = seccomp._REFUSED[call][platform.machine() == "aarch64"]
    said, _ = cell.load(
        attempt(
            f"""
            import ctypes, os
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syscall({number}, -1, -1, -1, -1, -1) < 0:
                raise OSError(ctypes.get_errno(), "refused")
            """
        )
    )

    assert said == errno.EPERM


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_ALG", "AF_NETLINK", "AF_PACKET"])
def test_sockets_of_odd_families_are_refused(cell, family):
    said, _ = cell.load(
        attempt(f"import socket; socket.socket(socket.{family}, socket.SOCK_SEQPACKET)")
    )

    assert said == errno.EPERM


def test_the_filter_of_either_processor_jumps_to_its_own_ends():
    for machine, size in (("x86_64", 33), ("aarch64", 32)):
        code = seccomp._filter(machine)
        steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]

        assert len(steps) == size
        for place, (operation, then, otherwise, _) in enumerate(steps[:-2]):
            targets = {place + 1 + then, place + 1 + otherwise}
            assert targets <= {place + 1, len(steps) - 2, len(steps) - 1}, operation
        assert [step[3] for step in steps[-2:]] == [0x00050001, 0x7FFF0000]
    assert seccomp._filter("riscv64") == b""


def test_the_files_of_another_job_cannot_be_seen(cell):
    said, _ = cell.load(attempt(f"open({str(cell.other)!r})"))
    listed, _ = cell.load(
        f"import os; said = [sorted(names) for _, names, _ in os.walk({str(cell.root)!r})]"
    )

    assert said == errno.ENOENT
    assert listed[:3] == [["tenants"], ["own"], ["jobs", "models"]]


def test_no_file_of_the_data_folder_is_there_but_the_model(cell):
    said, _ = cell.load(
        f"import os; said = [name for _, _, names in os.walk({str(cell.root)!r}) for name in names]"
    )

    assert said == ["model.safetensors"]


def test_a_supervisor_hides_what_belongs_to_all_tenants(workshop, tmp_path):
    assert workshop.supervisor.runners._hidden == tmp_path.resolve()


def test_no_folder_of_a_user_can_be_seen(cell):
    said, _ = cell.load("import os; said = sorted(os.listdir('/'))")

    seen = {Path(path).parts[1] for path in (cell.root, sandbox_module.__file__, os.__file__)}
    links = {path[1:] for path in sandbox_module._SYSTEM_LINKS}
    allowed = {"usr", "proc", "dev", "tmp", "etc"} | links | seen
    assert set(said) <= allowed | {Path(part).parts[1] for part in (os.sys.prefix,)}


def test_the_model_cannot_be_changed(cell):
    path = cell.model / "model.safetensors"

    for code in (f"open({str(path)!r}, 'r+b')", f"import os; os.unlink({str(path)!r})"):
        said, _ = cell.load(attempt(code))
        assert said == errno.EROFS

    assert path.read_bytes() == b"weights"


def test_what_is_being_hashed_cannot_be_changed(cell):
    artifact = cell.work / "artifact"
    artifact.mkdir()
    (artifact / "model.safetensors").write_bytes(b"int8")

    said, _ = cell.load(
        attempt(f"open({str(artifact / 'model.safetensors')!r}, 'r+b')"), ROOMY, artifact
    )

    assert said == errno.EROFS


@pytest.mark.parametrize(
    "path", ["/new", "/usr/new", sandbox_module.__file__, os.path.join(os.sys.prefix, "new")]
)
def test_nothing_of_the_system_can_be_written(cell, path):
    said, _ = cell.load(attempt(f"open({path!r}, 'ab')"))

    assert said in (errno.EROFS, errno.EACCES)


@pytest.mark.parametrize(
    "path", ["/proc/sys/kernel/core_pattern", "/proc/sys/fs/dir-notify-enable", "/dev/new"]
)
def test_nothing_of_the_kernel_can_be_set(cell, path):
    said, _ = cell.load(attempt(f"open({path!r}, 'r+b' if 'proc' in {path!r} else 'wb')"))

    assert said in (errno.EROFS, errno.EACCES)


def test_the_folders_that_are_memory_hold_little(cell):
    for folder in ("/tmp", "/dev/shm"):
        code = f"""
            for i in range(20):
                with open({folder!r} + f'/{{i}}', 'wb') as file:
                    file.write(bytes(9 * 10**6))
        """
        said, _ = cell.load(attempt(code))
        assert said == errno.ENOSPC


def test_no_secret_of_the_environment_is_there(cell, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://:secret@redis")

    said, _ = cell.load("""
        import glob, os
        said = [dict(os.environ)]
        for path in glob.glob('/proc/[0-9]*/environ'):
            if os.path.basename(os.path.dirname(path)) != str(os.getpid()):
                try:
                    said.append(open(path).read())
                except PermissionError:
                    said.append('')
    """)

    assert "secret" not in json.dumps(said)
    assert said[0] == {}


def test_no_process_outside_can_be_seen_or_signalled(cell):
    said, _ = cell.load(f"""
        import os, signal
        said = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())
        try:
            os.kill({os.getpid()}, 0)
            said = 'signalled'
        except ProcessLookupError:
            pass
    """)

    assert isinstance(said, list)
    assert len(said) <= 4


def test_no_power_can_be_had_again(cell):
    said, _ = cell.load("""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        said = {}
        for name, call in (
            ('user namespace', lambda: libc.unshare(0x10000000)),
            ('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)),
            ('remount', lambda: libc.mount(None, b'/usr', None, 4096 | 32, None)),
            ('chroot', lambda: libc.chroot(b'/tmp')),
            ('host name', lambda: libc.sethostname(b'x', 1)),
        ):
            said[name] = call()
        status = dict(line.split(':', 1) for line in open('/proc/self/status'))
        said['capabilities'] = sum(
            int(status[name], 16) for name in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')
        )
        said['no new privileges'] = int(status['NoNewPrivs'])
    """)

    assert said == {
        "user namespace": -1,
        "mount": -1,
        "remount": -1,
        "chroot": -1,
        "host name": -1,
        "capabilities": 0,
        "no new privileges": 1,
    }


def test_a_process_that_was_sent_to_the_background_ends_with_the_sandbox(cell, wait_until):
    mark = f"modelpress-{os.getpid()}-left"
    said, _ = cell.load(f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv('/bin/sleep', ['{mark}', '1000'])
            os._exit(0)
        time.sleep(0.2)
        said = 'left'
    """)

    assert said == "left"
    wait_until(lambda: not _running(mark), "the process to be gone")


def test_a_file_larger_than_the_bound_is_refused(cell):
    bounds = Bounds(cpu_seconds=60, file_bytes=MEGABYTE, memory_bytes=None, processes=None)

    code = f"with open({str(cell.work / 'big')!r}, 'wb') as file: file.write(bytes({2 * MEGABYTE}))"
    said, _ = cell.load(attempt(code), bounds)

    assert said == errno.EFBIG


def test_memory_beyond_the_bound_is_refused(cell):
    used = int(psutil.Process().memory_info().vms)
    bounds = Bounds(cpu_seconds=60, file_bytes=MEGABYTE, memory_bytes=used, processes=None)

    said, _ = cell.load(
        f"""
        try:
            kept = bytearray({used + 100 * MEGABYTE})
            said = 'reached'
        except MemoryError:
            said = 'refused'
    """,
        bounds,
    )

    assert said == "refused"


def test_a_loop_without_end_is_stopped_by_the_kernel(cell):
    bounds = Bounds(cpu_seconds=1, file_bytes=MEGABYTE, memory_bytes=None, processes=None)

    said, ended = cell.load("while True: pass", bounds)

    assert said is None
    assert ended < 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the kernel lets root start what it likes")
def test_processes_beyond_the_bound_are_refused(cell):
    bounds = Bounds(cpu_seconds=60, file_bytes=MEGABYTE, memory_bytes=None, processes=20)

    said, _ = cell.load(
        """
        import os, time
        said = 0
        try:
            for _ in range(100):
                if os.fork() == 0:
                    time.sleep(60)
                said += 1
        except BlockingIOError:
            pass
    """,
        bounds,
    )

    assert said < 20


def test_a_sandbox_dies_with_the_process_that_made_it(cell, wait_until):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sandbox = Sandbox(cell.place())
        os.write(writing, str(sandbox._process.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(reading, 32))
    os.close(reading)
    os.close(writing)

    wait_until(lambda: not psutil.pid_exists(pid), "the sandbox to end")


@pytest.mark.slow
def test_who_is_killed_while_making_sandboxes_leaves_no_process(cell, wait_until):
    # Before bubblewrap was kept from dying half-way, one kill in forty left a process.
    work = str(cell.work)
    code = f"""
        from pathlib import Path
        from worker.sandbox import Place, Sandbox
        work = Path({work!r})
        print(flush=True)
        while True:
            Sandbox(Place(work, (), work)).close()
    """
    chance = random.Random(0)
    for _ in range(100):
        maker = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
        )
        with maker:
            maker.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            maker.kill()

    def left():
        processes = psutil.process_iter(["cmdline"])
        return [p for p in processes if work in " ".join(p.info["cmdline"] or [])]

    wait_until(lambda: not left(), "all of them to end")


def test_without_bubblewrap_there_is_no_level_and_a_wanted_one_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda _: None)
    find_level.cache_clear()

    try:
        assert find_level("auto") == "none"
        with pytest.raises(Problem, match="bubblewrap is not installed"):
            find_level("bwrap")
    finally:
        find_level.cache_clear()


def test_a_path_that_does_not_exist_is_refused_with_bubblewraps_own_words(cell):
    with pytest.raises(Problem, match="missing") as raised:
        Sandbox(cell.place(cell.root / "missing"))

    assert raised.value.code == "sandbox_unavailable"


def _running(mark: str) -> bool:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == [mark]:
                return True
    return False
