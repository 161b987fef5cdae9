"""Write the page: an index of all functions, and parts that are unpacked when they are opened.

Everything from the binaries is compressed data in base64, which cannot end its script element, and
the page's own script puts it only into text nodes. The page can run no other script, and can load
nothing.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from features.extract import Features
from matching.kinds import KINDS
from matching.page.rows import Rows
from matching.page.side import Side
from matching.pseudo import PseudoDiff, Sides
from matching.result import ORDER, STATUS, Diff

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "data.js",
    "difference.js",
    "function.js",
    "table.js",
    "linear.js",
    "graph.js",
    "pseudo.js",
    "main.js",
)
PART = 200_000  # characters of JSON in a part; a browser reads them in milliseconds
DRAWN = 12_000  # maximum number of boxes in all graphs together, half a millisecond each


def make_page(
    paths: tuple[str, str],
    codes: tuple[Features, Features],
    diff: Diff,
    home: str = "",
    pseudo: Mapping[Sides, PseudoDiff] | None = None,
) -> str:
    """Return the HTML page that shows ``diff``, the comparison of the binaries at ``paths``.

    ``home`` is a page beside it to which it links; ``pseudo`` is the result of `pseudo_code`.
    """
    sides = [Side(code) for code in codes]
    found = {kind for match in diff.functions for kind in match.kinds}
    kinds = [kind for kind in KINDS if kind in found]
    index_rows, parts = _rows(sides, diff, kinds, pseudo or {})
    index = {
        "paths": paths,
        "status": STATUS,
        "order": [STATUS.index(status) for status in ORDER],
        "kinds": kinds,
        "functions": [[s.function(f) for f in range(s.code.functions)] for s in sides],
        "rows": index_rows,
        "home": home,
    }
    # The browser keeps notes on two binaries under this name.
    index["digest"] = hashlib.sha256(to_json(index).encode()).hexdigest()[:16]
    data = [("index", to_json(index)), *((f"part{i}", p) for i, p in enumerate(parts))]
    return fill_page("page.html", SCRIPTS, data)


def _rows(
    sides: list[Side],
    diff: Diff,
    kinds: list[str],
    pseudo: Mapping[Sides, PseudoDiff],
) -> tuple[list[list], list[str]]:
    """Return the index's entry for each row, and the parts, each the JSON of several rows."""
    made, left = Rows(sides, diff), DRAWN
    rows: list[list[Any]] = []
    parts: list[list[str]] = [[]]
    for match in diff.functions:
        content = made.make(match.sides, left > 0)
        left -= sum(len(g["boxes"]) for graphs in content["graphs"] for g in graphs if g)
        if sum(map(len, parts[-1])) > PART:
            parts.append([])
        words = [side.words(blocks) for side, blocks in zip(sides, content["blocks"], strict=True)]
        numbers = match.score, match.differing, match.change, match.rank
        place = len(parts) - 1, len(parts[-1])
        of = [kinds.index(kind) for kind in match.kinds]
        inlined = [function.number for function in match.inlined]
        about = STATUS.index(match.status), *match.sides, *numbers, of, inlined
        rows.append([*about, *place, *words])
        if found := pseudo.get(match.sides):
            content["pseudo"] = {"lines": found.lines, "reasons": found.reasons}
        parts[-1].append(to_json(content))
    return rows, [f"[{','.join(part)}]" for part in parts]


def to_json(content: Any) -> str:
    """Return JSON without spaces, ASCII only."""
    return json.dumps(content, separators=(",", ":"))


def fill_page(template: str, scripts: Iterable[str], data: Iterable[tuple[str, str]]) -> str:
    """Put style, scripts and data (id, JSON) into a page, and allow this style and script only."""
    head, page = ((HERE / name).read_text(encoding="utf-8") for name in ("head.html", template))
    page = page.replace("{head}", head)
    for kind, files in (("style", ("page.css",)), ("script", scripts)):
        text = "".join("\n" + (HERE / file).read_text(encoding="utf-8") for file in files)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        page = page.replace(f"{{{kind} hash}}", f"sha256-{digest}").replace(f"{{{kind}}}", text)
    packed = (
        f'<script type="text/plain" id="{name}">'
        f"{base64.b64encode(zlib.compress(text.encode())).decode()}</script>"
        for name, text in data
    )
    return page.replace("{data}", "\n".join(packed))
