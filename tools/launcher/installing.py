"""Making an environment: which Python, which installer, and its steps."""

import errno
import fcntl
import glob
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

from tools.launcher.environment import (
    EMBEDDED_LOCK,
    LOCKS,
    MARKER,
    ROOT,
    Problem,
    clean_environ,
    home,
    is_complete,
    is_trusted,
    key_of,
    make_place,
    places,
    python_of,
    say,
)

OLDEST = (3, 11)
KNOWN = ("3.13", "3.12", "3.11", "3.14")  # in the order of preference, when the default python3 is too old
OWN_PYTHONS = (".pyenv/versions/{}*/bin/python3", ".local/share/uv/python/cpython-{}*/bin/python3")
GET_UV = "uv (https://docs.astral.sh/uv/)"
FIXES = {  # what an installer says, and what helps
    r"no space left|quota exceeded": "make space on the disk, or set HOLDFAST_ENV_DIR to a directory on another one",
    r"certificate.verify.failed|peer certificate|unknownissuer": "name your certificate authorities: PIP_CERT for pip, "
    "SSL_CERT_FILE for uv",
    r"Retrying \(|timed out|resolution|dns error|sending request|proxyerror|connection (reset|refused)": "check the "
    "network. Behind a proxy set HTTPS_PROXY; with a mirror set PIP_INDEX_URL or UV_DEFAULT_INDEX",
}
UNSUPPORTED = re.compile(
    r"no matching distribution|not a supported wheel|no wheels? with a matching|unsatisfiable", re.I
)
OTHER_FIX = "see above. HOLDFAST_INSTALLER=uv, venv or pip tries another way, HOLDFAST_PYTHON another Python"


class InstallFailed(Exception):
    """A step of an installer failed."""

    def __init__(self, what: str, output: str) -> None:
        super().__init__(what)
        self.what = what
        self.output = output


# -- which Python and which installer ---------------------------------------------------------------------------------


def which(name: str, mode: int = os.F_OK | os.X_OK) -> str:
    """A program on PATH or in the usual directories of a user's own programs, or ""."""
    own = [os.path.join(home(), d) for d in (".local/bin", ".cargo/bin")] if home() else []
    found = shutil.which(name, mode, os.pathsep.join([os.environ.get("PATH", os.defpath), *own]))
    return os.path.abspath(found) if found else ""


def ask(command: "list[str]", errors: bool = False) -> str:
    """Standard output of a short command, or "" if it fails; with ``errors`` whatever it prints."""
    stderr = subprocess.STDOUT if errors else subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=clean_environ(), timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error) if errors else ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 or errors else ""


def python_version(python: str) -> str:
    """Version of an interpreter such as "3.11.2", or "" if it does not do for Holdfast."""
    code = "import sys; print(sys.implementation.name, '%d.%d.%d' % sys.version_info[:3])"
    name, _, version = ask([python, "-I", "-c", code]).partition(" ")
    new_enough = version and tuple(int(n) for n in version.split(".")[:2]) >= OLDEST
    return version if name == "cpython" and new_enough else ""


def python_candidates() -> "list[str]":
    """Interpreters to try besides the one that runs this file, the preferred versions first."""
    patterns = ["/usr/local/bin/python{}"]
    patterns += [os.path.join(top, "versions/{}*/bin/python3") for top in (os.environ.get("PYENV_ROOT"),) if top]
    patterns += [os.path.join(home(), own) for own in OWN_PYTHONS if home()]
    found = [which("python" + version) for version in KNOWN]
    found += [path for version in KNOWN for pattern in patterns for path in glob.glob(pattern.format(version))]
    return [path for path in found if path]


def find_python() -> "tuple[str, str]":
    """Path and version of a Python that does, or two empty strings."""
    wanted = os.environ.get("HOLDFAST_PYTHON", "")
    if wanted:
        path = which(wanted)
        version = python_version(path) if path else ""
        if not version:
            raise Problem(f"HOLDFAST_PYTHON={wanted} is no CPython 3.11 or newer: set it to one, or unset it")
        return path, version
    if sys.version_info >= OLDEST and sys.implementation.name == "cpython" and sys.executable:
        return sys.executable, "{}.{}.{}".format(*sys.version_info)
    for path in python_candidates():
        version = python_version(path)
        if version:
            return path, version
    return "", ""


def outside_pip(python: str) -> "list[str]":
    """How to run a pip that is not in the environment; "{env}" stands for the environment's Python. [] if none."""
    for command in ([python, "-m", "pip"], [which("pip3")], [which("pip")]):
        words = ask([*command, "--version"]).split() if command[0] else []
        # pip --python came with 22.3.
        if len(words) > 1 and words[0] == "pip" and tuple(int(n) for n in words[1].split(".")[:2]) >= (22, 3):
            return [*command, "--python", "{env}"]
    for wheel in sorted(glob.glob("/usr/share/python-wheels/pip-*.whl"), reverse=True):
        return ["{env}", wheel + "/pip"]
    zipapp = which("pip.pyz", os.R_OK)
    return ["{env}", zipapp] if zipapp else []


