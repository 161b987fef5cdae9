"""List the files of a package: of a folder, or of an archive, which may be hostile.

Archives are .deb, tar (plain, or with gzip, bzip2, xz, Zstandard), zip (.whl, .jar, ...) and static
libraries (.a), also nested. A single compressed program (.ko.xz) is unpacked, too; images of file
systems are not. Each slice of a universal file (macOS) is listed as a file. A member's name never
becomes the name of a file: programs are stored under the hash of their content, and everything else
is only hashed. Links and devices are never followed, opened or created.

References
----------
deb(5), "Debian binary package format": an ar archive of debian-binary, control.tar and data.tar.
ar(5) of FreeBSD: headers of 60 bytes; long names stand in the member "//" (System V) or before the
content (BSD).
"""

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, Self, cast

import zstandard

import utils
from binary.formats import ARCHIVE, IMAGE_HEADER, image, processors, slices

UNPACK_LIMIT = 8.0  # maximum GiB of one package, unpacked
MEMBERS = 200_000  # maximum number of files in one package
DEPTH = 3  # maximum nesting of archives
LONGEST = 4096  # maximum number of characters of a member's name
EXTENSION = 1 << 20  # maximum bytes of a header's extension, such as a long name
WINDOW = 1 << 27  # maximum bytes of Zstandard's window
CHUNK = 1 << 20
BEGINNING = IMAGE_HEADER  # bytes from the beginning of a file that tell its kind
TAR_MAGIC = 257, b"ustar"
EXTENDED = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
EXTENDED |= {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
# Python's type hints leave these out.
END_OF_TAR = tarfile.EOFHeaderError, tarfile.EmptyHeaderError  # type: ignore[attr-defined]
AR_HEADER = 60  # bytes
DEB_PARTS = {"data.tar": "", "control.tar": "DEBIAN/"}  # part of a .deb -> prefix of its names
COMPRESSED: dict[bytes, Callable[[Any], Any]] = {  # first bytes -> reader
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: zstandard.ZstdDecompressor(
        max_window_size=WINDOW
    ).stream_reader(file, read_across_frames=True, closefd=False),
}


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file of a package.

    Attributes
    ----------
    name : str
        Its path in the package; "!" leads into an archive.
    size : int
    sha256 : str
    path : str
        The file with its content, if it is an executable or a library of machine code; else "".
    closed : str
        What it is, if it may contain programs but is not unpacked: an image of a file system.
    slice_of : str
        Name of the universal file (macOS) of which this is a slice; else "".
    processor : str
        Of a program, as `binary.formats.processors` names it; "" if unknown.
    """

    name: str
    size: int
    sha256: str
    path: str
    closed: str = ""
    slice_of: str = ""
    processor: str = ""


@dataclasses.dataclass
class Contents:
    """The content of a package.

    Attributes
    ----------
    members : list of Member
        Sorted by name.
    left_out : dict of str to int
        Numbers of links, devices and other things that are not regular files.
    failed : dict of str to str
        Name -> why it could not be read.
    """

    members: list[Member]
    left_out: dict[str, int]
    failed: dict[str, str]


def is_package(path: str) -> bool:
    """Whether a path is a folder, or a file with the first bytes of an archive."""
    return os.path.isdir(path) or _kind_of(path) is not None


def _kind_of(path: str) -> str | None:
    try:
        with utils.open_regular(path) as file:
            return _kind(file.read(BEGINNING))
    except OSError:
        return None  # reading it will report why


def _kind(beginning: bytes) -> str | None:
    """Return the kind of archive by its first bytes; a compressed file may not contain a tar."""
    if beginning.startswith(ARCHIVE):
        return "ar"
    if beginning.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    place, magic = TAR_MAGIC
    if beginning[place : place + len(magic)] == magic:
        return "tar"
    return "compressed" if beginning.startswith(tuple(COMPRESSED)) else None


def _is_program(beginning: bytes) -> bool:
    return beginning[:4] == b"\x7fELF" or bool(processors(beginning))


def _damaged(error: Exception) -> str:
    return f"the compressed file is damaged ({error or type(error).__name__})"


def _claimed(beginning: bytes) -> int:
    """Return the minimum size that a compressed file claims for its content, or 0."""
    try:
        return max(zstandard.frame_content_size(beginning), 0)
    except zstandard.ZstdError:
        return 0  # another format


def read_contents(path: str, folder: str, listing: str, limit: float = UNPACK_LIMIT) -> None:
    """Write a package's content to a JSON file; runs in a worker under its limits.

    Parameters
    ----------
    path : str
        A folder or an archive.
    folder : str
        An empty folder for the programs in archives.
    listing : str
        The file to write; `load_contents` reads it.
    limit : float
        Maximum GiB of all archives in the package, unpacked.

    Raises
    ------
    UserError
        The package cannot be read, is not an archive, or is too large.
    """
    reader = _Reader(Path(folder), limit)
    if os.path.isdir(path):
        reader.read_folder(path)
    else:
        try:
            with utils.open_regular(path) as file:
                reader.read_archive(file, "", 0, Path(path).stem)
        except OSError as error:
            raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
        except utils.UserError as error:
            if reader.count == 0 and _kind_of(path) == "compressed":
                why = f"{path} is compressed, but contains no readable program or tar archive"
                raise utils.UserError(f"{why} ({error})") from None
            raise utils.UserError(f"{path}: {error}") from None
    members = sorted(reader.members.values(), key=lambda member: member.name)
    found = Contents(members, dict(sorted(reader.left_out.items())), reader.failed)
    if not members and not found.failed:
        raise utils.UserError(f"{path} contains no files")
    utils.write_json(listing, dataclasses.asdict(found))


def load_contents(listing: str) -> Contents:
    """Return what `read_contents` wrote."""
    found = json.loads(Path(listing).read_text(encoding="utf-8"))
    return Contents([Member(**m) for m in found["members"]], found["left_out"], found["failed"])


class Readable(Protocol):
    """What is needed of a file, or of a part of one."""

    def read(self, size: int = ..., /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> int: ...


class _TooMuch(utils.UserError):
    """The package is larger than allowed; reading stops."""


class _Header(tarfile.TarInfo):
    """A tar header that refuses large extensions, which tarfile reads into memory, and damage."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except END_OF_TAR:
            raise
        except tarfile.HeaderError as error:  # tarfile would take some of them for the end
            raise utils.UserError(f"the tar archive is damaged ({error})") from None
        if header.size < 0 or (header.type in EXTENDED and header.size > EXTENSION):
            raise utils.UserError(f"a header of the tar archive claims {header.size:,} bytes")
        return header


class _Counted(io.RawIOBase):
    """The output of a decompressor, counted against the limit."""

    def __init__(self, file: Readable, spend: Callable[[int], None]) -> None:
        self.file, self.spend = file, spend

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(min(size, CHUNK) if size >= 0 else CHUNK)
        self.spend(len(content))
        return content


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: Readable, begin: int, end: int) -> None:
        self.file, self.begin, self.place, self.end = file, begin, begin, end

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = self.begin + offset  # callers seek only from the beginning
        return offset

    def read(self, size: int = -1) -> bytes:
        left = self.end - self.place
        self.file.seek(self.place)
        content = self.file.read(min(size, left) if size >= 0 else left)
        self.place += len(content)
        return content


