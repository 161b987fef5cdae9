"""Vectors of the functions of many binaries, to search and to cluster.

    python embed.py BINARY... --to embeddings.npz --plot map.png
    python embed.py search --file embeddings.npz --function 0x401230

A vector holds, of each group of a function's words (`features.GROUPS`), the TF-IDF weights by a
random projection, so that the product of two vectors is near to the mean of the groups' cosines.
The weights follow from all binaries given: vectors of one run are compared, not those of several.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import os
import sys
import zipfile
from typing import Annotated

import numpy as np
import scipy.sparse
from pydantic import Field, PositiveInt
from sklearn.random_projection import SparseRandomProjection

import utils
from binary.analysis import load_analysis
from binary.cache import SKIPPED, analyse_files, reason_of
from features.extract import GROUPS, Features, extract_features
from features.tfidf import weigh
from files.arrays import Numbers, read_arrays
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT, Limit, limited_memory
from terminal.command_line import command_line
from terminal.escape import printable

outputDir = "output/"  # analysed binaries, shared with gendata.py
workers = os.cpu_count() or 1  # processes
dimensions = 512  # of a vector
seed = 0  # of the projection and of the map

COLUMNS = {
    "file": Numbers("U", "F"),
    "address": Numbers("u8", "F"),
    "name": Numbers("U", "F"),
    "vector": Numbers("f4", "F", "D"),
}
PICTURES = (".png", ".svg", ".pdf")
LEGEND = 20  # binaries that a map's legend can name


def main(
    *binaries: str,
    to: str = "embeddings.npz",
    plot: str | None = None,
    dimensions: PositiveInt = dimensions,
    seed: Annotated[int, Field(ge=0)] = seed,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
) -> int:
    """Write a vector for each function of some binaries.

    Ends with exit code 3 when binaries were skipped.

    Parameters
    ----------
    binaries : str
        Executables that angr reads.
    to : str
        The npz to write: file, address, name, vector, a row for each function.
    plot : str
        Draw a map of the functions in two dimensions here (.png, .svg, .pdf).
    dimensions : int
        Length of each vector.
    seed : int
        Seed of the random projection and of the map; equal seeds give equal vectors.
    outputDir : str
        Where analysed binaries are cached.
    workers : int
        Processes that work at the same time.
    time_limit : float
        Seconds of processor time that the analysis of one file may take.
    memory_limit : float
        GiB of memory that it may take, and that all the rest may take.
    """
    if not binaries:
        raise utils.UsageError("give at least one binary: python embed.py BINARY...")
    if plot is not None and not plot.endswith(PICTURES):
        raise utils.UsageError(f"--plot {plot}: use a name that ends in {', '.join(PICTURES)}")
    utils.check_outputs({"to": to, "plot": plot}, binaries, {"outputDir": outputDir})
    limits = time_limit, memory_limit
    analyses, skipped = analyse_files(binaries, outputDir, workers, limits)
    with limited_memory(memory_limit, f"making vectors of {len(analyses)} binaries"):
        codes = tuple(extract_features(load_analysis(file)) for file in analyses.values())
        vectors = embed(codes, dimensions, seed)
        starts = [code.analysis.function_address[: code.functions] for code in codes]
        names = [name for code in codes for name in code.analysis.function_name[: code.functions]]
        file = np.repeat(np.array(list(analyses)), [code.functions for code in codes])
        columns = {
            "file": file,
            "address": np.concatenate(starts),
            "name": np.array(names),
            "vector": vectors,
        }
        # An .npz as NumPy writes it, whose own function cannot take an array that is called "file".
        with (
            utils.atomic_file(to, "wb") as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as npz,
        ):
            for key, column in columns.items():
                with npz.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, column, allow_pickle=False)
        print(
            f"{to}: {len(vectors):,} functions of {len(analyses)} binaries, {dimensions} dimensions"
        )
        if plot:
            draw_map(vectors, file, plot, seed)
            print(plot)
    for file, reason in skipped.items():
        print(f"skipped {utils.printable(reason_of(file, reason))}", file=sys.stderr)
    return SKIPPED if skipped else 0


def embed(codes: tuple[Features, ...], dimensions: int, seed: int) -> np.ndarray:
    """Return the functions' vectors, one binary after the other.

    Returns
    -------
    float32 (F, dimensions)
        Of length 1.

    References
    ----------
    Achlioptas, "Database-friendly random projections", 2003: entries of -1, 0 and 1. Sparser ones
    would be too rough for functions of few words.
    """
    groups = [weigh(*(code.words[g] for code in codes)) for g in GROUPS]
    words = scipy.sparse.vstack(
        [scipy.sparse.hstack(rows) for rows in zip(*groups, strict=True)], "csr"
    )
    words = words[:, np.unique(words.indices)]  # of all that a hash can say, what is there
    projection = SparseRandomProjection(
        dimensions, density=1 / 3, random_state=seed, dense_output=True
    )
    vectors = projection.fit_transform(words)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-9)).astype(np.float32)


def draw_map(vectors: np.ndarray, file: np.ndarray, path: str, seed: int) -> None:
    """Draw the vectors in two dimensions, near ones near, a colour for each binary."""
    import matplotlib
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    matplotlib.use("Agg")
    from matplotlib import pyplot

    place = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    if len(vectors) > 10:
        perplexity = min(30, (len(vectors) - 1) / 3)
        place = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(place)
    figure, axes = pyplot.subplots(figsize=(10, 10))
    files = list(dict.fromkeys(file.tolist()))
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(files)))
    for name, colour in zip(files, colours, strict=True):
        x, y = place[file == name, :2].T
        label = printable(name).replace("$", r"\$") if len(files) <= LEGEND else None
        axes.scatter(x, y, s=12, color=colour, label=label, alpha=0.7, linewidths=0)
    axes.set_axis_off()
    if len(files) <= LEGEND:
        axes.legend(loc="upper right", fontsize="small")
    with utils.atomic_file(path, "wb") as out:
        figure.savefig(out, format=path.rsplit(".")[-1], bbox_inches="tight", dpi=150)
    pyplot.close(figure)


def search(
    function: str,
    file: str = "embeddings.npz",
    binary: str | None = None,
    top: PositiveInt = 10,
) -> None:
    """Print the functions most like one, in all binaries of an npz.

    Parameters
    ----------
    function : str
        Its address, such as 0x401230, or its name.
    file : str
        What embed.py wrote.
    binary : str
        The binary that it is in, where several have a function of that address or name.
    top : int
        How many are printed.
    """
    arrays = read_arrays(file, COLUMNS, "table of vectors", "write it again: python embed.py")
    files, address, names, vector = arrays.values()
    start = np.array([f"0x{a:x}" for a in address.tolist()])
    asked = (start == function.lower()) | (names == function)
    if binary is not None:
        asked &= files == binary
    found = np.flatnonzero(asked)
    if len(found) != 1:
        where = ", ".join(sorted(set(files[found].tolist()))) or "none"
        raise utils.UserError(
            f"{len(found)} functions in {file} are called {function} or begin there (in: {where}); "
            "name one by its address, and its binary with --binary"
        )
    score = vector @ vector[found[0]]
    order = [i for i in np.argsort(-score, kind="stable").tolist() if i != found[0]]
    for i in order[:top]:
        print(f"{score[i]:6.3f}  {files[i]}  {start[i]}  {names[i]}")


if __name__ == "__main__":
    command_line(main, search=search)