def installers(python: str) -> "list[tuple[str, list[str]]]":
    """Ways to make an environment that this machine has, best first: a name and the command of uv or an outside pip."""
    forced = os.environ.get("HOLDFAST_INSTALLER", "")
    if forced not in ("", "uv", "venv", "pip"):
        raise Problem(f"HOLDFAST_INSTALLER={forced}: set it to uv, venv or pip, or unset it")
    found: list[tuple[str, list[str]]] = []
    uv = which("uv")
    if uv and forced in ("", "uv"):
        found.append(("uv", [uv]))
    has_pip_inside = python and ask([python, "-I", "-c", "import venv, ensurepip; print(ensurepip.version())"])
    if has_pip_inside and forced in ("", "venv"):
        found.append(("venv", []))
    if (python and not has_pip_inside and forced != "uv") or forced == "pip":
        pip = outside_pip(python) if ask([python, "-I", "-c", "import venv; print(1)"]) else []
        if pip:
            found.append(("pip", pip))
    return found


# -- making an environment --------------------------------------------------------------------------------------------


def run_step(what: str, command: "list[str]", lock_fd: int) -> None:
    """Run one command, telling now and then how it goes; raises InstallFailed with its output."""
    # The lock is handed down: should we be killed, it stays taken until the installer has ended too.
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=install_environ(),
        cwd=ROOT,
        pass_fds=(lock_fd,),
        start_new_session=True,  # pip starts a second pip: one signal ends both
    )
    assert child.stdout is not None
    output, started, told = b"", time.monotonic(), time.monotonic()
    try:
        while True:
            if select.select([child.stdout], [], [], 1.0)[0]:
                chunk = os.read(child.stdout.fileno(), 65536)
                if not chunk:
                    break
                output += chunk
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                lines = output.decode("utf-8", "replace").strip().splitlines() or [""]
                say(f"  {what} ({told - started:.0f} s) {lines[-1].strip()[:90]}")
        if child.wait() != 0:
            raise InstallFailed(what, output.decode("utf-8", "replace"))
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
        child.stdout.close()


