"""Search many binaries for the functions most like one, or name the functions of a binary.

    python search.py index DIR... BINARY...               # vectors of all functions -> index/
    python search.py query BINARY --function 0x401230     # the known functions most like this one
    python search.py scan BINARY                          # which known functions a binary holds

The index grows: each binary has a file of its own in it, named by its content, and is read only
once. Symbols are shown, and never used to search. No binary is executed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import PositiveInt

import utils
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT
from terminal.command_line import PARTLY, command_line
from utils import UsageError, UserError

index_dir = "index"  # the table of vectors, a file for each binary
outputDir = "output/"  # analysed binaries, shared with gendata.py
workers = os.cpu_count() or 1  # processes

# How ELF and Mach-O files begin, of either byte order and of several processors.
MAGIC = {b"\x7fELF", b"\xca\xfe\xba\xbe"}
MAGIC |= {b"\xfe\xed\xfa\xce", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xcf\xfa\xed\xfe"}
LEAST_BLOCKS = 3  # of a function that scan names: a smaller one looks like too many others


def main() -> None:
    """Search many binaries for the functions most like one, or name the functions of a binary."""
    raise UsageError("say what to do: index, query or scan (python search.py --help)")


def index(
    *paths: str,
    index_dir: str = index_dir,
    plot: str | None = None,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
    time_limit: float = TIME_LIMIT,
    memory_limit: float = MEMORY_LIMIT,
) -> int:
    """Add the functions of binaries to the index. Ends with exit code 3 when files were skipped.

    Parameters
    ----------
    paths : str
        Binaries, and folders whose binaries are all added.
    index_dir : str
        The folder that holds the index.
    plot : str
        Draw a map of all functions of the index here (.png, .svg, .pdf).
    outputDir : str
        Where analysed binaries are cached.
    workers : int
        Processes that work at the same time.
    time_limit : float
        Seconds of CPU that one binary may take.
    memory_limit : float
        GiB of memory that it may take.
    """
    from encoder.index import read
    from encoder.map import draw_map

    if not paths:
        raise UsageError("name binaries or folders: python search.py index DIR...")
    encoder = default_encoder()
    files = list(find_binaries(paths))
    if not files:
        raise UserError(f"{', '.join(paths)}: no ELF, PE or Mach-O file is there")
    limits = (time_limit, memory_limit)
    added, skipped = add_binaries(files, index_dir, encoder, outputDir, workers, limits)
    table = read(index_dir, encoder.identity)
    print(
        f"{index_dir}: {len(table.name):,} functions of {len(table.binaries):,} binaries, "
        f"{added:,} of these binaries new"
    )
    if plot:
        draw_map(table, plot)
        print(plot)
    for file, reason in skipped.items():
        print(f"skipped {file}: {reason}")
    return PARTLY if skipped else 0


def query(
    binary: str,
    *,
    function: str,
    index_dir: str = index_dir,
    top: PositiveInt = 10,
    same_processor: bool = False,
    own: bool = False,
    outputDir: str = outputDir,
) -> None:
    """Print the functions of the index that are most like one.

    Parameters
    ----------
    binary : str
        The file that holds the function.
    function : str
        Its address, such as 0x401230, or its name.
    index_dir : str
        The folder that holds the index.
    top : int
        How many are printed.
    same_processor : bool
        Search only binaries for the same processor.
    own : bool
        Search the functions of the same file, too.
    outputDir : str
        Where analysed binaries are cached.
    """
    from encoder.index import nearest, read

    encoder = default_encoder()
    table = read(index_dir, encoder.identity)
    code, sha256 = read_one(binary, outputDir)
    asked = find_function(code, binary, function)
    vector = encoder(code)[0][asked : asked + 1]
    if not vector.any():
        raise UserError(f"{binary}: the encoder knows no word of {function}, so nothing is like it")
    allowed = searched(table, sha256, code.analysis.processor, same_processor, own)
    found, cosine = nearest(table, vector, top, allowed)
    for i, similarity in zip(found[0].tolist(), cosine[0].tolist(), strict=True):
        path = utils.printable(table.binaries[table.binary[i]].path)
        print(f"{similarity:6.3f}  0x{table.address[i]:x}  {table.name[i]}  {path}")


def scan(
    binary: str,
    *,
    index_dir: str = index_dir,
    least: float = 0.8,
    same_processor: bool = False,
    own: bool = False,
    outputDir: str = outputDir,
) -> None:
    """Print, of each function of a binary, the function of the index that is most like it.

    Functions of fewer than three basic blocks are left out: they look like too many others.

    Parameters
    ----------
    binary : str
        The file whose functions are asked about.
    index_dir : str
        The folder that holds the index.
    least : float
        Matches of a lower cosine are not printed.
    same_processor : bool
        Search only binaries for the same processor.
    own : bool
        Search the functions of the same file, too.
    outputDir : str
        Where analysed binaries are cached.
    """
    from encoder.index import nearest, read

    encoder = default_encoder()
    table = read(index_dir, encoder.identity)
    code, sha256 = read_one(binary, outputDir)
    vectors, _ = encoder(code)
    allowed = searched(table, sha256, code.analysis.processor, same_processor, own)
    found, cosine = nearest(table, vectors, 1, allowed & (table.blocks >= LEAST_BLOCKS))
    named = 0
    for f, (match, score) in enumerate(zip(found, cosine, strict=True)):
        if not len(match) or score[0] < least or code.sizes[f] < LEAST_BLOCKS:
            continue
        named += 1
        path = utils.printable(table.binaries[table.binary[match[0]]].path)
        address = code.analysis.function_address[f]
        print(f"{score[0]:6.3f}  0x{address:x}  {table.name[match[0]]}  {path}")
    print(f"{named:,} of {code.functions:,} functions are like one of the index")


def default_encoder():
    """Return the encoder that comes with this repository."""
    from matching.model import read_model

    return read_model().encoder


def find_binaries(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield the files that are named, and below each folder those that begin like a binary."""
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for file in sorted(Path(path).rglob("*")):
            if file.is_file() and not file.is_symlink():
                with open(file, "rb") as opened:
                    head = opened.read(4)
                if head in MAGIC or head[:2] == b"MZ":
                    yield str(file)


