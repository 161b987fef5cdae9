"""Write the page of two packages: their files, and all their functions by falling rank."""

from pathlib import Path

import utils
from matching.packages.compare import FILE_STATUS, PackageDiff
from matching.packages.exports import verdict
from matching.page.make import fill_page, to_json
from matching.result import STATUS

SCRIPTS = ("data.js", "package.js")


def write_pages(diff: PackageDiff, folder: Path) -> None:
    """Write index.html and the pages of the files into a folder; other files there stay."""
    with utils.one_writer(folder):
        for file in diff.files:
            if file.page:
                with utils.atomic_file(folder / Path(file.page).name, "wb") as out:
                    out.write(Path(file.page).read_bytes())
        with utils.atomic_file(folder / "index.html") as out:
            out.write(make_package_page(diff))


def make_package_page(diff: PackageDiff) -> str:
    """Return the HTML page that shows ``diff``; it links to the files' pages beside it."""
    number = {id(file): i for i, file in enumerate(diff.files)}
    about = {
        "paths": diff.paths,
        "verdict": verdict(diff),
        "leftOut": diff.left_out,
        "status": FILE_STATUS,
        "files": [
            [
                FILE_STATUS.index(file.status),
                *(side.name if side else "" for side in file.pair[:2]),
                file.pair.how,
                file.reason,
                [file.counts.get(status, 0) for status in STATUS] if file.counts else [],
                Path(file.page).name,
            ]
            for file in diff.files
        ],
        "functions": [
            [
                number[id(file)],
                match.status,
                *(
                    [f"0x{side.address:x}", side.name] if side else None
                    for side in (match.old, match.new)
                ),
                match.score,
                match.differing,
                match.change,
                match.explanation,
            ]
            for file, match in diff.functions()
        ],
    }
    return fill_page("package.html", SCRIPTS, [("index", to_json(about))])
