#!/bin/sh
# Two runs of at most five minutes each on one GPU machine that has torch and numpy alone.
#
#     sh bench/gpu.sh pack        here: wheels, and the corpus's ids, into gpu/ (at most 45 MB)
#     sh bench/gpu.sh speed       there: losses against the CPU's, tokens per second beside its peer
#     sh bench/gpu.sh recipe      there: pre-training on the ids, its held-out curve and weights
#     sh bench/gpu.sh settings --minutes 4.5    there, on the processor's cores beside one of these:
#                                 the settings of the recipe (bench/settings.py pack first)
#     sh bench/gpu.sh join        here: the weights that came back, as one .pt
#
# Results go to $OUT (gpu/out), text and files of at most 15 MB. Further arguments go to bench/gpu.py;
# --tiny is a trial without a GPU.
set -eu
cd "$(dirname "$0")/.."
python=${python:-python3}
case ${1:-} in
speed | recipe | settings)
    if ! "$python" -c 'import fire, pydantic, safetensors, tokenizers, tqdm' 2>/dev/null; then
        site=$(mktemp -d)
        "$python" -m pip install --quiet --no-index --no-deps --find-links gpu/wheels \
            --target "$site" $(cat gpu/wheels/names.txt)
        PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
        export PYTHONPATH
    fi
    ;;
esac
exec "$python" bench/gpu.py "$@"
