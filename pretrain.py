"""Pre-train BERT: sample pairs of segments, mask tokens, train, evaluate, predict.

Every batch is a function of (seed, step) alone: nothing has to be shuffled, stored or sent
between processes, and any step can be drawn again.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

import checkpoint
import models
import train
import utils
from corpus.ids import Corpus, read_corpus
from corpus.split import split_corpus, split_test
from models import BertModel4Pretrain
from optim import optim4GPU
from terminal.command_line import command_line
from tokenization import CorpusTokenizer
from utils import UserError

EVAL_SEED = 0  # of the batches, which are the same for every model
EVAL_EXAMPLES = 64  # per batch
EVAL_BATCHES = 64  # at most
BUCKET = 64  # least number of places whose second segments can stand for each other
CANDIDATES = 4  # drawn per negative, to find one that differs from the true continuation
COMPARED = 16  # tokens that tell a negative from the true continuation

Share = Annotated[float, Field(gt=0, lt=1)]
Length = Annotated[int, Field(ge=5)]


class SentPairSampler:
    """Draw pairs of segments: A, and what follows it or what follows something else.

    A *boundary* is the start of a sentence that is not its document's first. A ends at a boundary
    and B starts at one: at the same for a true continuation, else at one of another document.
    Together they have ``max_len - 3`` tokens, split at random; where a document ends too early,
    the other side takes the rest.

    Nothing but the text must tell a true continuation. So boundaries that have about the same
    number of tokens after them form a bucket, in which all have the same number by cutting (all
    that have enough are one bucket), and a negative's B comes from the bucket of the true one:
    lengths, B's place in its document and what is cut off after it are distributed alike.

    Parameters
    ----------
    corpus : Corpus
    chosen : bool (documents,)
        Where to draw from; at least two documents that have boundaries.
    max_len : int
        Of a pair with its three special tokens.
    """

    def __init__(self, corpus: Corpus, chosen: np.ndarray, max_len: int) -> None:
        self.corpus = corpus
        self.budget = max_len - 3
        first = corpus.documents[:-1]
        document = np.repeat(np.arange(len(first)), np.diff(corpus.documents))  # of each sentence
        inner = chosen[document]
        inner[first] = False
        document, start = document[inner], corpus.sentences[:-1][inner]
        bounds = corpus.bounds
        after = np.minimum(bounds[document + 1] - start, self.budget)
        before = np.minimum(start - bounds[document], self.budget)
        bucket, after = _buckets(after, document)
        part = np.empty_like(bucket)
        for number in range(bucket.max() + 1):
            rows = bucket == number
            part[rows], _ = _buckets(before[rows], document[rows])
        bucket = np.unique(bucket * len(bucket) + part, return_inverse=True)[1]
        order = np.lexsort((document, bucket))
        self.document, self.start = document[order], start[order]
        self.before = before[order]
        self.after = after[order]
        self.bucket = bucket[order]
        # Sorted by bucket and document, so that a bucket's part of a document, or of a pair (whose
        # documents follow each other), is one range.
        self.n_documents = len(first)
        self.key = self.bucket * self.n_documents + self.document
        self.pair = np.searchsorted(corpus.pairs, self.document, side="right") - 1

    def __len__(self) -> int:
        return len(self.start)

    def draw(self, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw ``n`` pairs.

        Returns
        -------
        dict of (n,) arrays
            ``a_start``, ``a_len``, ``b_start``, ``b_len`` : int64, ranges of ``corpus.tokens``.
            ``is_next`` : int64, 1 for a true continuation, else 0.
            ``is_hard`` : bool, B is of another document of the same pair of binaries.
        """
        i = rng.integers(len(self), size=n)
        a, b = self._lengths(i, rng)
        is_next = rng.random(n) < 0.5
        j = np.where(is_next, i, self._others(i, rng.random(n) < 0.5, b, rng))
        return {
            "a_start": self.start[i] - a,
            "a_len": a,
            "b_start": self.start[j],
            "b_len": b,
            "is_next": is_next.astype(np.int64),
            "is_hard": ~is_next & (self.pair[i] == self.pair[j]),
        }

    def _lengths(self, i: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        before, after = self.before[i], self.after[i]
        wish = rng.integers(1, self.budget, size=len(i))
        a = np.minimum(wish, before)
        b = np.minimum(self.budget - a, after)
        return np.minimum(self.budget - b, before), b

    def _others(
        self, i: np.ndarray, hard: np.ndarray, b: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw boundaries of other documents from the buckets of ``i``, of the same pair if hard.

        Where the pair's part of a bucket has no other document, the whole bucket is taken. Of a few
        candidates the first is taken that does not read like the true continuation.
        """
        base = self.bucket[i] * self.n_documents
        own = np.searchsorted(self.key, [self.key[i], self.key[i] + 1])  # (2, n) from, to
        pair = np.searchsorted(self.key, base + self.corpus.pairs[[self.pair[i], self.pair[i] + 1]])
        whole = np.searchsorted(self.key, [base, base + self.n_documents])
        own_size = own[1] - own[0]
        alone = pair[1] - pair[0] == own_size
        low, high = np.where(hard & ~alone, pair, whole)
        room = high - low - own_size  # a bucket has two documents or more, so there is room
        found = low + (rng.random((CANDIDATES, len(i))) * room).astype(np.int64)  # (C, n)
        found += np.where(found >= own[0], own_size, 0)
        offset = np.arange(COMPARED)
        compared = offset < b[:, None]  # (n, T)
        last = len(self.corpus.tokens) - 1
        there = self.corpus.tokens[np.minimum(self.start[found][..., None] + offset, last)]
        true = self.corpus.tokens[np.minimum(self.start[i][:, None] + offset, last)]
        differs = ((there != true) & compared).any(2)  # (C, n)
        return found[differs.argmax(0), np.arange(len(i))]


def _buckets(after: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the boundaries' buckets, and cut ``after`` to the least of each bucket.

    From the largest ``after`` down, a bucket is closed when it holds two documents and `BUCKET`
    boundaries; what is left at the end joins the last one.
    """
    order = np.argsort(-after, kind="stable")
    _, first = np.unique(-after[order], return_index=True)
    ends = [*first[1:].tolist(), len(order)]
    starts = [0]
    for end in ends[:-1]:
        inside = document[order[starts[-1] : end]]
        if len(inside) >= BUCKET and inside.min() != inside.max():
            starts.append(end)
    rest = document[order[starts[-1] :]]
    if len(starts) > 1 and (len(rest) < BUCKET or rest.min() == rest.max()):
        starts.pop()
    number = np.zeros(len(order), np.int64)
    number[starts[1:]] = 1
    bucket = np.empty_like(number)
    bucket[order] = number.cumsum()
    least = np.minimum.reduceat(after[order], starts)
    return bucket, least[bucket]


class Preprocess4Pretrain:
    """Turn pairs of segments into [CLS] A [SEP] B [SEP] with masked tokens to predict.

    Parameters
    ----------
    vocab : dict of str to int
    max_len, max_pred : int
        Length of every sequence, and most masked tokens in one.
    mask_prob : float
        Share of the tokens of A and B that are to be predicted, at least one. Of these 80 % become
        [MASK], 10 % a random token, and 10 % stay. Special tokens are never chosen, never drawn.
    """

    def __init__(self, vocab: dict[str, int], max_len: int, max_pred: int, mask_prob: float):
        self.max_len, self.max_pred, self.mask_prob = max_len, max_pred, mask_prob
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        self.pad, _, self.cls, self.sep, self.mask = special = [vocab[name] for name in names]
        self.is_special = np.zeros(len(vocab), bool)
        self.is_special[special] = True
        self.ordinary = np.flatnonzero(~self.is_special)

    def __call__(
        self, tokens: np.ndarray, pairs: dict[str, np.ndarray], key: list[int], rows: slice
    ) -> train.Batch:
        """Read some rows of a batch of B pairs from ``tokens`` and mask them.

        Parameters
        ----------
        tokens : integers (tokens,)
        pairs : dict of (B,) arrays
            From `SentPairSampler.draw`.
        key : list of int
            Seed of the batch. What is masked in a row depends on nothing but this and the row, so
            that processes that share a batch need no other's rows.
        rows : slice
            N of the B rows.

        Returns
        -------
        dict of arrays
            ``input_ids``, ``segment_ids`` : int64 (N, S). ``input_mask`` : int64 (N, S), 1 for
            tokens and 0 for padding; left out where nothing is padded.
            ``masked_pos``, ``masked_ids`` : int64 (N, P), positions and true tokens, 0 where there
            are less than P. ``masked_weights`` : float32 (N, P), 1 / (tokens to mask in the whole
            batch), or 0. ``is_next`` : int64 (N,). ``is_next_weights`` : float32 (N,), 1 / B.
            ``is_hard`` : bool (N,).
        """
        length = pairs["a_len"] + pairs["b_len"]  # (B,)
        n_pred = np.maximum(np.rint(length * self.mask_prob).astype(np.int64), 1)
        n_pred = np.minimum(n_pred, np.minimum(length, self.max_pred))
        start, end, _ = rows.indices(len(length))
        draws = self.draws(key, start, end)
        some = {name: array[rows] for name, array in pairs.items()}

        a, b = some["a_len"][:, None], some["b_len"][:, None]
        at = np.arange(self.max_len)[None, :]
        in_a, in_b = (at >= 1) & (at <= a), (at >= a + 2) & (at <= a + b + 1)
        where = np.where(in_a, some["a_start"][:, None] + at - 1, 0)
        where = np.where(in_b, some["b_start"][:, None] + at - a - 2, where)
        ids = tokens[where].astype(np.int64)
        ids[~(in_a | in_b)] = self.pad
        ids[:, 0] = self.cls
        ids[(at == a + 1) | (at == a + b + 2)] = self.sep

        masked = self.masked(ids, in_a | in_b, n_pred[rows], draws)
        batch = {
            "segment_ids": ((at >= a + 2) & (at <= a + b + 2)).astype(np.int64),
            **masked,
            "masked_weights": masked["masked_weights"] / np.float32(max(1, n_pred.sum())),
            "is_next": some["is_next"],
            "is_next_weights": np.full(len(a), 1 / len(length), np.float32),
            "is_hard": some["is_hard"],
        }
        if (a + b + 3 < self.max_len).any():
            batch["input_mask"] = (at < a + b + 3).astype(np.int64)
        return batch

    @property
    def width(self) -> int:
        """Most masked tokens of an example."""
        return min(self.max_pred, self.max_len)

    def draws(self, key: list[int], start: int, end: int) -> np.ndarray:
        """Return the random numbers in [0, 1) of rows ``start`` to ``end``: (rows, S + 2 P)."""
        each = self.max_len + 2 * self.width
        generator = np.random.PCG64(key)
        generator.advance(start * each)  # a number is one step of this generator
        return np.random.Generator(generator).random((end - start, each))

    def masked(
        self, ids: np.ndarray, may: np.ndarray, n_pred: np.ndarray, draws: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Mask ``n_pred`` (N,) tokens in each row of ``ids`` (N, S), where ``may`` (N, S) says so.

        Where less may be masked, less are. ``masked_weights`` are 1 for masked tokens, else 0.
        """
        may = may & ~self.is_special[ids]
        n_pred = np.minimum(n_pred, may.sum(1))[:, None]  # (N, 1)
        order, chance, which = np.split(draws, [self.max_len, self.max_len + self.width], axis=1)
        rank = np.argsort(np.where(may, order, 2.0), axis=1)[:, : self.width]
        chosen = np.arange(self.width) < n_pred  # (N, P)
        position = np.where(chosen, rank, 0)
        true = np.where(chosen, np.take_along_axis(ids, position, 1), 0)

        drawn = self.ordinary[(which * len(self.ordinary)).astype(np.int64)]
        new = np.where(chance < 0.8, self.mask, np.where(chance < 0.9, drawn, true))
        ids = ids.copy()
        row, column = np.nonzero(chosen)
        ids[row, position[row, column]] = new[row, column]
        return {
            "input_ids": ids,
            "masked_pos": position,
            "masked_ids": true,
            "masked_weights": chosen.astype(np.float32),
        }


class SentPairDataLoader:
    """Batches for pre-training; ``loader.batch(k)`` is a function of the seed and k.

    An epoch is as many batches as hold the tokens of the chosen documents once; boundaries are
    drawn evenly and with replacement.

    Parameters
    ----------
    sampler : SentPairSampler
    preprocess : Preprocess4Pretrain
    n_tokens : int
        Of an epoch.
    batch_size, seed : int
    """

    def __init__(
        self,
        sampler: SentPairSampler,
        preprocess: Preprocess4Pretrain,
        n_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.sampler, self.preprocess = sampler, preprocess
        self.n_tokens, self.batch_size, self.seed = n_tokens, batch_size, seed

    def __len__(self) -> int:
        return max(1, -(-self.n_tokens // (self.batch_size * self.sampler.budget)))

    def __iter__(self) -> Iterator[train.Batch]:
        return map(self.batch, range(len(self)))

    def batch(self, k: int, rank: int = 0, world: int = 1) -> train.Batch:
        """Return the k-th batch, or one process's share of its rows; k may pass the epoch's end.

        Arrays: see `Preprocess4Pretrain`. Of the text, only these rows are read.
        """
        pairs = self.sampler.draw(self.batch_size, np.random.default_rng([self.seed, k]))
        rows = train.share(self.batch_size, rank, world)
        return self.preprocess(self.sampler.corpus.tokens, pairs, [self.seed, k, 1], rows)


def get_losses(model: nn.Module, batch: dict[str, Tensor]) -> train.Losses:
    """Return the cross-entropies per masked token and per pair (nats), as `Trainer` wants them."""
    logits_lm, logits_clsf = (logits.float() for logits in _forward(model, batch))
    lm = F.cross_entropy(logits_lm.flatten(0, 1), batch["masked_ids"].flatten(), reduction="none")
    clsf = F.cross_entropy(logits_clsf, batch["is_next"], reduction="none")
    return {
        "masked_lm_loss": (lm * batch["masked_weights"].flatten()).sum(),
        "next_loss": (clsf * batch["is_next_weights"]).sum(),
    }


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(
        batch["input_ids"], batch["segment_ids"], batch.get("input_mask"), batch["masked_pos"]
    )


class Evaluation:
    """Measures of a model on held-out documents: the same batches for every model.

    Parameters
    ----------
    corpus : Corpus
    heldout : bool (documents,)
    preprocess : Preprocess4Pretrain
    device : torch.device
        Of the model.
    """

    def __init__(
        self,
        corpus: Corpus,
        heldout: np.ndarray,
        preprocess: Preprocess4Pretrain,
        device: torch.device,
    ) -> None:
        counts = corpus.count_tokens(heldout, len(preprocess.is_special))
        share = counts[counts > 0] / counts.sum()
        self.unigram_entropy = float(-(share * np.log(share)).sum())
        self.commonest = float(share.max())
        sampler = SentPairSampler(corpus, heldout, preprocess.max_len)
        n_tokens = int(counts.sum())
        self.loader = SentPairDataLoader(sampler, preprocess, n_tokens, EVAL_EXAMPLES, EVAL_SEED)
        self.device = device

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Evaluate ``model``, which is in evaluation mode.

        Returns
        -------
        dict of str to float
            ``masked_lm_loss`` (nats per masked token), ``masked_lm_accuracy``, ``next_loss`` (nats
            per pair), ``next_accuracy``; ``next_accuracy_hard``: the mean of the accuracies on true
            continuations and on hard negatives, so that chance is 0.5. To compare with:
            ``unigram_entropy`` of the held-out text (nats), and ``commonest_token``, the accuracy
            of always saying its commonest token. ``max_len``: tokens of an example.
        """
        rows = []
        for k in range(min(EVAL_BATCHES, len(self.loader))):
            arrays = self.loader.batch(k)
            batch = {name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()}
            logits_lm, logits_clsf = _forward(model, batch)
            masked = batch["masked_weights"] > 0  # (B, P)
            logits_lm, true = logits_lm[masked], batch["masked_ids"][masked]
            is_next, is_hard = batch["is_next"], batch["is_hard"]
            right = logits_clsf.argmax(1) == is_next
            sums = [
                F.cross_entropy(logits_lm, true, reduction="sum"),
                (logits_lm.argmax(1) == true).sum(),
                masked.sum(),
                F.cross_entropy(logits_clsf, is_next, reduction="sum"),
                right.sum(),
                torch.tensor(len(right)),
                (right & (is_next == 1)).sum(),
                (is_next == 1).sum(),
                (right & is_hard).sum(),
                is_hard.sum(),
            ]
            rows.append(torch.stack([number.double().cpu() for number in sums]))
        lm, lm_right, n_masked, clsf, right, n, next_right, n_next, hard_right, n_hard = (
            torch.stack(rows).sum(0).tolist()
        )
        return {
            "masked_lm_loss": lm / max(n_masked, 1),
            "masked_lm_accuracy": lm_right / max(n_masked, 1),
            "next_loss": clsf / n,
            "next_accuracy": right / n,
            "next_accuracy_hard": (next_right / max(n_next, 1) + hard_right / max(n_hard, 1)) / 2,
            "unigram_entropy": self.unigram_entropy,
            "commonest_token": self.commonest,
            "max_len": self.loader.preprocess.max_len,
        }


def report(measures: dict[str, float], rule: str, check: bool) -> None:
    """Print an evaluation for people; if ``check``, raise UserError where nothing was learned."""
    percent = {name: f"{100 * value:.1f} %" for name, value in measures.items()}
    print(
        f"held out {rule}\n"
        f"  masked tokens: loss {measures['masked_lm_loss']:.3f} nats "
        f"(unigram entropy {measures['unigram_entropy']:.3f}), "
        f"accuracy {percent['masked_lm_accuracy']} (commonest token {percent['commonest_token']})\n"
        f"  next sentence: accuracy {percent['next_accuracy']}, "
        f"against hard negatives {percent['next_accuracy_hard']} (chance 50 %)"
    )
    if check and not measures["masked_lm_loss"] < measures["unigram_entropy"]:
        raise UserError(
            "the model has not learned: its held-out masked-LM loss "
            f"{measures['masked_lm_loss']:.3f} is not below the unigram entropy "
            f"{measures['unigram_entropy']:.3f} of that text; train longer, or on more text"
        )


def main(
    train_cfg: str = "config/pretrain.json",
    model_cfg: str = "config/bert_small.json",
    data_file: str = "data/corpus.txt",
    vocab: str = "vocab/vocab.txt",
    save_dir: str = "out",
    log_dir: str | None = None,
    max_len: Length = 64,
    max_pred: PositiveInt = 16,
    mask_prob: Share = 0.25,
    pretrain_file: str | None = None,
    model_file: str | None = None,
    data_parallel: bool = True,
    precision: train.Precision | None = None,
    compile: bool | None = None,
    resume: bool = True,
    overwrite: bool = False,
    check: bool = False,
) -> None:
    """Pre-train a BERT on a corpus; `eval` and `predict` as first argument use a trained one.

    Parameters
    ----------
    train_cfg : str
        JSON with the training's settings.
    model_cfg : str
        JSON with the model's sizes.
    data_file : str
        The corpus: a sentence per line, a blank line after each document.
    vocab : str
        The vocabulary: a token per line.
    save_dir : str
        Gets model_steps_<k>.pt, model.json, vocab.txt, metrics.json, last.pt and runs/.
    log_dir : str
        Gets TensorBoard's files, instead of runs/ in save_dir.
    max_len : int
        Most tokens per example, special ones included.
    max_pred : int
        Most masked tokens of an example of max_len; of a shorter one in proportion.
    mask_prob : float
        Share of the tokens to mask.
    pretrain_file : str
        A model_steps_<k>.pt of the same sizes and vocabulary to start from.
    model_file : str
        Another name of pretrain_file.
    data_parallel : bool
        All GPUs are used under torchrun, as train.sh starts it; False makes sure that one is.
    precision : {"float32", "bfloat16", "float16"}
        float32, bfloat16, or float16 (for GPUs without bfloat16). Left out, bfloat16 where the
        device is quick at it.
    compile : bool
        Let torch.compile make kernels for the model. Left out, on GPUs only.
    resume : bool
        Go on with the training that save_dir holds, if it is this one; False starts anew.
    overwrite : bool
        Delete another training that save_dir holds; left out, it moves to <save_dir>-before-<date>.
    check : bool
        Fail unless the held-out loss ends below the unigram entropy of the held-out text.
    """
    utils.check_outputs({}, (), {"save_dir": save_dir, "log_dir": log_dir})
    train.check_parallel(data_parallel)
    if model_file is not None and pretrain_file not in (None, model_file):
        raise UserError("--model_file and --pretrain_file are one setting; give one of them")
    pretrain_file = pretrain_file or model_file
    cfg = train.Config.from_json(train_cfg)
    tokenizer = CorpusTokenizer(vocab)
    sizes = models.Config.from_json(model_cfg)
    sizes = sizes.with_vocab_size(len(tokenizer.vocab), model_cfg, vocab)
    if max_len > sizes.max_len:
        raise UserError(
            f"max_len {max_len} is larger than the max_len {sizes.max_len} of {model_cfg}"
        )
    device = utils.get_device()
    precision = precision or train.best_precision(device)
    compile = device.type == "cuda" if compile is None else compile
    rank, world = train.start_processes(device)
    vocab_sha256 = utils.sha256_of(vocab)
    if rank == 0:
        utils.remove_leftovers(save_dir, Path(data_file).parent)
        corpus = read_corpus(Path(data_file), tokenizer, vocab_sha256)
    if world > 1:
        dist.barrier()  # the others wait for the ids
    if rank != 0:
        corpus = read_corpus(Path(data_file), tokenizer, vocab_sha256, may_write=False)

    split = split_corpus(corpus)
    n_tokens = int(np.diff(corpus.bounds)[split.training].sum())
    preprocess = Preprocess4Pretrain(tokenizer.vocab, max_len, max_pred, mask_prob)
    sampler = SentPairSampler(corpus, split.training, max_len)
    loader = SentPairDataLoader(sampler, preprocess, n_tokens, cfg.batch_size, cfg.seed)
    cfg = cfg.with_epochs(len(loader))

    info = checkpoint.ModelInfo(
        model=sizes,
        tokenizer=tokenizer.name,
        vocab_sha256=vocab_sha256,
        data_file=data_file,
        corpus_sha256=corpus.sha256,
        max_len=max_len,
        max_pred=max_pred,
        mask_prob=mask_prob,
    )
    settings = train.settings_of(cfg, info, precision)
    utils.set_seed(cfg.seed)
    model = BertModel4Pretrain(sizes)
    if pretrain_file is not None:
        checkpoint.load_model_file(model, pretrain_file)
        settings["pretrain_sha256"] = utils.sha256_of(pretrain_file)
    trainer = train.Trainer(
        cfg,
        model,
        optim4GPU(cfg, model),
        loader.batch,
        get_losses,
        Evaluation(corpus, split.heldout, preprocess, device),
        save_dir,
        device,
        settings,
        precision,
        compile,
        log_dir,
    )
    what = (
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{split.training.sum():,} documents with {n_tokens:,} tokens"
    )
    # Of several processes, the first one writes.
    with utils.one_writer(*([save_dir] if rank == 0 else [])):
        measures = trainer.run(info, Path(vocab).read_bytes(), resume, overwrite, what)
        if rank == 0:
            model_file = Path(save_dir, f"model_steps_{cfg.total_steps}.pt")
            utils.write_json(
                Path(save_dir, "metrics.json"),
                {"model_file": str(model_file), "heldout": split.rule, **measures},
            )
            print(f"model {model_file}")
            report(measures, split.rule, check)


def evaluate(
    model_file: str, data_file: str | None = None, test: bool = False, check: bool = False
) -> None:
    """Print what a saved model makes of held-out text.

    Parameters
    ----------
    model_file : str
        A model_steps_<k>.pt, with model.json and vocab.txt beside it.
    data_file : str
        The corpus; left out, the one of the training. Of another corpus than that of the training,
        every document is used.
    test : bool
        Use the programs that gendata.py left for a last test, not those for validation.
    check : bool
        Fail unless the loss is below the unigram entropy of the held-out text.
    """
    device = utils.get_device()
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    corpus = read_corpus(Path(data_file or info.data_file), tokenizer, info.vocab_sha256)
    if test:
        heldout, rule = split_test(corpus)
    elif corpus.sha256 == info.corpus_sha256:
        split = split_corpus(corpus)
        heldout, rule = split.heldout, split.rule
    else:
        heldout = np.ones(len(corpus.documents) - 1, bool)
        rule = "nothing: this is not the corpus of the training, so every document is used"
    preprocess = Preprocess4Pretrain(tokenizer.vocab, info.max_len, info.max_pred, info.mask_prob)
    evaluation = Evaluation(corpus, heldout, preprocess, device)
    report(evaluation(model.to(device)), rule, check)


def predict(model_file: str, line: str, top: PositiveInt = 5) -> None:
    """Print the likeliest tokens for each [MASK] of a line.

    Parameters
    ----------
    model_file : str
        A model_steps_<k>.pt, with model.json and vocab.txt beside it.
    line : str
        Tokens as in the corpus, separated by blanks, some of them [MASK].
    top : int
        How many tokens to print for each.
    """
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", *tokenizer.tokenize(line), "[SEP]"])
    if len(ids) > info.max_len:
        raise UserError(
            f"the line has {len(ids) - 2} tokens, but {model_file} reads at most "
            f"{info.max_len - 2}; shorten it"
        )
    input_ids = torch.tensor([ids])  # (1, S)
    masked_pos = (input_ids == tokenizer.vocab["[MASK]"]).nonzero()[:, 1]  # (P,)
    if not len(masked_pos):
        raise UserError("the line has no [MASK]; write [MASK] where the model is to fill in")
    with torch.inference_mode():
        logits_lm, _ = model(input_ids, torch.zeros_like(input_ids), None, masked_pos[None])
    shares, fills = logits_lm[0].softmax(-1).topk(min(top, len(tokenizer.vocab)))  # (P, top)
    for number, (share, fill) in enumerate(zip(shares.tolist(), fills.tolist(), strict=True), 1):
        tokens = tokenizer.convert_ids_to_tokens(fill)
        text = ", ".join(f"{t} {100 * p:.1f} %" for t, p in zip(tokens, share, strict=True))
        print(f"[MASK] {number}: {text}")


if __name__ == "__main__":
    command_line(main, eval=evaluate, predict=predict)
