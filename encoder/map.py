"""A picture of an index: its functions in two dimensions, with a colour for each binary."""

import os

import numpy as np

import utils
from encoder.index import Index
from terminal.escape import printable

PICTURES = (".png", ".svg", ".pdf")
LEGEND = 20  # maximum number of binaries in the legend; with more there is none
SEED = 0  # of the choice of functions and of t-SNE
MOST = 5000  # maximum number of functions drawn; if there are more, a random choice is drawn


def draw_map(index: Index, path: str) -> None:
    """Draw the functions of an index, placed by PCA and t-SNE.

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
    place = PCA(min(50, *vectors.shape), random_state=SEED).fit_transform(vectors)
    if len(vectors) > 10:
        perplexity = min(30, (len(vectors) - 1) / 3)
        place = TSNE(perplexity=perplexity, random_state=SEED, init="pca").fit_transform(place)
    figure, axes = pyplot.subplots(figsize=(12, 10), layout="constrained")
    files = np.unique(binary)
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(files)))
    for number, colour in zip(files, colours, strict=True):
        x, y = place[binary == number, :2].T
        name = printable(os.path.basename(index.binaries[number].path)).replace("$", r"\$")
        label = name if len(files) <= LEGEND else None
        axes.scatter(x, y, s=9, color=colour, label=label, alpha=0.7, linewidths=0)
    axes.set_axis_off()
    if len(files) <= LEGEND:
        figure.legend(loc="outside right upper", fontsize="small")
    kind = os.path.splitext(path)[1][1:]
    with utils.atomic_file(path, "wb") as out:
        figure.savefig(out, format=kind, dpi=150)
    pyplot.close(figure)
