"""The fine-tuning tasks: which columns hold texts and labels, and which network learns them."""

from tqdm import tqdm

from tasks.comparer import Comparer, ComparisonData
from tasks.sentences import ClassificationData, Classifier
from tasks.tables import Examples, Task
from tokenization import CorpusTokenizer, FullTokenizer


class Mrpc(Task):
    """GLUE's MRPC: does the second sentence say the same as the first?"""

    labels = ("0", "1")
    label, text_a, text_b = "Quality", "#1 String", "#2 String"
    tokenizer = "bert"
    network = Classifier


class Mnli(Task):
    """GLUE's MNLI: does the second sentence follow from the first?"""

    labels = ("contradiction", "entailment", "neutral")
    label, text_a, text_b = "gold_label", "sentence1", "sentence2"
    tokenizer = "bert"
    network = Classifier


class Samefunc(Task):
    """samefunc.py's: are two functions of two builds of the same source?"""

    labels = ("different", "same")
    label, text_a, text_b = "label", "text_a", "text_b"
    tokenizer = "corpus"
    network = Comparer


TASKS: dict[str, type[Task]] = {"mrpc": Mrpc, "mnli": Mnli, "samefunc": Samefunc}


def read_ids(
    task: type[Task],
    examples: Examples,
    tokenizer: CorpusTokenizer | FullTokenizer,
    max_len: int,
) -> "ClassificationData | ComparisonData":
    """Return the examples as what the task's network reads."""
    if task.network is Comparer:
        pairs = zip(examples.text_a, examples.text_b, strict=True)
        rows = tqdm(pairs, "texts", len(examples.text_a), unit="row", disable=None)
        return ComparisonData(rows, examples.label, tokenizer, max_len)
    return ClassificationData(examples, tokenizer, max_len)