def has_user_cache() -> bool:
    """Whether pip and uv can keep their caches where they like."""
    cache = os.environ.get("XDG_CACHE_HOME", "") or (os.path.join(home(), ".cache") if home() else "")
    try:
        os.makedirs(cache, mode=0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(cache, os.W_OK)


def install_environ() -> "dict[str, str]":
    """Environment of the installers: no prompts, no surprises, a cache that can be written."""
    environ = clean_environ()
    environ.update(PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    environ.update(PYTHONNOUSERSITE="1", NO_COLOR="1", UV_NO_PROGRESS="1", PIP_PROGRESS_BAR="off")
    if not has_user_cache():
        scratch = next((place for place in places() if is_trusted(place) and os.access(place, os.W_OK)), "")
        for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "UV_PYTHON_INSTALL_DIR"):
            environ.setdefault(name, os.path.join(scratch, name.lower()))
    return environ


def install_commands(env: str, kind: str, python: str, way: "tuple[str, list[str]]") -> "list[tuple[str, list[str]]]":
    """The steps of one installer; the last one, the embedded servers, may fail."""
    name, command = way
    lock, embedded = os.path.join(ROOT, LOCKS[kind]), os.path.join(ROOT, EMBEDDED_LOCK)
    inside = python_of(env)
    if name == "uv":
        base = ["--python", python, "--no-python-downloads"] if python else ["--python", ">=3.11,<3.14"]
        into = ["--python", inside, "--require-hashes", "--compile-bytecode"]
        return [
            ("making a virtual environment", [*command, "venv", "--no-project", *base, env]),
            ("installing packages", [*command, "pip", "sync", *into, lock]),
            ("installing the embedded servers", [*command, "pip", "install", "--no-deps", *into, "-r", embedded]),
        ]
    pip = [inside, "-m", "pip"] if name == "venv" else [word.replace("{env}", inside) for word in command]
    # --ignore-installed: a pip from outside sees its own neighbours as installed already.
    pip += ["install", "--no-deps", "--ignore-installed", "--require-hashes", "--no-warn-script-location", "-r"]
    return [
        ("making a virtual environment", [python, "-m", "venv"] + ["--without-pip"] * (name == "pip") + [env]),
        ("installing packages", [*pip, lock]),
        ("installing the embedded servers", [*pip, embedded]),
    ]


def fill(env: str, kind: str, python: str, way: "tuple[str, list[str]]", lock_fd: int) -> None:
    """Make an environment from nothing with one installer; raises InstallFailed."""
    shutil.rmtree(env, ignore_errors=True)
    steps = install_commands(env, kind, python, way)
    for what, command in steps[:-1]:
        run_step(what, command, lock_fd)
    what, command = steps[-1]
    try:
        run_step(what, command, lock_fd)
        embedded = True
    except InstallFailed as failure:
        if not UNSUPPORTED.search(failure.output) or fix_for(failure.output) != OTHER_FIX:
            raise
        embedded = False
        say("note: there are no packages of PostgreSQL and etcd for this platform, so those of the system are used:")
        say("  PostgreSQL 14 or newer and etcd 3.5 or newer; HOLDFAST_PG_BINDIR and HOLDFAST_ETCD say where they are")
    code = "import aiohttp, click, psycopg, pydantic, sysconfig; print(sysconfig.get_path('purelib'))"
    site = ask([python_of(env), "-c", code])
    if not site:
        raise InstallFailed("checking the packages", ask([python_of(env), "-c", code], errors=True))
    with open(os.path.join(site, "holdfast.pth"), "w", encoding="utf-8") as stream:
        stream.write(os.path.join(ROOT, "src") + "\n")
    facts = {"python": python, "installer": way[0], "embedded": embedded, "lock": LOCKS[kind]}
    with open(os.path.join(env, MARKER + ".new"), "w", encoding="utf-8") as stream:
        json.dump(facts, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(os.path.join(env, MARKER + ".new"), os.path.join(env, MARKER))


def take_lock(place: str) -> int:
    """Keep other launches from making environments in this place; returns the descriptor that holds the lock."""
    fd = os.open(os.path.join(place, ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            say("waiting for another ./holdfast that is making the environment")
            fcntl.flock(fd, fcntl.LOCK_EX)
        elif error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
            raise
    return fd


def choose_place() -> str:
    """The best directory that we may write to."""
    refused = []
    for place in places():
        why = make_place(place)
        if not why:
            return place
        refused.append(f"{place} ({why})")
    fix = "set HOLDFAST_ENV_DIR to a directory that you can write to"
    raise Problem("no place for the environment: {}; {}".format(", ".join(refused), fix))


def make_environment(kind: str) -> str:
    """Make the environment with the first installer that manages it; returns its directory."""
    python, version = find_python()
    ways = installers(python)
    if not python and not any(name == "uv" for name, _ in ways):
        here = f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
        fix = f"install Python 3.11 or newer, or {GET_UV}, which brings one; HOLDFAST_PYTHON names one"
        raise Problem(f"needs CPython 3.11 or newer; this is {here}. To fix it, {fix}")
    if not ways:
        fix = f"install Python's venv with pip (Debian, Ubuntu: apt install python3-venv), or {GET_UV}"
        raise Problem(f"no way to install packages for Python {version} ({python}). To fix it, {fix}")
    place = choose_place()
    env = os.path.join(place, key_of(kind))
    lock_fd = take_lock(place)
    try:
        if not is_complete(env):
            say(f"making the environment in {env}")
            try_each(ways, env, kind, python, f"{version} ({python})" if python else "from uv", lock_fd)
    finally:
        if not is_complete(env):
            shutil.rmtree(env, ignore_errors=True)
        os.close(lock_fd)
    return env


def try_each(ways: "list[tuple[str, list[str]]]", env: str, kind: str, python: str, shown: str, lock_fd: int) -> None:
    """Make an environment with the first installer that manages it; raises Problem when none does."""
    names = {"uv": "uv", "venv": "venv and pip", "pip": "venv and an outside pip"}
    for number, way in enumerate(ways, 1):
        say(f"  with Python {shown} by {names[way[0]]}")
        try:
            fill(env, kind, python, way, lock_fd)
            return
        except InstallFailed as failure:
            if number == len(ways):
                raise Problem(explain_failure(failure)) from failure
            say(f"  {failure.what} failed: {' '.join(failure.output.split())[-300:]}")


def fix_for(output: str) -> str:
    """What helps against a failure, going by what the installer said."""
    return next((fix for signs, fix in FIXES.items() if re.search(signs, output, re.IGNORECASE)), OTHER_FIX)


def explain_failure(failure: InstallFailed) -> str:
    """One message for a failed installation: what, the end of the output, the fix."""
    retry = re.compile(r"WARNING: Retrying .*")  # pip says it five times, at length
    lines = [line[:200] for line in retry.sub("", failure.output).splitlines() if line.strip()][-12:]
    told = retry.findall(failure.output)[-1:] + lines
    return "{} failed:\n    {}\nTo fix it, {}".format(failure.what, "\n    ".join(told), fix_for(failure.output))
