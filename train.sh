#!/bin/sh
# Pre-train BERT on data/corpus.txt. Each setting below can be set in the environment, for example
#     model_cfg=config/bert_tiny.json sh train.sh
# and arguments are passed on to pretrain.py (python pretrain.py --help).
set -eu
cd "$(dirname "$0")"

train_cfg=${train_cfg:-config/pretrain.json}
model_cfg=${model_cfg:-}  # empty: config/bert_tiny.json without a GPU, bert_small.json with one
data_file=${data_file:-data/corpus.txt}
vocab=${vocab:-vocab/vocab.txt}
save_dir=${save_dir:-out}
max_len=${max_len:-64}
max_pred=${max_pred:-16}
mask_prob=${mask_prob:-0.25}

python=${python:-python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') || {
    echo "error: $python cannot import torch; activate the environment: . .venv/bin/activate" >&2
    exit 1
}
if [ -z "$model_cfg" ]; then
    [ "$gpus" -gt 0 ] && model_cfg=config/bert_small.json || model_cfg=config/bert_tiny.json
fi

given=" $* "
for setting in mask_prob max_pred max_len save_dir vocab data_file model_cfg train_cfg; do
    case "$given" in
        *" --$setting "* | *" --$setting="*) ;;  # an argument overrides the setting
        *) eval "value=\$$setting" && set -- "--$setting" "$value" "$@" ;;
    esac
done
set -- pretrain.py "$@"
if [ "$gpus" -gt 1 ]; then
    set -- -m torch.distributed.run --standalone --nproc_per_node="$gpus" "$@"
fi
exec "$python" "$@"
