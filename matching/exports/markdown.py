"""The result of a comparison as Markdown, for a pull request or a report."""

import os

from features.extract import Features
from matching.changes import CHANGED, IDENTICAL, ORDER, STATUS, Diff
from matching.exports.records import Function, FunctionMatch, function_matches
from terminal.escape import markdown_text

TOP = 20  # functions that are listed


def verdict(diff: Diff) -> str:
    """Say in one sentence what was found."""
    count = [0] * len(STATUS)
    for row in diff.functions:
        count[row["status"]] += 1
    if count[IDENTICAL] == len(diff.functions):
        return "identical: every function has an identical partner"
    parts = [f"{count[status]:,} {STATUS[status]}" for status in ORDER if count[status]]
    return f"{len(diff.functions):,} functions: {', '.join(parts)}"


def as_markdown(
    paths: tuple[str, str], codes: tuple[Features, ...], diff: Diff, top: int = TOP
) -> str:
    """Return a verdict, a table of statuses, and the first ``top`` functions that differ."""
    old, new = (markdown_text(os.path.basename(path)) for path in paths)
    lines = [f"# {old} → {new}", "", f"**{verdict(diff)}**", ""]
    lines += ["| functions | |", "|---|---:|"]
    for status in ORDER:
        count = sum(row["status"] == status for row in diff.functions)
        lines.append(f"| {STATUS[status]} | {count:,} |")
    shown = [m for m in function_matches(codes, diff) if m.status != STATUS[IDENTICAL]]
    if shown and top:
        lines += ["", "## What changed most", ""]
        lines += table(shown[:top])
        if len(shown) > top:
            lines += ["", f"{len(shown) - top:,} more are not listed."]
    return "\n".join(lines) + "\n"


def table(matches: list[FunctionMatch], more: dict[str, list[str]] | None = None) -> list[str]:
    """Return lines of a table of functions; ``more``: title -> cells of columns in front."""
    more = more or {}
    titles = [*more, "status", "old", "new", "differing blocks", "score", "kinds"]
    rules = ["---"] * (len(more) + 3) + ["---:", "---:", "---"]
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(rules)}|"]
    for i, match in enumerate(matches):
        changed = match.status == STATUS[CHANGED]
        share = f"{match.differing} ({max(match.change, 0.01):.0%})" if changed else ""
        score = f"{match.score:.2f}" if match.old and match.new else ""
        cells = [*(column[i] for column in more.values()), match.status]
        cells += [_function(match.old), _function(match.new), share, score]
        lines.append(f"| {' | '.join([*cells, ', '.join(match.kinds)])} |")
    return lines


def _function(function: Function | None) -> str:
    return f"{markdown_text(function.name)} `0x{function.address:x}`" if function else ""
