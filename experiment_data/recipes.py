"""How to build the source packages used for training, and which libraries are set aside.

A recipe says how a package differs from the usual `./configure && make` or cmake. Whole libraries
are set aside: those in TEST are used neither for training nor for choosing anything, those in
VALIDATION are not used for training.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How one source package is built; files are relative to its folder.

    Attributes
    ----------
    programs : tuple of str
        The programs to keep; if empty, all programs and shared libraries.
    configure : tuple of str or None
        Options of ./configure or cmake; None if there is nothing to configure.
    targets : tuple of str
        Targets of make.
    linker : str
        The make variable that takes the options of the linker.
    system : {"make", "cmake"}
    folder : str
        The folder with configure, CMakeLists.txt or the Makefile.
    needs : tuple of str
        Required Debian packages, apart from a compiler and make.
    """

    programs: tuple[str, ...] = ()
    configure: tuple[str, ...] | None = ("--disable-dependency-tracking", "--disable-nls")
    targets: tuple[str, ...] = ()
    linker: str = "LDFLAGS"
    system: str = "make"
    folder: str = "."
    needs: tuple[str, ...] = ()


def without(names: str) -> list[str]:
    """Return options of ./configure that leave parts out."""
    return [f"--without-{name}" for name in names.split()]


def disable(names: str) -> list[str]:
    """Return options of ./configure that turn features off."""
    return [f"--disable-{name}" for name in names.split()]


def library(*options: str, needs: str = "") -> Recipe:
    """Return the recipe of a package with ./configure that makes shared libraries."""
    shared = ("--disable-dependency-tracking", "--disable-static", "--enable-shared", *options)
    return Recipe(configure=shared, needs=tuple(needs.split()))


def cmake(*options: str, needs: str = "", folder: str = ".") -> Recipe:
    """Return the recipe of a package that cmake configures."""
    shared = ("-DBUILD_SHARED_LIBS=ON", "-DBUILD_TESTING=OFF", *options)
    return Recipe(configure=shared, system="cmake", folder=folder, needs=("cmake", *needs.split()))


def plain(*targets: str, folder: str = ".") -> Recipe:
    """Return the recipe of a package that has only a Makefile."""
    return Recipe(configure=None, targets=targets, folder=folder)


LUA = Recipe(("src/lua",), None, ("-C", "src", "lua"), linker="MYLDFLAGS")

# Programs used for training the model that bench/accuracy.py measures.
PROGRAMS = {
    "bzip2": Recipe(("bzip2",), None, ("bzip2",)),
    "dash": Recipe(("src/dash",)),
    "diffutils": Recipe(("src/diff", "src/diff3", "src/sdiff")),
    "ed": Recipe(("ed",), ()),
    "file": Recipe(
        ("src/file",),
        (
            "--disable-shared",
            "--disable-zlib",
            "--disable-bzlib",
            "--disable-xzlib",
            "--disable-zstdlib",
            "--disable-libseccomp",
        ),
    ),
    "findutils": Recipe(("find/find", "xargs/xargs")),
    "grep": Recipe(("src/grep",), ("--disable-dependency-tracking", "--disable-perl-regexp")),
    "gzip": Recipe(("gzip",)),
    "inetutils": Recipe(
        ("ftp/ftp", "src/tftp", "ping/ping", "src/inetd", "src/syslogd", "ifconfig/ifconfig")
    ),
    "less": Recipe(("less",), (), needs=("libncurses-dev",)),
    "lua5.1": LUA,
    "lua5.2": LUA,
    "lua5.3": LUA,
    "lua5.4": LUA,
    "lzip": Recipe(("lzip",), ()),
    "lz4": Recipe(("programs/lz4",), None, ("-C", "programs", "lz4")),
    "m4": Recipe(("src/m4",)),
    "mawk": Recipe(("mawk",), ()),
    "patch": Recipe(("src/patch",)),
    "screen": Recipe(("screen",), (), needs=("libncurses-dev",)),
    "sed": Recipe(("sed/sed",)),
    "wget": Recipe(
        ("src/wget",),
        (
            "--disable-nls",
            "--without-ssl",
            "--without-zlib",
            "--disable-pcre",
            "--disable-pcre2",
            "--without-libpsl",
            "--disable-iri",
        ),
    ),
    "xz-utils": Recipe(("src/xz/xz",), ("--disable-shared", "--disable-nls")),
}