class _Reader:
    """Reads one package; ``members``, ``left_out`` and ``failed`` are those of `Contents`."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.left = int(limit * 2**30)  # bytes that may still be unpacked
        self.too_much = f"it unpacks to more than {limit:g} GiB (--unpack_limit)"
        self.count = 0
        self.members: dict[str, Member] = {}
        self.left_out: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.twins = Counter[str]()  # how many more members of each name there were

    def read_folder(self, top: str) -> None:
        """List a folder and everything below it."""

        def refuse(error: OSError) -> None:
            self.failed[os.path.relpath(str(error.filename), top)] = error.strerror or str(error)

        for folder, folders, files in os.walk(top, onerror=refuse):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            self._leave_out("link", len(links))
            for name in files:
                path = os.path.join(folder, name)
                shown = os.path.relpath(path, top)
                self._count()
                try:
                    mode = os.lstat(path).st_mode
                    if not stat.S_ISREG(mode):  # opening a named pipe would wait for a writer
                        self._leave_out(_what_is(mode))
                        continue
                    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                        self._add(shown, file, 0, path)
                except OSError as error:
                    self.failed[shown] = error.strerror or str(error)

    def read_archive(self, file: Readable, before: str, depth: int, inner: str) -> None:
        """List an archive's members; ``before`` is the prefix of their names.

        ``inner`` is the name of the content, if that is one compressed program.
        """
        beginning = file.read(BEGINNING)
        file.seek(0)
        try:
            match _kind(beginning):
                case "zip":
                    self._read_zip(file, before, depth)
                case "ar":
                    self._read_ar(file, before, depth)
                case "tar":
                    self._read_tar(file, before, depth)
                case "compressed":
                    read = next(r for magic, r in COMPRESSED.items() if beginning.startswith(magic))
                    try:
                        with read(file) as content:
                            inside = content.read(BEGINNING)
                    except Exception as error:
                        if not before:
                            raise
                        self.failed[before.removesuffix("!")] = _damaged(error)
                        return
                    file.seek(0)
                    with read(file) as content:
                        counted = _Counted(content, self._spend)
                        if _is_program(inside) or image(inside):
                            claimed = _claimed(beginning)
                            self._read_one(counted, before, depth, inner, claimed)
                        else:
                            self._read_tar(counted, before, depth)
        except (utils.UserError, MemoryError):
            raise
        except Exception as error:  # a hostile archive may fail anywhere; the others go on
            why = str(error) or type(error).__name__
            raise utils.UserError(f"the archive is damaged ({why})") from None

    def _read_tar(self, file: Readable, before: str, depth: int) -> None:
        known: dict[str, Member] = {}  # possible targets of hard links
        with tarfile.open(fileobj=cast(IO[bytes], file), mode="r|", tarinfo=_Header) as archive:
            while (header := archive.next()) is not None:
                # tarfile would keep all headers in memory.
                archive.members.clear()  # type: ignore[attr-defined]
                if header.isdir() or not (name := self._member(header.name, before)):
                    continue
                if header.islnk():
                    if twin := known.get(os.path.normpath(header.linkname)):
                        self.members[name] = dataclasses.replace(twin, name=name)
                    else:
                        self.failed[name] = "a hard link to a file that does not come before it"
                elif header.isreg():
                    self._allow(header.size)
                    content: Readable = cast(IO[bytes], archive.extractfile(header))
                    if header.issparse():  # its content may be far longer than the archive
                        content = _Counted(content, self._spend)
                    self._add(name, content, depth)
                    if name in self.members:
                        known[os.path.normpath(header.name)] = self.members[name]
                else:
                    kind = "link" if header.issym() else "pipe" if header.isfifo() else "device"
                    self._leave_out(kind)

    def _read_one(self, file: Readable, before: str, depth: int, name: str, size: int) -> None:
        """Add the one program, of at least so many bytes, that a compressed file holds."""
        if name := self._member(name, before):
            try:
                self._add(name, file, depth)
                if self.members[name].size < size:  # where Zstandard's reader simply ends
                    del self.members[name]
                    raise EOFError("it ends early")
            except (utils.UserError, MemoryError):
                raise
            except Exception as error:  # as many kinds as there are decompressors
                self.failed[name] = _damaged(error)

    def _read_zip(self, file: Readable, before: str, depth: int) -> None:
        with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
            self._allow(sum(entry.file_size for entry in archive.infolist()))
            for entry in archive.infolist():
                mode = entry.external_attr >> 16
                if entry.is_dir() or not (name := self._member(entry.filename, before)):
                    continue
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    self._leave_out(_what_is(mode))
                    continue
                try:
                    with archive.open(entry) as content:
                        self._add(name, _Counted(content, self._spend), depth)
                except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                    self.failed[name] = str(error)  # damaged, a password, an unknown method

    def _read_ar(self, file: Readable, before: str, depth: int) -> None:
        debian = False
        for name, content in _members_of_ar(file):
            part = name.partition(".tar")
            debian |= name == "debian-binary"
            if debian and part[0] + part[1] in DEB_PARTS:
                inside = before + DEB_PARTS[part[0] + part[1]]
                self.read_archive(content, inside, depth, name)
            elif name := self._member(name, before):
                self._add(name, content, depth)

    def _member(self, name: str, before: str) -> str:
        """Count a member and return its path in the package; "" if it would lie outside."""
        self._count()
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or re.match(r"[A-Za-z]:|\\", name) or ".." in parts or not parts:
            self.failed[before + name[:LONGEST]] = "its path leads out of the package"
            return ""
        if len(name) > LONGEST:
            self.failed[before + name[:LONGEST]] = "its name is too long"
            return ""
        return self._unique(before + "/".join(parts))

    def _unique(self, name: str) -> str:
        """Return a name that no member has yet."""
        unique = name
        while unique in self.members or unique in self.failed:  # a member must not hide another
            self.twins[name] += 1
            unique = f"{name} ({self.twins[name] + 1})"
        return unique

    def _count(self) -> None:
        self.count += 1
        if self.count > MEMBERS:
            raise _TooMuch(f"it contains more than {MEMBERS:,} files")

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _TooMuch(self.too_much)

    def _allow(self, size: int) -> None:
        """Refuse a member before unpacking it if its claimed size exceeds what is left."""
        if size > self.left:
            raise _TooMuch(self.too_much)

    def _leave_out(self, kind: str, count: int = 1) -> None:
        if count:
            self.left_out[kind] = self.left_out.get(kind, 0) + count

    def _add(
        self, name: str, file: Readable, depth: int, path: str = "", slice_of: str = ""
    ) -> None:
        """Hash a file; store it if it is a program in an archive; read it if it is an archive.

        ``path`` is the file itself if it is not in an archive.
        """
        chunk = file.read(BEGINNING)
        kind = _kind(chunk) if depth < DEPTH else None
        parts, processor = slices(chunk), "".join(processors(chunk)[:1])
        closed = image(chunk)
        program = _is_program(chunk) and not closed
        digest, size = hashlib.sha256(), 0
        copy = self.folder / f"member{depth}"
        keeps = not path and (program or kind)
        with utils.disk_errors(copy), copy.open("wb") if keeps else contextlib.nullcontext() as out:
            while chunk:
                digest.update(chunk)
                size += len(chunk)
                if out:
                    out.write(chunk)
                chunk = file.read(CHUNK)
        if kind and self._look_into(name, path or str(copy), kind, depth):
            return
        if parts and depth < DEPTH:
            self._add_slices(name, path or str(copy), size, parts, depth)
            return
        sha256 = digest.hexdigest()
        if program and not path:
            path = str(self.folder / sha256)
            os.replace(copy, path)
        path = path if program else ""
        self.members[name] = Member(name, size, sha256, path, closed, slice_of, processor)

    def _add_slices(
        self, name: str, path: str, size: int, parts: dict[str, tuple[int, int]], depth: int
    ) -> None:
        """Add each slice of a universal file."""
        with open(path, "rb") as file:
            for processor, (begin, length) in parts.items():
                self._count()
                self._spend(length)
                shown = self._unique(f"{name} ({processor})")
                if begin + length > size:
                    self.failed[shown] = "the universal file is cut off"
                else:
                    part = _Part(file, begin, begin + length)
                    self._add(shown, part, depth + 1, slice_of=name)

    def _look_into(self, name: str, path: str, kind: str, depth: int) -> bool:
        """Read an archive in the package; return False for a compressed file without an archive."""
        outer = self.members, self.failed
        self.members, self.failed = {}, {}
        try:
            with open(path, "rb") as file:
                inner = re.split("[/!]", name)[-1].rpartition(".")[0]
                self.read_archive(file, name + "!", depth + 1, inner or "content")
        except _TooMuch:
            raise
        except utils.UserError as error:
            if kind == "compressed" and not self.members and not self.failed:
                return False
            self.failed[name] = str(error)
        finally:
            inner = self.members, self.failed
            self.members, self.failed = outer
            self.members |= inner[0]
            self.failed |= inner[1]
        return True


def _what_is(mode: int) -> str:
    """Return the name of a kind of file that is not regular."""
    if stat.S_ISLNK(mode):
        return "link"
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _members_of_ar(file: Readable) -> Iterator[tuple[str, Readable]]:
    """Yield name and content of each member except indexes."""
    end, place, long_names = file.seek(0, os.SEEK_END), len(ARCHIVE), b""
    while place + AR_HEADER <= end:
        file.seek(place)
        header = file.read(AR_HEADER)
        digits, name = header[48:58].strip(), header[:16].rstrip(b" ")
        begin = place + AR_HEADER
        if header[58:] != b"`\n" or not digits.isdigit() or begin + int(digits) > end:
            raise utils.UserError("the archive is damaged (a header of ar is wrong)")
        size = int(digits)
        place = begin + size + size % 2
        if name == b"//":
            long_names = file.read(min(size, EXTENSION))
        elif long := re.fullmatch(rb"/(\d+)", name):
            name = re.split(rb"/?\n", long_names[int(long[1]) :], maxsplit=1)[0]
        elif long := re.fullmatch(rb"#1/(\d+)", name):
            length = min(int(long[1]), size)
            name, begin, size = file.read(length).rstrip(b"\0"), begin + length, size - length
        index = name in (b"/", b"//", b"/SYM64/") or name.startswith(b"__.SYMDEF")
        if not index:
            yield os.fsdecode(name.removesuffix(b"/")), _Part(file, begin, begin + size)
