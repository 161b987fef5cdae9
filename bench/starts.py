"""How many of a library's exported functions the analysis finds, for each processor.

    python bench/starts.py libz-amd64.so libz-arm64.so
    python bench/starts.py --processors amd64,arm64,armhf,i386,mipsel,mips64el,ppc64el,s390x

The files are shared objects. With `--processors`, Debian's zlib1g for these is downloaded by
`apt-get download`, which must be configured for them (dpkg --add-architecture NAME; apt-get
update). The analysis also reads exported symbols, so the table also says how many starts it finds
without them: from unwind tables and the like, or from the code itself.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from elftools.elf.elffile import ELFFile
from shared import run
from truth import PIE_BASE, function_symbols

from binary import starts
from binary.disassemble import analyse
from terminal.command_line import command_line
from utils import UserError


def main(*files: str, processors: str = "", package: str = "zlib1g") -> None:
    """Print the table.

    Parameters
    ----------
    files : str
        Shared objects.
    processors : str
        Debian's names of processors to download a package for.
    package : str
        The package; its first shared object is used.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in processors.split(",") if name]
        found = [*map(Path, files), *(fetch(package, name, Path(folder)) for name in names)]
        if not found:
            raise UserError("give shared objects, or --processors")
        print("| file | processor | exported | right | without the exports | said by |")
        print("|---|---|---|---|---|---|")
        for file in found:
            print(row(file), flush=True)


def fetch(package: str, processor: str, folder: Path) -> Path:
    """Download and unpack a package; return its first shared object."""
    place = folder / processor
    place.mkdir()
    run(["apt-get", "download", "-qq", f"{package}:{processor}"], place)
    run(["sh", "-c", "dpkg-deb -x *.deb ."], place)
    files = [f for f in sorted(place.rglob("*.so*")) if f.is_file() and not f.is_symlink()]
    if not files:
        raise UserError(f"{package} for {processor} contains no shared object")
    return files[0].rename(folder / f"{files[0].name} ({processor})")


def exported(file: Path) -> set[int]:
    """Return the addresses of exported functions, by pyelftools."""
    with file.open("rb") as stream:
        return {s["st_value"] for s in function_symbols(ELFFile(stream), ".dynsym")}


def row(file: Path) -> str:
    """Analyse a file with and without its exports; return its row."""
    truth = exported(file)
    analysis = analyse(file)
    readers = starts.ELF_READERS
    starts.ELF_READERS = tuple(r for r in readers if r is not starts._exported)
    try:
        without = analyse(file)
    finally:
        starts.ELF_READERS = readers
    right, alone = (
        sum(address + PIE_BASE in set(a.function_address.tolist()) for address in truth)
        for a in (analysis, without)
    )
    said = ", ".join(f"{name} {n}" for name, n in analysis.start_sources().items())
    return f"| {file.name} | {analysis.processor} | {len(truth)} | {right} | {alone} | {said} |"


if __name__ == "__main__":
    command_line(main)
