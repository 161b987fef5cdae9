"""The fine-tuning tasks. To add one, write a class like these: see `tasks.task.Task`."""

from tasks.comparer import ComparisonTask
from tasks.sentences import SentenceTask


class Mrpc(SentenceTask):
    """GLUE's MRPC: does the second sentence say the same as the first?"""

    labels = ("0", "1")
    label, text_a, text_b = "Quality", "#1 String", "#2 String"
    tokenizer = "bert"


class Mnli(SentenceTask):
    """GLUE's MNLI: does the second sentence follow from the first?"""

    labels = ("contradiction", "entailment", "neutral")
    label, text_a, text_b = "gold_label", "sentence1", "sentence2"
    no_label = "-"  # the annotators did not agree
    tokenizer = "bert"


class Samefunc(ComparisonTask):
    """samefunc.py's: are two functions of two builds of the same source?"""

    labels = ("different", "same")
    label, text_a, text_b = "label", "text_a", "text_b"
    tokenizer = "corpus"
