"""Where environments live, which one fits, and the variables that processes in it get."""

import hashlib
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
MARKER = "holdfast-environment.json"  # written last: an environment without it is half-made
FORMAT = "1"  # change it when the launcher makes environments differently
RUN, DEV = "run", "dev"
LOCKS = {RUN: "requirements.lock", DEV: "requirements-dev.lock"}
EMBEDDED_LOCK = "requirements-embedded.lock"

# Of the user's pip and uv settings, those that say where packages come from are kept; the others (a target directory,
# constraints, --user, another Python) would put our packages elsewhere.
KEPT_SETTINGS = {
    "PIP": "INDEX_URL EXTRA_INDEX_URL FIND_LINKS NO_INDEX TRUSTED_HOST CERT CLIENT_CERT PROXY TIMEOUT DEFAULT_TIMEOUT "
    "RETRIES CACHE_DIR NO_CACHE_DIR CONFIG_FILE KEYRING_PROVIDER USE_FEATURE",
    "UV": "INDEX DEFAULT_INDEX INDEX_URL EXTRA_INDEX_URL INDEX_STRATEGY FIND_LINKS NO_INDEX INSECURE_HOST NATIVE_TLS "
    "SYSTEM_CERTS HTTP_TIMEOUT HTTP_CONNECT_TIMEOUT HTTP_RETRIES OFFLINE CACHE_DIR NO_CACHE CONFIG_FILE NO_CONFIG "
    "KEYRING_PROVIDER LINK_MODE PYTHON_INSTALL_DIR PYTHON_INSTALL_MIRROR PYTHON_DOWNLOADS CONCURRENT_DOWNLOADS",
}
PYTHON_ODDITIES = (
    "PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONEXECUTABLE PYTHONPLATLIBDIR PYTHONINSPECT PYTHONOPTIMIZE "
    "PYTHONWARNINGS __PYVENV_LAUNCHER__ VIRTUAL_ENV CONDA_PREFIX"
)


class Problem(Exception):
    """Something that stops the start; the message names the fix."""


def say(message: str) -> None:
    """Print a line for the user; standard output belongs to the command."""
    sys.stderr.write(f"holdfast: {message}\n")
    sys.stderr.flush()


def home() -> str:
    """The user's home, or "" where there is none."""
    found = os.environ.get("HOME") or os.path.expanduser("~")
    return found if os.path.isabs(found) and os.path.isdir(found) else ""


def places() -> "list[str]":
    """Directories that may hold environments, best first."""
    if os.environ.get("HOLDFAST_ENV_DIR"):
        return [os.path.abspath(os.environ["HOLDFAST_ENV_DIR"])]
    found = [os.path.join(ROOT, ".venv-holdfast")]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        found.append(os.path.join(cache, "holdfast"))
    if home():
        found.append(os.path.join(home(), ".cache", "holdfast"))
    private = f"holdfast-{os.getuid()}"
    return found + [os.path.join(top, private) for top in ("/var/tmp", os.environ.get("TMPDIR") or "/tmp")]


def is_trusted(place: str) -> bool:
    """Whether only we, root or the clone's owner can have put something there."""
    try:
        owner = os.lstat(place).st_uid
    except OSError:
        return False
    return owner in (0, os.getuid(), os.stat(ROOT).st_uid) and not os.path.islink(place)


def make_place(place: str) -> str:
    """Make a directory for environments; returns why that is impossible, or ""."""
    try:
        os.makedirs(place, mode=0o755 if place.startswith(ROOT + os.sep) else 0o700, exist_ok=True)
        with open(os.path.join(place, ".lock"), "a"):
            pass
        if os.statvfs(place).f_flag & getattr(os, "ST_NOEXEC", 0):
            return "its file system is mounted noexec"
    except OSError as error:
        return str(error.strerror)
    return "" if is_trusted(place) else "it belongs to somebody else"


def key_of(kind: str) -> str:
    """Name of an environment: another lock, Python or place of the clone means another environment."""
    digest = hashlib.sha256()
    for part in (FORMAT, ROOT, sys.version, sys.base_prefix, os.environ.get("HOLDFAST_PYTHON", "")):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    for lock in (LOCKS[kind], EMBEDDED_LOCK):
        try:
            with open(os.path.join(ROOT, lock), "rb") as stream:
                digest.update(stream.read() + b"\0")
        except OSError as error:
            raise Problem(f"cannot read {lock}: {error.strerror}; the clone is not complete") from error
    return f"{kind}-{digest.hexdigest()[:16]}"


def python_of(env: str) -> str:
    """The interpreter of an environment."""
    return os.path.join(env, "bin", "python")


def is_complete(env: str) -> bool:
    """Whether an environment was made to its end and its Python is still there."""
    return os.access(os.path.join(env, MARKER), os.R_OK) and os.access(python_of(env), os.X_OK)


def existing(kinds: "tuple[str, ...]") -> str:
    """The first complete environment of these kinds, or ""."""
    for kind in kinds:
        key = key_of(kind)
        for place in places():
            env = os.path.join(place, key)
            if is_complete(env) and is_trusted(place):
                return env
    return ""


def clean_environ() -> "dict[str, str]":
    """The user's environment without what would lead Python, pip or uv astray."""
    return {name: value for name, value in os.environ.items() if not _leads_astray(name)}


def _leads_astray(name: str) -> bool:
    prefix, _, rest = name.partition("_")
    if prefix in KEPT_SETTINGS:
        return rest not in KEPT_SETTINGS[prefix].split() and not name.startswith("UV_INDEX_")
    return name in PYTHON_ODDITIES.split()
