"""Draw flow graphs in layers: the entry at the top, and edges around the boxes."""

import functools
import itertools

import graphlay

MOST = 150  # maximum number of boxes; nobody can follow the edges of a larger graph
OPTIONS = {
    "direction": "topbottom",
    "effort": "fast",  # half the time of "balanced", and the drawings are as small
    "cycles": {"strategy": "follow_flow"},  # back edges of loops go up
    "routing": {"port_sides": "facing_only"},  # from the bottom of a box to the top of another
    "spacing": {"layer_gap": 34, "node_gap": 24, "dummy_gap": 14, "port_gap": 14},
}


@functools.lru_cache(maxsize=1000)  # most functions are the same in both binaries
def draw(sizes: tuple[tuple[int, int], ...], edges: tuple[tuple[int, int], ...]) -> tuple:
    """Return the places of boxes and edges.

    Parameters
    ----------
    sizes : tuple of (width, height)
        Size of each box in pixels; the first is the entry.
    edges : tuple of (source, target)
        Indices of boxes.

    Returns
    -------
    tuple of (size, boxes, lines)
        Size of the drawing; left and top of each box; for each edge, x and y of its corners in
        order from source to target. All in whole pixels.
    """
    graph = graphlay.Graph()
    for index, (width, height) in enumerate(sizes):
        graph.node(index, width=width, height=height)
    graph.node("start", width=1, height=1)  # or a loop to the entry could put it below others
    graph.edge("start", 0, weight=100)
    for source, target in edges:
        graph.edge(source, target)
    found = graphlay.layout(graph, options=OPTIONS)
    boxes = [(node["center"], w, h) for node, (w, h) in zip(found.nodes, sizes, strict=False)]
    corners = [(center["x"] - w / 2, center["y"] - h / 2) for center, w, h in boxes]
    lines = [[(p["x"], p["y"]) for p in edge["points"]] for edge in found.edges[1:]]
    points = [*corners, *itertools.chain(*lines)]
    left, top = min(x for x, _ in points), min(y for _, y in points)

    def whole(x: float, y: float) -> tuple[int, int]:
        return round(x - left), round(y - top)

    corners = [whole(*corner) for corner in corners]
    lines = [[whole(*point) for point in line] for line in lines]
    ends = [(x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
    points = [*ends, *itertools.chain(*lines)]
    size = max(x for x, _ in points), max(y for _, y in points)
    return size, corners, [list(itertools.chain(*line)) for line in lines]
