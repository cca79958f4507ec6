"""As whom PostgreSQL runs: it refuses root, and a user whom the system does not know.

Three ways, in this order:

1. as ourselves;
2. in a user namespace in which we go by the name of an ordinary user. Nothing
   is chowned or chmodded, and a checkout below a closed /root works;
3. root only, where namespaces are refused: as the user `nobody`, with what that
   user cannot reach moved (data, sockets) or copied (programs) to /var/tmp.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.layout import Layout, fingerprint

LAUNCHER = Path(__file__).with_name("launch.py")
SHARED = Path("/var/tmp")  # noqa: S108 - kept over a restart of the machine, unlike /tmp


@dataclass(frozen=True)
class Identity:
    """Who runs the programs, and where that user finds them and may write."""

    programs: Path
    home: Path
    run_as: str = ""
    owner: int | None = None
    """The user to whom the data and the socket directory must be given; None: already ours."""

    def command(self, program: str, *arguments: str, lock: Path | None = None) -> list[str]:
        """The command line that runs one of PostgreSQL's programs as this identity."""
        return launch(str(self.programs / program), *arguments, lock=lock, run_as=self.run_as)


def launch(
    program: str, *arguments: str, lock: Path | None = None, run_as: str = "", reach: str = ""
) -> list[str]:
    options = [
        ("--lock", str(lock) if lock else ""),
        ("--as", run_as),
        ("--reach", reach),
    ]
    given = [part for name, value in options if value for part in (name, value)]
    return [sys.executable, "-I", "-S", str(LAUNCHER), *given, "--", program, *arguments]


def choose(layout: Layout, programs: Path, *, namespaces: bool = True) -> Identity:
    """The first identity as which `postgres` really runs and can write to the directory.

    `namespaces=False` leaves the second way out. Raises EngineError, with what
    each way answered, if none is possible.
    """
    root = os.geteuid() == 0
    if not root and _known(os.geteuid()):
        return Identity(programs, layout.directory)
    refused = []
    if namespaces:
        user = _ordinary_user()
        inside = f"namespace:{user.pw_uid}:{user.pw_gid}"
        problem = _try_out(inside, programs, layout.directory)
        if not problem:
            owner = 0 if root else None
            return Identity(programs, layout.directory, run_as=inside, owner=owner)
        refused.append(f"a user namespace: {problem}")
    if root:
        nobody = _nobody()
        outside = f"setuid:{nobody.pw_uid}:{nobody.pw_gid}"
        home = _shared_home(layout)
        programs = _reachable_programs(outside, programs, home)
        problem = _try_out(outside, programs, None)
        if not problem:
            return Identity(programs, home, run_as=outside, owner=nobody.pw_uid)
        refused.append(f"the user {nobody.pw_name}: {problem}")
    else:
        refused.append(f"user {os.geteuid()} has no entry in the list of users (/etc/passwd)")
    raise EngineError(
        "PostgreSQL does not run as this user, and every other way is closed: "
        + "; ".join(refused)
        + ". Run as an ordinary user, or set DATABASE_URL."
    )


def _known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_user() -> pwd.struct_passwd:
    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not others:
        raise EngineError(
            "PostgreSQL needs an ordinary user, and the list of users (/etc/passwd) has none; "
            "add one (useradd postgres), or set DATABASE_URL."
        )
    return next((entry for entry in others if entry.pw_name == "nobody"), others[-1])


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        return _ordinary_user()


def _try_out(run_as: str, programs: Path, writable: Path | None) -> str:
    """Run `postgres --version` as this user; "" if that went well, else why not."""
    reach = str(writable) if writable else ""
    done = subprocess.run(  # noqa: S603
        launch(str(programs / "postgres"), "--version", run_as=run_as, reach=reach),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        cwd="/",
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or f"status {done.returncode}")


def _shared_home(layout: Layout) -> Path:
    """A directory of root's that everybody may pass through, of this layout alone."""
    home = SHARED / f"webhooks-{fingerprint(layout.directory)}"
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise EngineError(
            f"{home} should be a directory that only root can write; it is not. Remove it."
        )
    home.chmod(0o711)
    return home


def _reachable_programs(run_as: str, programs: Path, home: Path) -> Path:
    """The programs where they are if the user can run them there, else a copy of them."""
    if not _try_out(run_as, programs, None):
        return programs
    # The wheel's own path holds its version of Python, and a new wheel is a new inode.
    postgres = (programs / "postgres").stat()
    mark = f"programs-{postgres.st_ino}-{int(postgres.st_mtime)}-{postgres.st_size}"
    copy = home / mark
    if not copy.exists():
        for old in home.glob("programs-*"):
            shutil.rmtree(old)
        unfinished = home / "programs-unfinished"
        shutil.copytree(programs.parent, unfinished, symlinks=True)
        _open_to_all(unfinished)
        unfinished.rename(copy)
    return copy / programs.name


def _open_to_all(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        os.chmod(folder, 0o755)  # noqa: S103 - programs, for all to run
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def give(tree: Path, uid: int) -> None:
    """Make everything below `tree` that user's. Nothing to do if its top is already."""
    if tree.stat().st_uid == uid:
        return
    for folder, _, files in os.walk(tree, topdown=False):
        for name in files:
            os.chown(Path(folder, name), uid, -1, follow_symlinks=False)
        os.chown(folder, uid, -1)  # the top comes last: an interrupted pass is done again
