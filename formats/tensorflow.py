"""Read Google's TensorFlow checkpoints of BERT, of TensorFlow 1 and 2.

In TensorFlow 1, each variable has a name, as in google-research/bert: ``bert/encoder/layer_0/...``.
In TensorFlow 2 (the model garden), checkpoints are object graphs: the same variable may be called
``encoder/layer_with_weights-4/...`` or ``encoder/_transformer_layers/0/...``, depending on the
program that saved it. But the graph in the file also contains the variable's own name, which has
hardly changed over time. So we first translate all names to those of TensorFlow 1.

    bert = read_checkpoint("uncased_L-12_H-768_A-12/bert_model.ckpt")

References
----------
Devlin et al., https://github.com/google-research/bert (names and shapes of the variables)
https://github.com/tensorflow/models, official/nlp (names and shapes in the model garden)
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import models
from formats.bert import (
    Foreign,
    Shape,
    check_numbers,
    fill_vocab,
    finish,
    hugging_face_name,
    match,
    read_sizes,
    wanted_weights,
)
from tokenization import load_vocab, reading_of
from utils import UserError

# Hugging Face's names -> Google's, applied in this order.
GOOGLE_NAMES = (
    (r"^cls\.predictions\.bias$", "cls.predictions.output_bias"),
    (r"^cls\.seq_relationship\.(weight|bias)$", r"cls.seq_relationship.output_\1"),
    (r"output_weight$", "output_weights"),
    (r"_embeddings\.weight$", "_embeddings"),
    (r"LayerNorm\.weight$", "LayerNorm.gamma"),
    (r"LayerNorm\.bias$", "LayerNorm.beta"),
    (r"\.weight$", ".kernel"),
    (r"layer\.(\d+)", r"layer_\1"),
    (r"\.", "/"),
)
# The ends of the model garden's names, since 2019 -> Google's. The garden's next-sentence head may
# have its own pooler; then the encoder's is not trained.
LAYER, DENSE, NORM = r"(?:transformer|encoder)/layer_(\d+)", "(kernel|bias)", "(gamma|beta)"
GARDEN_NAMES = (
    ("word_embeddings/embeddings", "bert/embeddings/word_embeddings"),
    ("position_embedding/embeddings", "bert/embeddings/position_embeddings"),
    ("embedding_postprocessor/position_embeddings", "bert/embeddings/position_embeddings"),
    ("type_embeddings/embeddings", "bert/embeddings/token_type_embeddings"),
    ("embedding_postprocessor/type_embeddings", "bert/embeddings/token_type_embeddings"),
    (f"(?:embeddings|embedding_postprocessor)/layer_norm/{NORM}", r"bert/embeddings/LayerNorm/\1"),
    (
        f"{LAYER}/self_attention/(query|key|value)/{DENSE}",
        r"bert/encoder/layer_\1/attention/self/\2/\3",
    ),
    (
        f"{LAYER}/self_attention(?:/attention)?_output/{DENSE}",
        r"bert/encoder/layer_\1/attention/output/dense/\2",
    ),
    (
        f"{LAYER}/self_attention_layer_norm/{NORM}",
        r"bert/encoder/layer_\1/attention/output/LayerNorm/\2",
    ),
    (f"{LAYER}/(intermediate|output)/{DENSE}", r"bert/encoder/layer_\1/\2/dense/\3"),
    (f"{LAYER}/output_layer_norm/{NORM}", r"bert/encoder/layer_\1/output/LayerNorm/\2"),
    (f"pooler_transform/{DENSE}", r"bert/pooler/dense/\1"),
    (f"cls/predictions/transform/dense/{DENSE}", r"cls/predictions/transform/dense/\1"),
    (f"cls/predictions/transform/LayerNorm/{NORM}", r"cls/predictions/transform/LayerNorm/\1"),
    ("cls/predictions/output_bias/bias", "cls/predictions/output_bias"),
    (f"next_sentence/pooler_dense/{DENSE}", r"cls/seq_relationship/pooler/\1"),
    (
        "(?:next_sentence|predictions/transform)/logits/kernel",
        "cls/seq_relationship/output_weights",
    ),
    ("(?:next_sentence|predictions/transform)/logits/bias", "cls/seq_relationship/output_bias"),
)
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # the end of every name in an object graph
# Adam's moments in TensorFlow 1, in TensorFlow 2's older optimizers, and in the newer ones.
SLOT = re.compile(r"/(adam_[mv])$|/\.OPTIMIZER_SLOT/.*?(\w+)$|^optimizer/")


def find_prefix(source: str | os.PathLike[str]) -> Path | None:
    """Return the common prefix of a checkpoint's file names, or None if there is no checkpoint.

    Parameters
    ----------
    source : path-like
        The prefix ``bert_model.ckpt`` itself; or one of the files ``bert_model.ckpt.index`` and
        ``bert_model.ckpt.data-00000-of-00001``; or their folder.

    Raises
    ------
    utils.UserError
        The folder contains several checkpoints.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(source.glob("*.index"))
        if len(found) > 1:
            names = ", ".join(path.stem for path in found)
            raise UserError(f"{source} holds several checkpoints ({names}); give one of them")
        return found[0].with_suffix("") if found else None
    prefix = source.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", source.name))
    return prefix if Path(f"{prefix}.index").is_file() else None


