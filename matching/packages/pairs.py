"""Find which files of two packages correspond: by path, then name, then content."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from features.tfidf import hashed, weigh
from matching.packages.contents import Member

# The parts of a file's name that change with a release: the version of a .deb, a hash from
# auditwheel, and numbers.
DEB = re.compile(r"_[^_/!]+(?=_[a-z0-9-]+\.deb\b)")
HASH = re.compile(r"-[0-9a-f]{8,}(?=\.)")
NUMBER = re.compile(r"\d+([.:~+_-]?\d+)*")
TEXT = re.compile(rb"[\x20-\x7e]{6,}")  # as strings(1) finds them
LIKE = 0.3  # minimum cosine of two programs' texts to take them for versions of one program
READ = 64 << 20  # bytes from the beginning of a program that are searched for texts
MOST = 500  # maximum number of programs without a partner whose texts are compared, per package


class FilePair(NamedTuple):
    """Two files that correspond, or one without a partner.

    Attributes
    ----------
    old, new : Member or None
    how : str
        What they have in common: one of `RULES`, or texts; "" without a partner.
    """

    old: Member | None
    new: Member | None
    how: str

    @property
    def members(self) -> list[Member]:
        """The one or two files."""
        return [member for member in (self.old, self.new) if member]

    @property
    def name(self) -> str:
        """Its name in OLD; in NEW if it exists only there."""
        return self.members[0].name


def without_versions(name: str) -> str:
    """Return a name with versions and hashes replaced by #.

    >>> without_versions("libfoo-3f2a9c01.so.1.2"), without_versions("libfoo-bb07e455.so.2")
    ('libfoo-#.so.#', 'libfoo-#.so.#')
    """
    return NUMBER.sub("#", HASH.sub("-#", DEB.sub("_#", name)))


def _base(name: str) -> str:
    return name.replace("!", "/").rpartition("/")[2]


# From strict to lax. By name alone, programs are paired only with programs.
RULES: dict[str, Callable[[Member], object]] = {
    "path": lambda m: m.name,
    "path and processor": lambda m: (m.slice_of or m.name, m.processor),
    "path but for versions": lambda m: without_versions(m.name),
    "content": lambda m: m.sha256,
    "name": lambda m: (bool(m.path), _base(m.name)),
    "name but for versions": lambda m: (bool(m.path), without_versions(_base(m.name))),
}


def pair_files(old: list[Member], new: list[Member]) -> list[FilePair]:
    """Pair the files of two packages; each is in one pair.

    Two files are a pair if one of `RULES` gives both the same key and no other file in their
    packages has it; files of equal content are paired in any case. The remaining programs are
    paired by their texts.
    """
    pairs: list[FilePair] = []
    left = {m.name: m for m in old}, {m.name: m for m in new}

    def take(a: Member, b: Member, how: str) -> None:
        pairs.append(FilePair(left[0].pop(a.name), left[1].pop(b.name), how))

    for how, key in RULES.items():
        groups = [_grouped(members.values(), key) for members in left]
        for k in [k for k in groups[0] if k in groups[1]]:
            a, b = groups[0][k], groups[1][k]
            if how == "content" or len(a) == len(b) == 1:
                for one, other in zip(a, b, strict=False):
                    take(one, other, how)
    for a, b in _alike(*([m for m in members.values() if m.path] for members in left)):
        take(a, b, "texts")
    pairs += [FilePair(m, None, "") for m in left[0].values()]
    pairs += [FilePair(None, m, "") for m in left[1].values()]
    return sorted(pairs, key=lambda pair: pair.name)


def _grouped(members: Iterable[Member], key: Callable[[Member], object]) -> dict:
    groups = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    return groups


def _alike(old: list[Member], new: list[Member]) -> list[tuple[Member, Member]]:
    """Pair programs by their texts, one to one, with the highest sum of cosines."""
    if not old or not new or max(len(old), len(new)) > MOST:
        return []
    from scipy.optimize import linear_sum_assignment  # here, because the import takes long

    a, b = weigh(*(hashed(_texts(member) for member in side) for side in (old, new)))
    cosine = (a @ b.T).toarray()
    rows, columns = linear_sum_assignment(-cosine)
    return [(old[i], new[j]) for i, j in zip(rows, columns, strict=True) if cosine[i, j] >= LIKE]


def _texts(member: Member) -> list[bytes]:
    with Path(member.path).open("rb") as file:
        return sorted(set(TEXT.findall(file.read(READ))))
