"""Build the sample binaries: GNU coreutils from source, at several optimisation levels.

    python experiment_data/build_coreutils.py
    python experiment_data/build_coreutils.py --versions "8.32 9.1 9.7 9.10" --programs "chroot ls"
    python experiment_data/build_coreutils.py --compilers "gcc-12 clang-16" --levels "O0 O2"

All results are in one folder, which git ignores:

    coreutils/sources/coreutils-9.1/            the upstream source and its tarball
    coreutils/build/coreutils-9.1/              configured once, compiled once per level
    coreutils/binaries/coreutils-9.1-O2/chroot  the input of gendata.py

Existing results are kept; delete a folder to make it again.
"""

import email
import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import PositiveInt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from terminal.command_line import command_line
from utils import UserError, atomic_file, atomic_folder, check_outputs, disk_errors, plural

OUTPUT = Path(__file__).resolve().parent / "coreutils"
JOBS = os.cpu_count() or 1
LEVELS = ("O0", "O1", "O2", "O3", "Os", "Og")

# The upstream version in each suite. To find other versions, all suites are searched.
SUITES = {
    "debian": {"bullseye": "8.32", "bookworm": "9.1", "trixie": "9.7", "sid": "9.10"},
    "ubuntu": {
        "focal": "8.30",
        "jammy": "8.32",
        "noble": "9.4",
        "questing": "9.5",
        "resolute": "9.7",
    },
}

# Optional libraries of the machine must not change the binaries.
CONFIGURE = (
    "--quiet",
    "--disable-dependency-tracking",
    "--disable-acl",
    "--disable-libcap",
    "--disable-libsmack",
    "--disable-xattr",
    "--without-libgmp",
    "--without-openssl",
    "--without-selinux",
)
# Clang 16 and later refuse code in older versions of coreutils; gcc ignores the option.
TOLERANT = "-Wno-incompatible-function-pointer-types"

APT_CONFIG = """\
// Keep the machine's settings (e.g. proxies), except hooks and anything that weakens verification.
#clear APT::Update;
Dir::Etc::SourceList "{folder}/entries.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::Status "/dev/null";
Dir::Cache "{folder}/cache";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
"""

OTHERWISE = (
    "or use your own binaries, each build in its own folder below one FOLDER: "
    "python gendata.py --path FOLDER --biname PROGRAM"
)

START = time.monotonic()


def main(
    *,
    versions: str = "",
    levels: str = "O0 O1 O2 O3",
    programs: str = "chroot",
    compilers: str = "",
    jobs: PositiveInt = JOBS,
    tarballs: str = "",
    output: Path = OUTPUT,
) -> int:
    """Build programs of GNU coreutils from source, with debug information.

    Several values are one argument, separated by blanks: --levels "O0 O3".

    Parameters
    ----------
    versions : str
        Versions of coreutils. Default: those of `tarballs`, or the version in this machine's
        release of Debian or Ubuntu.
    levels : str
        Optimisation levels, from O0 O1 O2 O3 Os Og.
    programs : str
        Programs of coreutils: "chroot ls sort".
    compilers : str
        Installed compilers: "gcc-12 clang-16". The folders' names then include the compiler.
        Default: gcc, or else clang, or else cc; not in the folders' names.
    jobs : int
        Number of parallel processes.
    tarballs : str
        Source tarballs (coreutils-9.1.tar.xz). Other versions are downloaded from the source
        packages of Debian or Ubuntu by a private apt, which needs no root and does not change the
        system.
    output : Path
        Folder for sources/, build/ and binaries/.

    Raises
    ------
    UserError
        No compiler, make, network or Debian; unknown values; unreadable tarballs; builds that
        failed, after all others are done.
    """
    check_outputs({}, (), {"output": output})
    level_list = split("levels", levels)
    for level in level_list:
        if level not in LEVELS:
            raise UserError(f"--levels {level}: the levels are {' '.join(LEVELS)}")
    program_list = split("programs", programs)
    compiler_list = split("compilers", compilers) if compilers else [""]
    given = {version_of(path): path for path in map(Path, shlex.split(tarballs))}
    version_list = split("versions", versions) if versions else list(given)
    for version in version_list:
        if not re.fullmatch(r"\d+(\.\d+)+", version):
            raise UserError(f"--versions {version}: not a version of coreutils like 9.1")
    if not version_list:
        version_list = [default_version(output / "sources")]

    trees = []
    for version in version_list:
        for compiler in compiler_list:
            tree = Tree(output, version, compiler)
            tree.todo.update(
                (level, missing)
                for level in level_list
                if (missing := [p for p in program_list if not tree.binary(level, p).is_file()])
            )
            for level in level_list:
                if level not in tree.todo:
                    say(f"{tree.binary(level, '').name} is there already")
            if tree.todo:
                trees.append(tree)

    failures: list[str] = []
    if trees:
        check_tools(trees)
        with disk_errors(output):
            get_sources([tree.version for tree in trees], given, output / "sources")
            for tree in trees:
                check_programs(tree, program_list)
            failures = build_all(trees, jobs)

    for program in program_list:
        builds = len(list((output / "binaries").glob(f"*/{program}")))
        pairs = builds * (builds - 1) // 2
        print(f"{program}: {builds} {plural(builds, 'build')}, {pairs} {plural(pairs, 'pair')}")
    flags = "" if output == OUTPUT else f" --path {shlex.quote(str(output / 'binaries'))}"
    flags += "" if "chroot" in program_list else f" --biname {program_list[0]}"
    print(f"in {output / 'binaries'}, after {time.monotonic() - START:.0f} s")
    if failures:
        raise UserError("; ".join(failures))
    print(f"next: python gendata.py{flags}")
    return 0