LIBRARIES = {
    "bc": Recipe(("bc/bc", "dc/dc"), ()),
    "bison": Recipe(("src/bison",), needs=("m4",)),
    "brotli": cmake(),
    "c-ares": library(),
    "check": cmake(),
    "cjson": cmake("-DENABLE_CJSON_TEST=OFF"),
    "cpio": Recipe(("src/cpio",)),
    "datamash": Recipe(("datamash",)),
    "expat": cmake(
        *(f"-DEXPAT_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "TOOLS")), folder="expat"
    ),
    "flac": library("--disable-ogg", "--disable-cpplibs", "--disable-doxygen-docs"),
    "flex": library("--disable-bootstrap", needs="bison"),
    "fribidi": library(),
    "gawk": Recipe(("gawk",), ("--disable-nls", "--disable-mpfr", "--without-readline")),
    "gdbm": library("--disable-nls"),
    "gettext": library("--disable-java", "--disable-csharp", "--disable-openmp"),
    "giflib": plain("libgif.so"),
    "gmp": library("--disable-assembly", needs="m4"),
    "gperf": Recipe(("src/gperf",), ()),
    "gsl": library(),
    "hiredis": plain("dynamic"),
    "http-parser": plain("library"),
    "iperf3": library("--without-openssl"),
    "jansson": cmake(
        "-DJANSSON_BUILD_SHARED_LIBS=ON", "-DJANSSON_BUILD_DOCS=OFF", "-DJANSSON_WITHOUT_TESTS=ON"
    ),
    "jq": library("--disable-docs", "--without-oniguruma"),
    "json-c": cmake(),
    "lame": library("--disable-frontend"),
    "lcms2": library(),
    "leveldb": cmake("-DLEVELDB_BUILD_TESTS=OFF", "-DLEVELDB_BUILD_BENCHMARKS=OFF"),
    "libaec": cmake(),
    "libarchive": library(*without("zlib bz2lib lzma zstd lz4 xml2 expat openssl nettle")),
    "libcbor": cmake(),
    "libconfuse": library("--disable-examples"),
    "libdeflate": plain(),
    "libevent": library("--disable-openssl", "--disable-samples"),
    "libexif": library("--disable-nls"),
    "libffi": library(),
    "libgcrypt20": library("--disable-asm", needs="libgpg-error-dev"),
    "libgd2": library("--without-x", "--without-fontconfig"),
    "libidn2": library("--disable-nls", "--disable-doc", needs="libunistring-dev"),
    "libjpeg-turbo": cmake("-DWITH_SIMD=OFF", "-DWITH_TURBOJPEG=ON"),
    "libmad": library(),
    "libmicrohttpd": library("--disable-https", "--disable-examples", "--disable-doc"),
    "libogg": library(),
    "libonig": library(),
    "libpcap": library(needs="flex bison"),
    "libpng1.6": library(needs="zlib1g-dev"),
    "libsamplerate": library(),
    "libsndfile": library("--disable-external-libs", "--disable-mpeg"),
    "libsodium": library(),
    "libssh2": cmake("-DBUILD_EXAMPLES=OFF", needs="libssl-dev zlib1g-dev"),
    "libtasn1-6": library("--disable-doc", needs="bison"),
    "libunistring": library(),
    "libuv1": cmake("-DLIBUV_BUILD_TESTS=OFF"),
    "libvorbis": library(needs="libogg-dev"),
    "libwebp": library(),
    "libxml2": library("--without-python", "--without-zlib", "--without-lzma"),
    "libyaml": cmake(),
    "libzip": cmake("-DBUILD_EXAMPLES=OFF", "-DBUILD_DOC=OFF", needs="zlib1g-dev"),
    "libzstd": plain("lib"),
    "lmdb": plain("liblmdb.so", folder="libraries/liblmdb"),
    "make-dfsg": Recipe(("make",), ("--disable-nls", "--without-guile")),
    "mbedtls": cmake(
        *("-DENABLE_TESTING=OFF", "-DENABLE_PROGRAMS=OFF", "-DUSE_SHARED_MBEDTLS_LIBRARY=ON")
    ),
    "memcached": Recipe(("memcached",), (), needs=("libevent-dev",)),
    "minizip": Recipe(),
    "mpdecimal": library(),
    "mpfr4": library(needs="libgmp-dev"),
    "nano": Recipe(("src/nano",), ("--disable-nls",), needs=("libncurses-dev",)),
    "ncurses": library("--with-shared", "--without-ada", "--without-tests", "--without-manpages"),
    "nettle": Recipe(
        configure=("--disable-assembler", "--disable-documentation", "--disable-openssl"),
        needs=("libgmp-dev", "m4"),
    ),
    "nghttp2": library("--enable-lib-only"),
    "oggvideotools": Recipe(),
    "opus": library(*disable("doc extra-programs intrinsics asm rtcd")),
    "pcre2": library(),
    "popt": library("--disable-nls"),
    "pugixml": cmake(),
    "re2": plain("obj/so/libre2.so"),
    "readline": library(needs="libncurses-dev"),
    "rsync": Recipe(
        ("rsync",),
        tuple(disable("openssl xxhash zstd lz4 md2man simd asm")),
    ),
    "s-nail": Recipe(),
    "snappy": cmake("-DSNAPPY_BUILD_TESTS=OFF", "-DSNAPPY_BUILD_BENCHMARKS=OFF"),
    "speex": library("--disable-binaries"),
    "sqlite3": library("--disable-tcl"),
    "sysstat": Recipe(),
    "tar": Recipe(("src/tar",)),
    "tcl8.6": Recipe(folder="unix", configure=("--enable-shared",)),
    "tiff": library(*disable("zlib jpeg lzma zstd webp jbig cxx")),
    "time": Recipe(("time",), ()),
    "tinyxml2": cmake(),
    "tmux": Recipe(("tmux",), (), needs=("libevent-dev", "libncurses-dev", "bison")),
    "units": Recipe(("units",), ()),
    "wdiff": Recipe(("src/wdiff",)),
    "yajl": cmake(),
    "yaml-cpp": cmake("-DYAML_CPP_BUILD_TESTS=OFF"),
    "zlib": Recipe(configure=()),
}

# Of kinds that were thin among the above: C++ (17), games (8), databases, shells and parsers.
MORE = {
    "bash": Recipe(("bash",), ("--disable-nls", "--without-bash-malloc")),
    "cmark": cmake("-DCMARK_TESTS=OFF"),
    "dnsmasq": plain(),
    "double-conversion": cmake(),
    "fairymax": plain("fairymax"),
    "fmtlib": cmake("-DFMT_TEST=OFF", "-DFMT_DOC=OFF"),
    "gifsicle": Recipe(configure=("--disable-gifview",)),
    "gnuchess": Recipe(("src/gnuchess",), ("--disable-nls", "--without-readline"), ("-C", "src")),
    "google-glog": cmake("-DWITH_GFLAGS=OFF", "-DWITH_GTEST=OFF", "-DWITH_UNWIND=OFF"),
    "hoichess": plain(),
    "hunspell": library("--disable-nls"),
    "jbigkit": plain("lib"),
    "kyotocabinet": Recipe(configure=(), needs=("zlib1g-dev",)),
    "libb2": library("--disable-native"),
    "libconfig": library("--disable-examples"),
    "libde265": library(*disable("sse dec265 sherlock265")),
    "libebml": cmake(),
    "libjsoncpp": cmake("-DJSONCPP_WITH_TESTS=OFF", "-DBUILD_STATIC_LIBS=OFF"),
    "libmodbus": library("--disable-tests"),
    "lzlib": Recipe(configure=("--enable-shared",)),
    "lzo2": library(),
    "md4c": cmake(),
    "moon-buggy": Recipe(("moon-buggy",), (), needs=("libncurses-dev",)),
    "mujs": plain("shared"),
    "nanomsg": cmake("-DNN_TESTS=OFF", "-DNN_ENABLE_DOC=OFF"),
    "nasm": Recipe(("nasm", "ndisasm"), ()),
    "ncompress": plain("compress"),
    "ninja-build": cmake(),
    "nudoku": Recipe(("src/nudoku",), ("--disable-nls",), needs=("libncurses-dev",)),
    "openjpeg2": cmake("-DBUILD_CODEC=OFF"),
    "phalanx": plain(),
    "potrace": Recipe(),
    "qdbm": Recipe(configure=()),
    "qrencode": library("--without-tools"),
    "ragel": Recipe(("ragel/ragel",), ()),
    "robotfindskitten": Recipe(configure=(), needs=("libncurses-dev",)),
    "simdjson": cmake("-DSIMDJSON_DEVELOPER_MODE=OFF"),
    "taglib": cmake(needs="zlib1g-dev"),
    "tidy-html5": cmake(),
    "tinyproxy": Recipe(("src/tinyproxy",)),
    "toga2": plain(folder="src"),
    "uchardet": cmake(),
    "zopfli": plain("libzopfli"),
}

RECIPES = PROGRAMS | LIBRARIES | MORE

# Whole libraries, chosen by name before anything was measured.
VALIDATION = [
    "expat",
    "gdbm",
    "jansson",
    "libevent",
    "libtasn1-6",
    "libvorbis",
    "tinyxml2",
    "units",
]
TEST = [
    *("libpng1.6", "libuv1", "libxml2", "lmdb", "mbedtls", "opus", "pcre2", "yaml-cpp"),
    # Added on 2026-11-27, before they were measured, so that 10,000 functions can be had.
    *("libarchive", "libwebp", "sqlite3", "tcl8.6", "tiff"),
]


def package_of(build: str) -> str:
    """Return the package of a build's folder: sed-bookworm-O2, coreutils-8.30-O2."""
    known = [package for package in RECIPES if build.startswith(f"{package}-")]
    return max(known, key=len) if known else re.split(r"-(?=\d)", build)[0]
