"""The locks: each package has one version and hashes; and what licences they have."""

import importlib.metadata
import re
from pathlib import Path

import packaging.requirements
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


def licence(distribution: importlib.metadata.Distribution) -> str:
    """What a package says its licence is, in whichever of three places it says so."""
    about = distribution.metadata
    named = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    return about.get("License-Expression") or " ".join(named) or about.get("License", "")


def installed_with(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """Return the packages that these need, and these themselves, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    while names:
        try:
            distribution = importlib.metadata.distribution(names.pop())
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        if distribution.name in found:
            continue
        found[distribution.name] = distribution
        for line in distribution.requires or []:
            needed = packaging.requirements.Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                names.append(needed.name)
    return found


def test_licences_are_those_that_the_readme_names():
    """GPL and LGPL are in the two packages that README's last section is about, and in no other."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = [
        packaging.requirements.Requirement(line.split("#")[0]).name
        for line in lines
        if line[0] != "#"
    ]
    packages = installed_with(asked)
    assert len(packages) > 60
    said = {name: licence(package) for name, package in packages.items()}
    copyleft = {name for name, text in said.items() if "GPL" in text}
    assert copyleft == {"pyvex", "Pebble"}
    readme = (ROOT / "README.md").read_text().split("## Licence")[1].lower()
    assert all(name.lower() in readme for name in copyleft)
