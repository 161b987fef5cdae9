"""binary/tokens.py: tokens are made from an analysis, instruction by instruction."""

import itertools

import pytest
from conftest import BUILDS

from binary import tokens
from binary.tokens import tokenise
from tokenization import SPECIAL_TOKENS, CorpusTokenizer


@pytest.mark.parametrize("build", BUILDS)
def test_each_instruction_begins_with_its_mnemonic(analyses, build):
    analysis = analyses[build]
    made = tokenise(analysis)
    instructions = made.instructions()
    for text, inside in zip(
        analysis.instructions[: analysis.code_blocks], instructions, strict=False
    ):
        lines = text.decode().splitlines()
        assert len(inside) == len(lines)
        for line, words in zip(lines, inside, strict=True):
            assert line.replace(" ", "_").startswith(words[0])
    assert instructions[analysis.code_blocks :] == [[[name]] for name in analysis.import_name]
    assert [list(itertools.chain(*inside)) for inside in instructions] == made.words()
    assert made.dictionary == sorted(set(itertools.chain(*made.words())))
    assert made.is_last.sum() == len(analysis.instruction_form) + len(analysis.import_name)


def test_tokens_are_made_again_from_the_cached_analysis(analyses, monkeypatch):
    analysis = analyses["O1"]
    before = tokenise(analysis).words()
    monkeypatch.setattr(tokens, "string_words", lambda literal: [f"len{len(literal)}"])
    after = tokenise(analysis)
    changed = [b for b, words in enumerate(after.words()) if words != before[b]]
    assert set(changed) == set(analysis.string_block.tolist())
    lengths = {f"len{len(literal)}" for literal in analysis.string}
    assert lengths <= set(after.dictionary)
    assert "exhausted" not in after.dictionary


def test_the_token_level_bert_reads_tabs_as_blanks():
    vocab = [*SPECIAL_TOKENS, "mov", "reg8", "call", "##8", "r"]
    tokenizer = CorpusTokenizer({word: i for i, word in enumerate(vocab)})
    line = "mov reg8 reg8\tcall r8\tcall"
    assert tokenizer.encode(line).tolist() == tokenizer.encode(line.replace("\t", " ")).tolist()
    assert tokenizer.encode(line).tolist() == [5, 6, 6, 7, 9, 8, 7]
