"""Write the result of a comparison as Markdown, for a pull request or a report."""

import os
import re
from collections import Counter
from collections.abc import Mapping

from matching.pseudo import COME, GONE, SAME, PseudoDiff, Sides
from matching.result import CHANGED, IDENTICAL, ORDER, Diff, Function, FunctionMatch
from terminal.escape import markdown_text
from utils import plural

TOP = 20  # number of functions in the list


def verdict(diff: Diff) -> str:
    """Say in one sentence what was found."""
    count = Counter(match.status for match in diff.functions)
    if count[IDENTICAL] == len(diff.functions):
        return "identical: every function has an identical partner"
    parts = [f"{count[status]:,} {status}" for status in ORDER if count[status]]
    n = len(diff.functions)
    return f"{n:,} {plural(n, 'function')}: {', '.join(parts)}"


def as_markdown(
    paths: tuple[str, str],
    diff: Diff,
    top: int = TOP,
    pseudo: Mapping[Sides, PseudoDiff] | None = None,
) -> str:
    """Return a verdict, a table of statuses, and the first ``top`` functions that differ.

    They are followed by differences of their pseudo-code, for those that `pseudo_code` decompiled.
    """
    old, new = (markdown_text(os.path.basename(path)) for path in paths)
    lines = [f"# {old} → {new}", "", f"**{verdict(diff)}**", ""]
    lines += ["| functions | |", "|---|---:|"]
    for status in ORDER:
        count = sum(match.status == status for match in diff.functions)
        lines.append(f"| {status} | {count:,} |")
    shown = [match for match in diff.functions if match.status != IDENTICAL]
    if shown and top:
        lines += ["", "## What changed most", ""]
        lines += table(shown[:top])
        if len(shown) > top:
            lines += ["", f"{len(shown) - top:,} more are not listed."]
    for match in diff.functions:
        if match.old and match.new and pseudo and match.sides in pseudo:
            names = markdown_text(match.old.symbol), markdown_text(match.new.symbol)
            lines += ["", f"## {' → '.join(names)}", "", *_pseudo_lines(pseudo[match.sides])]
    return "\n".join(lines) + "\n"


def _pseudo_lines(found: PseudoDiff) -> list[str]:
    """Return a code block that shows two pseudo-codes as a unified diff does."""
    if any(found.reasons):
        sides = zip(("old", "new"), found.reasons, strict=True)
        why = "; ".join(f"{which}: {reason}" for which, reason in sides if reason)
        return [f"No pseudo-code: {markdown_text(why)}"]
    lines: list[str] = []
    before: list[str] = []
    after: list[str] = []
    for sign, old, new in [*found.lines, (SAME, "", "")]:
        if sign == SAME:  # removed lines come before the lines that replace them
            lines += [*before, *after, f"  {new}"]
            before, after = [], []
        else:
            before += [f"- {old}"] * (sign != COME)
            after += [f"+ {new}"] * (sign != GONE)
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}diff", *lines[:-1], fence]


def table(matches: list[FunctionMatch], more: dict[str, list[str]] | None = None) -> list[str]:
    """Return the lines of a table of functions; ``more`` adds columns in front, title -> cells."""
    more = more or {}
    titles = [*more, "status", "old", "new", "differing blocks", "score", "kinds"]
    rules = ["---"] * (len(more) + 3) + ["---:", "---:", "---"]
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join(rules)}|"]
    for i, match in enumerate(matches):
        changed = match.status == CHANGED
        share = f"{match.differing} ({max(match.change, 0.01):.0%})" if changed else ""
        score = f"{match.score:.2f}" if match.old and match.new else ""
        cells = [*(column[i] for column in more.values()), match.status]
        cells += [_function(match.old), _function(match.new), share, score]
        lines.append(f"| {' | '.join([*cells, _explanation(match)])} |")
    return lines


def _explanation(match: FunctionMatch) -> str:
    return markdown_text(match.explanation) if match.inlined else match.explanation


def _function(function: Function | None) -> str:
    return f"{markdown_text(function.name)} `0x{function.address:x}`" if function else ""