def split(flag: str, text: str) -> list[str]:
    """Return the distinct values in ``text``, in order. They become parts of folder names."""
    values = list(dict.fromkeys(re.split(r"[\s,]+", text.strip(" \t\n,"))))
    if values == [""]:
        raise UserError(f'--{flag} is empty; give values separated by blanks, like --{flag} "A B"')
    for value in values:
        if "/" in value:
            raise UserError(f"--{flag} {value}: give a name, not a path")
    return values


def say(step: str) -> None:
    """Print a line on stderr when a step begins."""
    print(f"[{time.monotonic() - START:3.0f} s] {step}", file=sys.stderr, flush=True)


# Building


@dataclass
class Tree:
    """One version, configured for one compiler ("" for the default one) and used for all levels."""

    output: Path
    version: str
    compiler: str

    def __post_init__(self) -> None:
        self.todo: dict[str, list[str]] = {}  # level -> programs
        self.name = "-".join(filter(None, ("coreutils", self.version, self.compiler)))
        self.source = self.output / "sources" / f"coreutils-{self.version}"
        self.folder = self.output / "build" / self.name

    def binary(self, level: str, program: str) -> Path:
        """Return the path of the built ``program``."""
        return self.output / "binaries" / f"{self.name}-{level}" / program


def check_tools(trees: list[Tree]) -> None:
    """Find make and every compiler, and choose the default compiler."""
    for tree in trees:
        candidates = [tree.compiler] if tree.compiler else ["gcc", "clang", "cc"]
        for tool, names in {"C compiler": candidates, "make": ["make"]}.items():
            if not any(map(shutil.which, names)):
                raise UserError(
                    f"no {tool} ({', '.join(names)}) is installed; install it (Debian, Ubuntu: "
                    f"sudo apt-get install build-essential), {OTHERWISE}"
                )
        tree.compiler = next(filter(shutil.which, candidates))


def check_programs(tree: Tree, programs: list[str]) -> None:
    """Raise a UserError unless coreutils has these programs, i.e. a page for each in man/."""
    known = {page.stem for page in (tree.source / "man").glob("*.x")}
    for program in programs:
        if program not in known:
            raise UserError(
                f"--programs {program}: coreutils {tree.version} has no such program, but has "
                + " ".join(sorted(known))
            )


