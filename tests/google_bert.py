"""A tiny BERT in the format of Google's programs, and the same one in Hugging Face's."""

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_bert

# All sizes differ, so that no weight fits in a wrong place.
VOCAB, POSITIONS = 53, 30
CFG = tiny_bert(VOCAB, max_len=POSITIONS)
D, LAYERS, FF, HEADS = CFG.dim, CFG.n_layers, CFG.dim_ff, CFG.n_heads
CONFIG = {  # bert_config.json, as Google writes it
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": D,
    "initializer_range": 0.02,
    "intermediate_size": FF,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "type_vocab_size": 2,
    "vocab_size": VOCAB,
}


def google_variables() -> dict[str, np.ndarray]:
    """Return random values for all variables of Google's run_pretraining.py, by name."""
    shapes = {
        "bert/embeddings/word_embeddings": (VOCAB, D),
        "bert/embeddings/position_embeddings": (POSITIONS, D),
        "bert/embeddings/token_type_embeddings": (2, D),
        "cls/predictions/output_bias": (VOCAB,),
        "cls/seq_relationship/output_weights": (2, D),
        "cls/seq_relationship/output_bias": (2,),
    }
    dense = {"bert/pooler/dense": (D, D), "cls/predictions/transform/dense": (D, D)}
    norms = ["bert/embeddings/LayerNorm", "cls/predictions/transform/LayerNorm"]
    for i in range(LAYERS):
        layer = f"bert/encoder/layer_{i}"
        for name in ("self/query", "self/key", "self/value", "output/dense"):
            dense[f"{layer}/attention/{name}"] = (D, D)
        dense[f"{layer}/intermediate/dense"] = (D, FF)
        dense[f"{layer}/output/dense"] = (FF, D)
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    for name in norms:
        shapes |= {f"{name}/gamma": (D,), f"{name}/beta": (D,)}
    rng = np.random.default_rng(0)
    values = {
        name: (rng.normal(0, 0.3, shape) + name.endswith("gamma")).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in shapes:
        values[f"{name}/adam_m"] = values[f"{name}/adam_v"] = np.zeros(shapes[name], np.float32)
    return values | {"global_step": np.array(1000, np.int64)}


def write_tensorflow(path, variables) -> str:
    """Write a checkpoint of TensorFlow 1, name -> value."""
    tf = pytest.importorskip("tensorflow")
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(variables[name]) for name in names],
    )
    return str(path)


# The layouts of three generations of the model garden's programs: the place of each layer in the
# object graph, and the names of its variables. They are taken from checkpoints written by the
# garden's own code (tf-models-official 2.20), the one of 2019 from its converter of old names.
FUNCTIONAL = {
    "word": ("encoder/layer_with_weights-0", "word_embeddings"),
    "position": ("encoder/layer_with_weights-1", "position_embedding"),
    "type": ("encoder/layer_with_weights-2", "type_embeddings"),
    "norm": ("encoder/layer_with_weights-3", "embeddings/layer_norm"),
    "layer": ("encoder/layer_with_weights-{4}", "transformer/layer_{0}"),
    "attention_output": "self_attention/attention_output",
    "pooler": ("encoder/layer_with_weights-6", "pooler_transform"),
}
ATTRIBUTES = {
    "word": ("encoder/_embedding_layer", "bert_encoder_v2/word_embeddings"),
    "position": ("encoder/_position_embedding_layer", "bert_encoder_v2/position_embedding"),
    "type": ("encoder/_type_embedding_layer", "bert_encoder_v2/type_embeddings"),
    "norm": ("encoder/_embedding_norm_layer", "bert_encoder_v2/embeddings/layer_norm"),
    "layer": ("encoder/_transformer_layers/{0}", "bert_encoder_v2/transformer/layer_{0}"),
    "attention_output": "self_attention/attention_output",
    "pooler": ("encoder/_pooler_layer", "bert_encoder_v2/pooler_transform"),
}
OF_2019 = {
    "word": ("model/layer-1", "bert_model/word_embeddings"),
    "position": ("model/layer-2", "bert_model/embedding_postprocessor"),
    "type": ("model/layer-2", "bert_model/embedding_postprocessor"),
    "norm": ("model/layer-2/output_layer_norm", "bert_model/embedding_postprocessor/layer_norm"),
    "layer": ("model/layer-3/layers/{0}", "bert_model/encoder/layer_{0}"),
    "attention_output": "self_attention_output",
    "pooler": ("model/layer-4", "bert_model/pooler_transform"),
}


