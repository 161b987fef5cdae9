"""A picture of an index: its functions in two dimensions, coloured by file."""

import os
from pathlib import Path

import numpy as np

import utils
from encoder.index import Index
from terminal.escape import printable

PICTURES = (".png", ".svg", ".pdf")
COLOURED = 9  # files with a colour of their own, the largest; eyes tell no more colours apart
GREY = 7  # a colour of tab10 that looks like that of all other files
SEED = 0  # of the choice of functions and of t-SNE
MOST = 5000  # maximum number of functions drawn; if there are more, a random choice is drawn


def draw_map(index: Index, path: str) -> None:
    """Draw the functions of an index, placed by PCA and t-SNE, so that similar ones are close.

    Parameters
    ----------
    index : Index
    path : str
        The picture's file; its name ends in one of PICTURES.
    """
    import matplotlib
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rng = np.random.default_rng(SEED)
    drawn = np.sort(rng.permutation(len(index.vector))[:MOST])
    vectors, binary = index.vector[drawn].astype(np.float32), index.binary[drawn]
    different = len(np.unique(vectors, axis=0))
    place = np.zeros((len(vectors), 2))
    if different > 1:
        place = PCA(min(50, *vectors.shape), random_state=SEED).fit_transform(vectors)
    if different > 10:
        perplexity = min(30, (len(vectors) - 1) / 3)
        place = TSNE(perplexity=perplexity, random_state=SEED, init="pca").fit_transform(place)
    figure, axes = pyplot.subplots(figsize=(12, 10), layout="constrained")
    size = np.bincount(index.binary, minlength=len(index.binaries))
    largest = np.argsort(-size, kind="stable")[:COLOURED]
    others = len(index.binaries) - len(largest)
    if others:
        x, y = place[~np.isin(binary, largest), :2].T
        label = f"{others:,} other {utils.plural(others, 'file')}"
        axes.scatter(x, y, s=6, color="0.8", label=label, linewidths=0)
    labels = _labels([index.binaries[number].path for number in largest])
    colours = np.delete(matplotlib.colormaps["tab10"](np.arange(10)), GREY, axis=0)
    for number, label, colour in zip(largest.tolist(), labels, colours, strict=False):
        x, y = place[binary == number, :2].T
        label = f"{label} ({size[number]:,})"
        axes.scatter(x, y, s=9, color=colour, label=label, alpha=0.8, linewidths=0)
    axes.set_axis_off()
    axes.set_title(
        f"{len(index):,} {utils.plural(len(index), 'function')} of "
        f"{len(size):,} {utils.plural(len(size), 'file')}: "
        "points close together are similar functions"
        + (f"\n{MOST:,} of them are drawn, chosen at random" if len(index) > MOST else "")
    )
    title = "file (functions)" if not others else f"the {COLOURED} largest files (functions)"
    figure.legend(loc="outside right upper", fontsize="small", markerscale=3, title=title)
    kind = os.path.splitext(path)[1][1:]
    with utils.atomic_file(path, "wb") as out:
        figure.savefig(out, format=kind, dpi=150)
    pyplot.close(figure)


def _labels(paths: list[str]) -> list[str]:
    """Return the end of each file's path, as many folders of it as tell all files apart."""
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(set(paths)):
            break
    return [printable(name).replace("$", r"\$") for name in names]