def build_all(trees: list[Tree], jobs: int) -> list[str]:
    """Build what is missing in every tree, several trees at a time; return the errors."""
    failures = []
    workers = min(jobs, len(trees))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(build, tree, -(-jobs // workers)) for tree in trees]
        try:
            for future in as_completed(futures):
                if isinstance(error := future.exception(), UserError):
                    failures.append(str(error))
                else:
                    future.result()
        except BaseException:  # no need to stop make and the compilers: they get Ctrl-C, too
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def build(tree: Tree, jobs: int) -> None:
    """Configure the tree if necessary, then build what is missing, level by level."""
    # The compiler gets relative paths, and the only absolute one in the debug information, that of
    # the build folder, is replaced. So the same source gives the same bytes everywhere.
    source = os.path.relpath(tree.source, tree.folder)
    prefix_map = shlex.quote(f"-fdebug-prefix-map={tree.folder.resolve()}=.")
    banner = subprocess.run([tree.compiler, "--version"], capture_output=True, text=True).stdout
    state = f"{tree.folder.resolve()}\n{CONFIGURE}\n{banner}"
    mark = tree.folder / "configured"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != state:
        say(f"{tree.name}: configure (most of a minute)")
        shutil.rmtree(tree.folder, ignore_errors=True)
        tree.folder.mkdir(parents=True)
        run(tree, "configure", [f"{source}/configure", *CONFIGURE, f"CC={tree.compiler}"])
        with atomic_file(mark) as file:
            file.write(state)
    for level, programs in tree.todo.items():
        say(f"{tree.name}: make {' '.join(programs)} at -{level}")
        # Otherwise make would reuse objects of another level or of an interrupted run.
        run(tree, "clean", ["make", "clean"])
        # When making a single program, make does not generate all headers first.
        headers = ["make", f"-j{jobs}", "-f", "Makefile", "-f", "-", "headers"]
        run(tree, f"headers-{level}", headers, stdin="headers: $(BUILT_SOURCES)\n")
        files = {p: f"src/{'ginstall' if p == 'install' else p}" for p in programs}
        run(
            tree,
            f"make-{level}",
            ["make", f"-j{jobs}", f"CFLAGS=-g -{level} {TOLERANT} {prefix_map}", *files.values()],
        )
        for program, file in files.items():
            binary = tree.binary(level, program)
            with atomic_file(binary, "wb") as target:
                target.write((tree.folder / file).read_bytes())
            binary.chmod(0o755)


def run(tree: Tree, step: str, command: list[str], stdin: str = "") -> None:
    """Run one step in the build folder with a log there; raise a UserError if it fails."""
    try:
        # Let configure use Debian's dash, which is faster than bash; the result is the same.
        shell = {"CONFIG_SHELL": "/bin/sh"}
        run_logged(command, tree.folder, tree.folder / f"{step}.log", stdin, shell)
    except UserError as error:
        raise UserError(
            f"{tree.name}: {error}; try another compiler or version, {OTHERWISE}"
        ) from error


def run_logged(
    command: list[str], folder: Path, log: Path, stdin: str = "", env: Mapping[str, str] = {}
) -> None:
    """Run a command in a folder; raise a UserError with the first line of an error if it fails.

    Only environment variables needed to find programs are passed on: CFLAGS or MAKEFLAGS (set by an
    outer make) must not change the binaries. FORCE_UNSAFE_CONFIGURE lets configure run as root.
    """
    keep = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    env = {"LC_ALL": "C", "FORCE_UNSAFE_CONFIGURE": "1", **env}
    env |= {name: os.environ[name] for name in keep if name in os.environ}
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=folder, env=env, input=stdin.encode(), stdout=file, stderr=file
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
        reason = next((line for line in lines if "error:" in line.lower()), lines[-1])
        raise UserError(f"{command[0]} failed ({reason.strip()}; see {log})")


# Sources


def get_sources(versions: list[str], tarballs: dict[str, Path], sources: Path) -> None:
    """Make sources/coreutils-<version>/ for all versions, from tarballs or from apt."""
    missing = [v for v in dict.fromkeys(versions) if not (sources / f"coreutils-{v}").is_dir()]
    for version in missing:
        kept = list(sources.glob(f"coreutils-{version}.tar.*"))
        if version not in tarballs and kept:
            tarballs[version] = kept[0]
    wanted = [version for version in missing if version not in tarballs]
    if wanted:
        tarballs |= download(wanted, sources)
    for version in missing:
        say(f"coreutils-{version}: extract {tarballs[version]}")
        with extracted(tarballs[version], sources / f"coreutils-{version}") as work:
            if not (work / "configure").is_file():
                raise UserError(
                    f"{tarballs[version]} has no configure script; give the tarball of a release"
                )


@contextmanager
def open_tarball(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tarball; turn all errors into a UserError."""
    try:
        with tarfile.open(path) as tar:
            yield tar
    except FileNotFoundError as error:
        raise UserError(
            f"no tarball {path}; --tarballs expects paths separated by blanks"
        ) from error
    except (
        tarfile.TarError,
        lzma.LZMAError,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        IsADirectoryError,
        PermissionError,
    ) as error:
        raise UserError(f"cannot read the tarball {path} ({error}); download it again") from error


def version_of(tarball: Path) -> str:
    """Return the version in the name of the tarball's only folder, coreutils-<version>."""
    with open_tarball(tarball) as tar:
        first = tar.next()
        match = first and re.match(r"(?:\./)?coreutils-(\d+(?:\.\d+)+)(/|$)", first.name)
    if not match:
        raise UserError(f"{tarball} has no folder coreutils-VERSION; give the tarball of a release")
    return match[1]


@contextmanager
def extracted(tarball: Path, folder: Path, links: bool = False) -> Iterator[Path]:
    """Extract the only folder of a source tarball; on an error, nothing remains.

    Symbolic links are errors without ``links``, as are hard links and devices; with it, these two
    are left out.
    """
    with open_tarball(tarball) as tar, atomic_folder(folder) as work:
        members = []
        for member in tar:
            parts = Path(member.name).parts[1:]
            plain = member.isfile() or member.isdir() or (links and member.issym())
            if (not parts and member.isdir()) or (links and not plain):
                continue
            # Checked here because the Python of Debian 12 has no extraction filters.
            if not plain or ".." in parts or member.name[0] == "/":
                raise UserError(f"{tarball}: {member.name} must not be in the tarball of a release")
            member.name = "/".join(parts)
            members.append(member)
        # The filter refuses links that lead out of the folder.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(work, members)
        yield work


# Source packages of Debian and Ubuntu


class Entry(NamedTuple):
    """The mirror of an apt entry of this machine."""

    uri: str
    signed_by: str  # path of a keyring, a fingerprint or a key; "" for all keys that apt trusts


def distribution(os_release: Path = Path("/etc/os-release")) -> tuple[str, str]:
    """Return the distribution, "debian" or "ubuntu", and the codename of its release."""
    text = os_release.read_text(encoding="utf-8") if os_release.is_file() else ""
    fields = dict(word.split("=", 1) for word in shlex.split(text, comments=True) if "=" in word)
    if fields.get("ID") not in SUITES or not shutil.which("apt-get"):
        raise UserError(
            "sources can be downloaded only on Debian and Ubuntu; give a tarball "
            "of GNU coreutils with --tarballs coreutils-9.1.tar.xz (ftp.gnu.org/gnu/coreutils), "
            + OTHERWISE
        )
    # Debian unstable sometimes has no codename.
    return fields["ID"], fields.get("VERSION_CODENAME", "sid")


def deb822(text: str) -> list[dict[str, str]]:
    """Parse paragraphs of fields; names in lower case, values with their continuation lines."""
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    paragraphs = map(email.message_from_string, re.split(r"\n\s*\n", text.strip()))
    return [{name.lower(): value.rstrip() for name, value in p.items()} for p in paragraphs]


def apt_entries(codename: str, etc: Path = Path("/etc/apt")) -> list[Entry]:
    """Return the mirrors of this machine's own release.

    Entries of other suites (third parties, updates) are left out. Entries may also call Debian's
    suites stable, testing or unstable.

    References
    ----------
    sources.list(5)
    """
    own = {codename, "stable", "testing", "unstable", "sid"}
    parts = etc / "sources.list.d"
    entries = []
    for path in [etc / "sources.list", *sorted(parts.glob("*.list"))]:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            match = re.match(r"\s*deb(?:-src)?\s+(?:\[([^]]*)]\s*)?(\S+)\s+(\S+)\s([^#]*)", line)
            if match and match[3] in own and "main" in match[4].split():
                key = re.search(r"(?:^|\s)signed-by=(\S+)", match[1] or "", re.IGNORECASE)
                entries.append(Entry(match[2], key[1].replace(",", " ") if key else ""))
    for path in sorted(parts.glob("*.sources")):
        for fields in deb822(path.read_text(encoding="utf-8", errors="replace")):
            if (
                fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off")
                and own & set(fields.get("suites", "").split())
                and "main" in fields.get("components", "").split()
            ):
                key = fields.get("signed-by", "")
                entries += [Entry(uri, key) for uri in fields.get("uris", "").split()]
    return list(dict.fromkeys(entries))


@contextmanager
def private_apt(
    suites: list[str], sources: Path, kind: str = "deb-src"
) -> Iterator[tuple[Callable[..., str], Path]]:
    """Yield a function that runs apt commands on the packages of ``suites``, and its folder.

    This apt has its own lists, cache and configuration, in a folder that is deleted when the block
    ends. It uses the machine's mirrors and keys with other suites. The function returns the output,
    including errors. ``kind`` is "deb-src" for source packages, "deb" for binary ones.
    """
    _, codename = distribution()
    sources.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apt.", dir=sources) as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)  # as root, apt downloads as its own user
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "apt.conf").write_text(APT_CONFIG.format(folder=folder), encoding="utf-8")
        paragraphs = [
            f"Types: {kind}\nURIs: {entry.uri}\nSuites: {' '.join(suites)}\nComponents: main\n"
            + (f"Signed-By: {entry.signed_by}\n" if entry.signed_by else "")
            for entry in apt_entries(codename)
        ]
        (folder / "entries.sources").write_text("\n".join(paragraphs), encoding="utf-8")

        def apt(program: str, *arguments: str) -> str:
            return subprocess.run(
                [program, "-c", folder / "apt.conf", *arguments],
                cwd=folder,
                env=os.environ | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ).stdout

        yield apt, folder


def offered(apt: Callable[..., str]) -> tuple[dict[str, str], str]:
    """Return upstream version -> package version of what is available, and apt's first error."""
    output = apt("apt-get", "update")
    packages = deb822(apt("apt-cache", "showsrc", "--only-source", "coreutils"))
    versions = [package["version"] for package in packages if "version" in package]
    complaint = next((line for line in output.splitlines() if re.match("[EW]:", line)), "")
    return {re.sub(r"^\d+:|-[^-]*$", "", version): version for version in versions}, complaint


def default_version(sources: Path) -> str:
    """Return the version of coreutils in the release of this machine."""
    name, codename = distribution()
    if version := SUITES[name].get(codename):
        return version
    say(f"look for coreutils in {name}'s {codename}")
    with private_apt([codename], sources) as (apt, _):
        versions, complaint = offered(apt)
    if not versions:
        raise UserError(
            f"no source package of coreutils in {name}'s {codename} ({complaint or 'no entry'}); "
            f"name another with --versions ({' '.join(SUITES[name].values())}), {OTHERWISE}"
        )
    return next(iter(versions))


def download(versions: list[str], sources: Path) -> dict[str, Path]:
    """Download the upstream tarballs by apt, which verifies them; return their paths."""
    name, codename = distribution()
    suites = {version: suite for suite, version in SUITES[name].items()}
    searched = [suites.get(version, "") for version in versions]
    if "" in searched:
        searched = list(dict.fromkeys([*SUITES[name], codename]))
    say(f"coreutils {' '.join(versions)}: download from {name}'s {' '.join(searched)}")
    tarballs = {}
    with private_apt(searched, sources) as (apt, folder):
        available, complaint = offered(apt)
        for version in versions:
            if version in available:
                package = f"coreutils={available[version]}"
                output = apt("apt-get", "source", "--download-only", "--only-source", package)
                lines = [line for line in output.splitlines() if line.startswith("E:")]
                complaint = lines[0] if lines else complaint
            # Without the distribution's patches, and signatures.
            found = list(folder.glob(f"coreutils_{version}.orig.tar.?z"))
            if not found:
                raise UserError(
                    f"cannot download coreutils {version} from {name}'s {' '.join(searched)}"
                    f" (available: {' '.join(available) or 'none'}; apt: {complaint or 'no error'})"
                    f"; give a tarball with --tarballs, {OTHERWISE}"
                )
            tarballs[version] = sources / f"coreutils-{version}.tar{found[0].suffix}"
            os.replace(found[0], tarballs[version])
    return tarballs


if __name__ == "__main__":
    command_line(main)