def garden_variables(style) -> dict[str, tuple[str, np.ndarray]]:
    """Return the encoder of `google_variables`: place in the graph -> own name, value."""
    values, made = google_variables(), {}

    def put(layer, variable, value, i=0):
        place, name = (text.format(*range(i, i + 5)) for text in layer)
        made[f"{place}/{variable}"] = f"{name}/{variable}", value

    for what, source in (
        ("word", "word_embeddings"),
        ("position", "position_embeddings"),
        ("type", "token_type_embeddings"),
    ):
        variable = "embeddings"
        if style is OF_2019 and what != "word":
            variable = f"{what}_embeddings"
        put(style[what], variable, values[f"bert/embeddings/{source}"])
    for part in ("gamma", "beta"):
        put(style["norm"], part, values[f"bert/embeddings/LayerNorm/{part}"])
    for part in ("kernel", "bias"):
        put(style["pooler"], part, values[f"bert/pooler/dense/{part}"])
    split = (HEADS, D // HEADS)
    place, name = style["layer"]
    for i in range(LAYERS):
        google = f"bert/encoder/layer_{i}"
        for which in ("query", "key", "value"):
            layer = f"{place}/_attention_layer/_{which}_dense", f"{name}/self_attention/{which}"
            kernel = values[f"{google}/attention/self/{which}/kernel"]
            put(layer, "kernel", kernel.reshape(D, *split), i)
            put(layer, "bias", values[f"{google}/attention/self/{which}/bias"].reshape(split), i)
        layer = f"{place}/_attention_layer/_output_dense", f"{name}/{style['attention_output']}"
        kernel = values[f"{google}/attention/output/dense/kernel"]
        put(layer, "kernel", kernel.reshape(*split, D), i)
        put(layer, "bias", values[f"{google}/attention/output/dense/bias"], i)
        for which in ("intermediate", "output"):
            for part in ("kernel", "bias"):
                layer = f"{place}/_{which}_dense", f"{name}/{which}"
                put(layer, part, values[f"{google}/{which}/dense/{part}"], i)
        for part in ("gamma", "beta"):
            layer = f"{place}/_attention_layer_norm", f"{name}/self_attention_layer_norm"
            put(layer, part, values[f"{google}/attention/output/LayerNorm/{part}"], i)
            layer = f"{place}/_output_layer_norm", f"{name}/output_layer_norm"
            put(layer, part, values[f"{google}/output/LayerNorm/{part}"], i)
    return made


def garden_heads() -> dict[str, tuple[str, np.ndarray]]:
    """Return the heads of BertPretrainerV2; the one for next sentence has its own pooler."""
    values, made = google_variables(), {}
    for place, name, google, parts in (
        ("masked_lm/dense", "transform/dense", "transform/dense", ("kernel", "bias")),
        ("masked_lm/layer_norm", "transform/LayerNorm", "transform/LayerNorm", ("gamma", "beta")),
    ):
        for part in parts:
            value = values[f"cls/predictions/{google}/{part}"]
            made[f"{place}/{part}"] = f"bert/cls/predictions/{name}/{part}", value
    bias = values["cls/predictions/output_bias"]
    made["masked_lm/output_bias.bias"] = "bert/cls/predictions/output_bias/bias", bias
    for part in ("kernel", "bias"):
        place = f"next_sentence.pooler_dense/{part}"
        made[place] = f"bert/next_sentence/pooler_dense/{part}", values[f"bert/pooler/dense/{part}"]
    place = "model/classification_heads/0/out_proj"
    kernel = values["cls/seq_relationship/output_weights"].T
    made[f"{place}/kernel"] = "bert/next_sentence/logits/kernel", kernel
    bias = values["cls/seq_relationship/output_bias"]
    made[f"{place}/bias"] = "bert/next_sentence/logits/bias", bias
    return made


def write_object_graph(path, variables, optimizer=None) -> str:
    """Write a checkpoint of TensorFlow 2: place in the graph -> own name, value.

    With one of TensorFlow's optimizers, first take a step with gradients of 0.
    """
    tf = pytest.importorskip("tensorflow")
    root, leaves = tf.Module(), []
    for place, (name, value) in variables.items():
        *folders, last = place.split("/")
        node = root
        for folder in folders:
            if not hasattr(node, folder):
                setattr(node, folder, tf.Module())
            node = getattr(node, folder)
        leaves.append(tf.Variable(value, name=name))
        setattr(node, last, leaves[-1])
    more = {}
    if optimizer is not None:
        optimizer.apply_gradients([(tf.zeros_like(leaf), leaf) for leaf in leaves])
        more["optimizer"] = optimizer
    children = {name: child for name, child in vars(root).items() if isinstance(child, tf.Module)}
    return tf.train.Checkpoint(**children, **more).save(str(path))


def hugging_face_twin() -> transformers.BertForPreTraining:
    """Return Hugging Face's model with the values of `google_variables`, copied by hand."""
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=FF,
            max_position_embeddings=POSITIONS,
        )
    )
    values = {name: torch.from_numpy(v) for name, v in google_variables().items() if v.ndim}
    filled = 0

    def fill(parameter, value):
        nonlocal filled
        assert parameter.shape == value.shape
        parameter.data.copy_(value)
        filled += 1

    def dense(module, scope):
        fill(module.weight, values[f"{scope}/kernel"].T)
        fill(module.bias, values[f"{scope}/bias"])

    def norm(module, scope):
        fill(module.weight, values[f"{scope}/gamma"])
        fill(module.bias, values[f"{scope}/beta"])

    embeddings = theirs.bert.embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        fill(getattr(embeddings, name).weight, values[f"bert/embeddings/{name}"])
    norm(embeddings.LayerNorm, "bert/embeddings/LayerNorm")
    for i, layer in enumerate(theirs.bert.encoder.layer):
        scope = f"bert/encoder/layer_{i}"
        dense(layer.attention.self.query, f"{scope}/attention/self/query")
        dense(layer.attention.self.key, f"{scope}/attention/self/key")
        dense(layer.attention.self.value, f"{scope}/attention/self/value")
        dense(layer.attention.output.dense, f"{scope}/attention/output/dense")
        norm(layer.attention.output.LayerNorm, f"{scope}/attention/output/LayerNorm")
        dense(layer.intermediate.dense, f"{scope}/intermediate/dense")
        dense(layer.output.dense, f"{scope}/output/dense")
        norm(layer.output.LayerNorm, f"{scope}/output/LayerNorm")
    dense(theirs.bert.pooler.dense, "bert/pooler/dense")
    transform = theirs.cls.predictions.transform
    dense(transform.dense, "cls/predictions/transform/dense")
    norm(transform.LayerNorm, "cls/predictions/transform/LayerNorm")
    fill(theirs.cls.predictions.bias, values["cls/predictions/output_bias"])
    fill(theirs.cls.seq_relationship.weight, values["cls/seq_relationship/output_weights"])
    fill(theirs.cls.seq_relationship.bias, values["cls/seq_relationship/output_bias"])
    assert filled == len(list(theirs.parameters()))
    return theirs.eval()
