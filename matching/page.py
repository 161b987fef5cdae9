"""The page that diff.py writes: a table of functions, and their control-flow graphs side by side.

All that comes from the binaries is data: it stands in the page as JSON that cannot end its script
element, and the page's own script puts it into text nodes only.
"""

import json
from pathlib import Path
from typing import Any

from binary.analysis import CALL
from features.extract import Features

TEMPLATE = Path(__file__).resolve().parent / "page.html"


def side(code: Features) -> dict[str, Any]:
    """Return what the page needs of one binary."""
    analysis = code.analysis
    n = analysis.code_blocks
    flow: list[list[int]] = [[] for _ in range(n)]
    kinds = analysis.kind.tolist()
    for (source, target), kind in zip(analysis.edges.tolist(), kinds, strict=True):
        if source < n and target < n and kind != CALL:
            flow[source].append(target)
    return {
        "functions": [
            {
                "name": analysis.function_name[f],
                "address": int(analysis.function_address[f]),
                "blocks": code.blocks[f].tolist(),
            }
            for f in range(code.functions)
        ],
        "address": analysis.address[:n].tolist(),
        "text": [text.decode("ascii", "replace") for text in analysis.instructions[:n]],
        "edges": flow,
    }


def make_page(
    paths: tuple[str, str],
    codes: tuple[Features, Features],
    functions: list[dict],
    pairs: list[list],
) -> str:
    """Return the HTML page.

    Parameters
    ----------
    functions : list of dict
        ``status`` (0 changed, 1 only in old, 2 only in new, 3 identical), ``sides`` (function of
        the old and of the new binary, -1 for none), ``score``, ``differing`` (blocks), ``change``
        (their share); as they shall be listed.
    pairs : list of [int, int, bool]
        Block of the old and of the new binary, and whether they are identical.
    """
    data = {
        "paths": paths,
        "sides": [side(code) for code in codes],
        "functions": functions,
        "pairs": pairs,
    }
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # inside JSON they stand in strings only
        text = text.replace(character, f"\\u{ord(character):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{data}", text)