def read_checkpoint(
    prefix: str | os.PathLike[str],
    model_cfg: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    do_lower_case: bool | None = None,
) -> Foreign:
    """Read a checkpoint, and the bert_config.json and vocab.txt beside it.

    Parameters
    ----------
    prefix : path-like
        As returned by `find_prefix`.
    model_cfg, vocab : path-like, optional
        A file of `models.Config` and a vocabulary, instead of those two files.
    do_lower_case : bool, optional
        How text is read. Default: as in bert_config.json, or else cased if the vocabulary contains
        capital letters.

    Raises
    ------
    utils.UserError
        No TensorFlow; a file is missing or damaged; the variables do not fit the sizes.
    """
    prefix = Path(prefix)
    config_file, vocab_file = (prefix.with_name(name) for name in ("bert_config.json", "vocab.txt"))
    words: dict[str, int] = {}
    if vocab is not None or vocab_file.is_file():
        words = load_vocab(vocab if vocab is not None else vocab_file)
    if model_cfg is not None:
        sizes = models.Config.from_json(model_cfg)
        if words:
            sizes = sizes.with_vocab_size(len(words), model_cfg, vocab or vocab_file)
        elif sizes.vocab_size is None:
            raise UserError(f"{vocab_file} is missing; give the vocabulary as --vocab")
    elif config_file.is_file():
        sizes, config = read_sizes(config_file)
        do_lower_case = config.do_lower_case if do_lower_case is None else do_lower_case
    else:
        raise UserError(f"{config_file} is missing; give the sizes as --model_cfg")
    if words:
        assert sizes.vocab_size is not None  # set by with_vocab_size or bert_config.json
        words = fill_vocab(words, sizes.vocab_size, vocab or vocab_file)
    state, ignored = read_variables(
        prefix, wanted_weights(sizes), sizes.n_heads, model_cfg or config_file.name
    )
    return Foreign(sizes, state, words, reading_of(words, do_lower_case), {}, ignored)


