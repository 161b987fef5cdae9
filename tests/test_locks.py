"""The locks: every package that is asked for has one version, that one, and hashes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-cuda.lock")


def locked():
    """Package -> version -> its hashes."""
    found: dict[str, dict[str, set]] = {}
    for name in LOCKS:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        for line in text.splitlines():
            package, version = re.match(r"([a-z0-9._-]+)==([^ ;]+)", line).groups()
            hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", line))
            found.setdefault(package, {}).setdefault(version, set()).update(hashes)
    return found


@pytest.mark.parametrize("file", ["", "-cluster", "-dev"])
def test_what_is_asked_for_is_locked(file):
    versions = locked()
    lines = (ROOT / f"requirements{file}.txt").read_text().splitlines()
    asked = [line for line in lines if "==" in line]
    assert asked
    for line in asked:
        package, version = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line).groups()
        assert versions[re.sub(r"[._]", "-", package.lower())][version]


def test_everything_locked_has_hashes_and_names_no_place():
    assert all(hashes for versions in locked().values() for hashes in versions.values())
    for name in LOCKS:
        assert not re.search(r"https?:|file:|@|index", (ROOT / name).read_text())
