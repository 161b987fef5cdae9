#!/bin/sh
# Build the training programs of model/diff.safetensors on Debian 12, except DeepBinDiff's builds:
#     sh experiment_data/build_training.sh && python -m matching.train \
#         --path experiment_data/coreutils/binaries,experiment_data/packages/binaries
# Needs gcc, clang, make and libncurses-dev. Existing results are kept. Failed builds are reported,
# and the others go on.
set -u
cd "$(dirname "$0")"

python=${python:-python}
failed=0

coreutils() {
    "$python" build_coreutils.py --versions "$1" --levels "$2" --programs "$programs" || failed=1
}

packages() { # RELEASE LEVELS PACKAGES [COMPILER]
    "$python" build_packages.py --releases "$1" --levels "$2" --packages "$3" ${4:+--compilers "$4"} ||
        failed=1
}

# Neither sort nor cp, which bench/accuracy.py measures, nor mv and install, which share cp's code.
programs="chroot ls df date od pr ptx csplit chmod chown rm ln split stty tr who expr touch id cut env"
coreutils 8.32 "O0 O2"
coreutils 9.10 "O1 O3"

most="bzip2 dash diffutils ed file findutils grep gzip inetutils less lua5.1 lua5.4 lz4 lzip m4 mawk sed wget"
packages bookworm "O0 O2" "$most"
packages bookworm "O0 O2" "$most" clang
packages bookworm "O1 O3" "lua5.2 lua5.3"
packages bullseye "O0 O2" "grep mawk patch screen sed xz-utils"
packages trixie "O2 O3" "less lzip patch"
packages sid "O2 O3" "diffutils file grep gzip inetutils sed wget xz-utils"

exit $failed