def read_variables(
    prefix: str | os.PathLike[str],
    wanted: dict[str, Shape],
    n_heads: int,
    said: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read the weights ``wanted`` from a checkpoint.

    Parameters
    ----------
    wanted : dict of str to shape
        Keys of `models.BertModel4Pretrain`.
    n_heads : int
        In the model garden, attention weights have a dimension for heads.
    said : path-like
        For the message: where the sizes come from.

    Returns
    -------
    state : dict of str to float32 tensors
        Without missing pre-training heads.
    ignored : list of str
        The names of all other variables; for those of the optimizer, how many there are.

    Raises
    ------
    utils.UserError
        See `read_checkpoint`.
    """
    tf = _tensorflow()
    state = {}
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        listed = reader.get_variable_to_shape_map()
        full = {name.removesuffix(VALUE): name for name in listed}
        shapes = {name: tuple(listed[full[name]]) for name in full}
        graph = shapes.pop(GRAPH, None) == ()
        if graph:
            names = _garden_names(reader.get_tensor(GRAPH), prefix)
        else:
            names = {name: name for name in shapes}

        def name_of(key: str) -> str:
            name = google_name(key)
            return names.get(name, name)

        stored = {key: _stored(key, shape, n_heads, graph) for key, shape in wanted.items()}
        dtypes = reader.get_variable_to_dtype_map()
        # Without the masked-LM head this is a fine-tuned model, and its classifier another one.
        if graph and "cls/predictions/output_bias" not in names:
            stored = {key: s for key, s in stored.items() if not key.startswith("classifier.")}
        for key in match(stored, name_of, shapes, prefix, said):
            name, shape = name_of(key), wanted[key]
            if not dtypes[full[name]].is_floating:
                raise UserError(
                    f"{prefix}: {name} is of type {dtypes[full[name]].name}; weights must be "
                    "floating-point numbers"
                )
            array = torch.from_numpy(reader.get_tensor(full[name]).astype(np.float32))
            check_numbers(name, array, prefix)
            if _is_kernel(key, graph):
                array = array.reshape(shape[::-1]).T
            state[key] = array.reshape(shape).contiguous()
            del shapes[name]
    except (tf.errors.OpError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{prefix} is damaged or not a TensorFlow checkpoint: {str(error)[:200]}"
        ) from error
    slots = Counter(
        next(filter(None, found.groups()), "of the optimizer")
        for found in map(SLOT.search, shapes)
        if found
    )
    others = sorted(name for name in shapes if not SLOT.search(name))
    return finish(state), [f"{count} {slot}" for slot, count in sorted(slots.items())] + others


def google_name(key: str) -> str:
    """Return Google's name of the weight ``key`` of `models.BertModel4Pretrain`.

    >>> google_name("transformer.blocks.3.attn.proj_q.weight")
    'bert/encoder/layer_3/attention/self/query/kernel'
    """
    name = hugging_face_name(key)
    for pattern, replacement in GOOGLE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _garden_names(graph: bytes, prefix: str | os.PathLike[str]) -> dict[str, str]:
    """Return Google's name -> the file's name, for each variable of BERT in an object graph."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    try:
        nodes = TrackableObjectGraph.FromString(graph).nodes
    except DecodeError as error:
        raise UserError(f"{prefix} is damaged: its object graph cannot be read") from error
    names: dict[str, str] = {}
    for attribute in (attribute for node in nodes for attribute in node.attributes):
        key = attribute.checkpoint_key.removesuffix(VALUE)
        if SLOT.search(key):
            continue
        for pattern, replacement in GARDEN_NAMES:
            if found := re.fullmatch(f"(?:.*/)?{pattern}", attribute.full_name):
                name = found.expand(replacement)
                if names.setdefault(name, key) != key:
                    raise UserError(
                        f"{prefix} holds more than one BERT: {names[name]} and {key} are both "
                        f"called {found[0]}"
                    )
    for part in ("kernel", "bias"):
        own = names.pop(f"cls/seq_relationship/pooler/{part}", None)
        if own is not None:
            names[f"bert/pooler/dense/{part}"] = own
    return names


def _is_kernel(key: str, graph: bool) -> bool:
    """Whether a checkpoint stores the weight as (inputs, outputs), transposed to PyTorch's."""
    return google_name(key).endswith("/kernel") or (graph and key == "classifier.weight")


def _stored(key: str, shape: Shape, n_heads: int, graph: bool) -> Shape:
    """Return the shape of the weight ``key`` in a checkpoint; ``shape`` is its shape here."""
    if graph and ".attn.proj_" in key:  # (D, H, W), (H, W)
        return (*shape[1:], n_heads, shape[0] // n_heads)
    if graph and re.search(r"\.\d+\.proj\.weight$", key):  # (H, W, D)
        return (n_heads, shape[1] // n_heads, shape[0])
    return shape[::-1] if _is_kernel(key, graph) else shape


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages about CPU features and GPUs
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            "reading a TensorFlow checkpoint needs TensorFlow; install it with "
            "`pip install tensorflow-cpu`, or `pip install tensorflow` if that is not available"
        ) from error
    return tensorflow