def add_binaries(files, index_dir, encoder, output_dir, workers, limits):
    """Add the binaries that the index does not hold; return how many, and why some were skipped."""
    import numpy as np

    from binary.analysis import cache_file, load_analysis
    from binary.cache import analyse_all
    from encoder.index import Binary, add, index_file
    from features.extract import extract_features

    skipped, binaries = {}, {}
    for file in files:
        try:
            sha256 = utils.sha256_of(file)
        except UserError as error:
            skipped[file] = str(error)
            continue
        if not index_file(index_dir, sha256).exists():
            binaries.setdefault(sha256, {"path": file, "sha256": sha256})
    skipped |= analyse_all(list(binaries.values()), output_dir, workers, limits)
    added = 0
    for sha256, about in binaries.items():
        if about["path"] in skipped:
            continue
        code = extract_features(load_analysis(cache_file(output_dir, sha256)))
        where = Binary(about["path"], sha256, code.analysis.processor)
        names = code.analysis.function_name[: code.functions]
        starts = code.analysis.function_address[: code.functions]
        blocks = np.asarray(code.sizes, np.int32)
        add(index_dir, encoder.identity, where, starts, names, blocks, encoder(code)[0])
        added += 1
    return added, skipped


def read_one(binary: str, output_dir: str):
    """Return a binary's features and the SHA-256 of its bytes."""
    from features.extract import read_binaries

    (code,) = read_binaries((binary,), output_dir, 1)
    return code, utils.sha256_of(binary)


def find_function(code, binary: str, function: str) -> int:
    """Return the one function that begins at an address, or has a name."""
    analysis = code.analysis
    starts = [f"0x{a:x}" for a in analysis.function_address[: code.functions].tolist()]
    names = analysis.function_name[: code.functions]
    found = [
        f
        for f, (start, name) in enumerate(zip(starts, names, strict=True))
        if function.lower() == start or function == name
    ]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} functions of {binary} begin at {function} or are called so; name one by "
            "the address that diff.py or gendata.py show shows"
        )
    return found[0]


def searched(table, sha256: str, processor: str, same_processor: bool, own: bool):
    """Return which functions of the index are searched, bool (N,)."""
    import numpy as np

    files = [
        (own or b.sha256 != sha256) and (not same_processor or b.processor == processor)
        for b in table.binaries
    ]
    return np.array(files, bool)[table.binary]


if __name__ == "__main__":
    command_line(main, index=index, query=query, scan=scan)
