"""How many library functions of a stripped program does search.py name, and how many correctly?

    python search.py index libc.so --index_dir index-musl      # a library with symbols
    python bench/names.py --program lua-musl --index_dir index-musl

The program is statically linked and has symbols, which are the ground truth. `search.py scan` gets
a stripped copy. A name is right if it is one of the symbols at that address. Precision is the share
of right names among all names given. Recall is the share of functions named correctly among those
whose name is in the index. Functions with fewer than three basic blocks do not count. A function
whose name is not in the index, such as the program's own code, can only be named wrongly.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow.parquet
from elftools.elf.elffile import ELFFile
from truth import function_symbols

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files
from binary.symbols import is_symbol
from terminal.command_line import command_line

LEVELS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.95)  # minimum chances for giving a name
LEAST_BLOCKS = 3  # minimum number of blocks of functions that `search.py scan` names
ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r" *(-?[\d.]+)  0x([0-9a-f]+)  (\S+)  ")


def main(*, program: str, index_dir: str = "index", outputDir: str = "output/") -> None:
    """Print precision and recall for several minimum chances.

    Parameters
    ----------
    program : str
        A program with symbols, statically linked at a fixed address (ELF).
    index_dir : str
        The index made by `search.py index`.
    outputDir : str
        Where analysed binaries are cached.
    """
    symbols = symbols_of(program)
    known: set[str] = set()
    for file in Path(index_dir).glob("*.parquet"):
        opened = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # starts no thread
        known.update(opened.read(["name"], use_threads=False)["name"].to_pylist())
    with tempfile.TemporaryDirectory() as folder:
        stripped = str(Path(folder) / Path(program).name)
        shutil.copy(program, stripped)
        subprocess.run(["strip", "--strip-all", stripped], check=True)
        found, _ = analyse_files([stripped], outputDir, 1, all_or_none=True)
        sizes = block_counts(found[stripped])
        scan = [sys.executable, ROOT / "search.py", "scan", stripped, "--index_dir", index_dir]
        scan += ["--outputDir", outputDir, "--least", "0"]
        said = subprocess.run(scan, capture_output=True, text=True, check=True).stdout
    matches = [match for match in map(LINE.match, said.splitlines()) if match]
    given = [(float(m[1]), int(m[2], 16), m[3]) for m in matches if is_symbol(m[3])]
    counted = {at for at, size in sizes.items() if size >= LEAST_BLOCKS and at in symbols}
    holds = {at for at in counted if symbols[at] & known}
    print(f"{program}: {len(counted):,} functions of {LEAST_BLOCKS} blocks or more with a symbol; ")
    known = {name for name in known if is_symbol(name)}
    print(f"of {len(holds):,} of these the index of {len(known):,} names holds the name")
    print()
    print("| least chance | named | right | precision | recall |")
    print("| --- | --- | --- | --- | --- |")
    for least in LEVELS:
        named, right = judge([g for g in given if g[0] >= least], symbols, counted)
        precision, recall = right / max(named, 1), right / max(len(holds), 1)
        print(f"| {least} | {named:,} | {right:,} | {precision:.3f} | {recall:.3f} |")


def symbols_of(program: str) -> dict[int, set[str]]:
    """Return address -> names of functions, from the symbol table."""
    found = defaultdict(set)
    with open(program, "rb") as file:
        elf = ELFFile(file)
        symbols = function_symbols(elf, ".symtab")
        if elf["e_type"] != "ET_EXEC" or not symbols:
            raise utils.UserError(
                f"{program} has no symbols or no fixed address; link it with -static -no-pie, and "
                "do not strip it"
            )
    for symbol in symbols:
        found[symbol["st_value"]].add(symbol.name)
    return found


def block_counts(analysis_file: Path) -> dict[int, int]:
    """Return address of a function -> number of its basic blocks."""
    analysis = load_analysis(analysis_file)
    n = analysis.code_functions
    blocks = np.bincount(analysis.function[: analysis.code_blocks], minlength=n)
    return dict(zip(analysis.function_address[:n].tolist(), blocks.tolist(), strict=True))


def judge(
    given: list[tuple[float, int, str]], symbols: dict[int, set[str]], counted: set[int]
) -> tuple[int, int]:
    """Return how many of the counted functions get a name, and how many get the right one."""
    names = {at: name for _, at, name in given if at in counted}
    return len(names), sum(name in symbols[at] for at, name in names.items())


if __name__ == "__main__":
    command_line(main)
