"""Google BERT's tokenizer against the Rust library and a plain version; the corpus's tokenizer."""

import itertools
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

import tokenization
from tokenization import (
    SPECIAL_TOKENS,
    BasicTokenizer,
    CorpusTokenizer,
    FullTokenizer,
    WordpieceTokenizer,
    convert_ids_to_tokens,
    convert_tokens_to_ids,
    get_tokenizer,
    load_vocab,
    reading_of,
    whitespace_tokenize,
)
from utils import UserError

ROOT = Path(__file__).parent.parent

# Where the Rust library and Google's Python code differ, we follow Google. All the differences:
#
# 1. Rust drops private-use code points; Google keeps them (it drops only Cc and Cf). All 137,468 of
#    them are left out of the comparison.
# 2. Rust's list of Chinese characters lacks U+2B820 to U+2B91F.
# 3. Rust's categories are those of Unicode 8, and its lower case is newer than Python's. Only four
#    characters of Unicode 3.2 have changed since; they are listed here. Later ones may differ.
# 4. Rust lower-cases each letter by itself; Python handles the final sigma.
# 5. Rust's ready-made tokenizers look for special tokens such as [MASK] in the input first; Google
#    splits them like other text, into "[", "mask", "]".
RUST_CHINESE_GAP = range(0x2B820, 0x2B920)
CHANGED_SINCE_UNICODE_3 = {0x166D, 0x1734, 0x1885, 0x1886}

ASSIGNED = [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
UNASSIGNED = [c for c in range(0, 0x110000, 16) if unicodedata.category(chr(c)) == "Cn"]
CODE_POINTS = ASSIGNED + UNASSIGNED  # Rust has no surrogates (Cs)


def rust_basic(text, lower):
    normal = BertNormalizer(lowercase=lower).normalize_str(text)
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal)]


def plain_basic(text, lower):
    """Google's algorithm character by character, written from its description."""
    kept = []
    for char in text:
        kind = unicodedata.category(char)
        if char in ("\t", "\n", "\r") or kind == "Zs":
            kept.append(" ")
        elif kind not in ("Cc", "Cf") and char != "\ufffd":
            name = unicodedata.name(char, "")
            ideograph = name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"))
            # Extension F and what came later is not in Google's list.
            ideograph = ideograph and (char < "\U0002ceb0" or "\U0002f800" <= char < "\U00030000")
            kept.append(f" {char} " if ideograph else char)
    words = []
    for word in "".join(kept).split():
        if lower:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        current = ""
        for char in word + " ":
            if char == " " or char.isspace():
                words.append(current)
                current = ""
            elif char in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(char) in (
                "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
            ):  # fmt: skip
                words += [current, char]
                current = ""
            else:
                current += char
    return [word for word in words if word]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def rust_differences(request):
    """Code points that Rust reads differently between two letters."""
    lower, ours = request.param, BasicTokenizer(request.param)
    differ = []
    todo = [CODE_POINTS[i : i + 128] for i in range(0, len(CODE_POINTS), 128)]
    while todo:  # find them by bisection
        codes = todo.pop()
        text = " ".join(f"a{chr(c)}b" for c in codes)
        if ours.tokenize(text) != rust_basic(text, lower):
            half = len(codes) // 2
            todo += [codes[:half], codes[half:]] if half else []
            differ += [] if half else codes
    return lower, differ


def test_every_code_point_as_in_rust(rust_differences):
    _, differ = rust_differences
    unexplained = [
        code
        for code in differ
        if code not in RUST_CHINESE_GAP
        and code not in CHANGED_SINCE_UNICODE_3
        and unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"
    ]
    assert unexplained == []
    assert len(differ) < 1500  # of more than 40,000 characters that came after Unicode 3.2


def random_text(rng, alphabets):
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(0, 60)))


def alphabets_without(forbidden):
    """Return lists of characters to draw from: each category, and troublesome ones."""
    forbidden = set(forbidden) | {ord("Σ")}
    by_category = {}
    for code in CODE_POINTS:
        if code not in forbidden:
            by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    special = ["".join(chr(c) for c in span if c not in forbidden) for span in (
        range(0x20, 0x7F), range(0x20), range(0x80, 0x250), range(0x300, 0x370),
        range(0x370, 0x530), range(0x1E00, 0x2070), range(0x3000, 0x3100), range(0x4E00, 0x4F00),
        range(0xAC00, 0xAD00), range(0x1F300, 0x1F700), range(0xF900, 0xFB50),
    )]  # fmt: skip
    letters = ["abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJ", " ", " ", "\t\n\r\u2028\u3000\u00a0"]
    return [*by_category.values(), *special, *letters * 4]


def test_random_text_as_in_rust(rust_differences):
    lower, differ = rust_differences
    rng, ours, alphabets = random.Random(0), BasicTokenizer(lower), alphabets_without(differ)
    texts = [random_text(rng, alphabets) for _ in range(20_000)]
    assert sum(len(ours.tokenize(text)) > 3 for text in texts) > 10_000
    for text in texts:
        assert ours.tokenize(text) == rust_basic(text, lower), ascii(text)


@pytest.mark.parametrize("lower", [True, False])
def test_every_code_point_as_described(lower):
    ours = BasicTokenizer(lower)
    for start in range(0, len(ASSIGNED), 64):
        text = " ".join(f"a{chr(c)}b" for c in ASSIGNED[start : start + 64])
        assert ours.tokenize(text) == plain_basic(text, lower), hex(ASSIGNED[start])


@given(st.text(), st.booleans())
def test_any_text_as_described(text, lower):
    text = "".join(c for c in text if unicodedata.category(c) != "Cn")
    assert BasicTokenizer(lower).tokenize(text) == plain_basic(text, lower)


@given(st.text(st.characters()))  # surrogates too
def test_basic_tokens_are_never_empty_and_hold_no_blank(text):
    tokens = BasicTokenizer().tokenize(text)
    assert all(token and token.split() == [token] for token in tokens)
    assert BasicTokenizer().tokenize(" ".join(tokens)) == tokens  # nothing is left to do


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ΟΔΟΣ ΣΑΣ", ["οδος", "σας"]),  # the final sigma, difference 4
        ("\ue000x", ["\ue000x"]),  # private use, difference 1
        ("\U0002b820x", ["\U0002b820", "x"]),  # Chinese, difference 2
        ("[MASK]", ["[", "mask", "]"]),  # no special treatment, difference 5
        ("__ctype_b_loc", ["_", "_", "ctype", "_", "b", "_", "loc"]),
        (" \tHeLLo!how  \n Are yoU?  ", ["hello", "!", "how", "are", "you", "?"]),
        ("ah\u535a\u63a8zz", ["ah", "\u535a", "\u63a8", "zz"]),
        ("H\u00e9llo\u200b wo\u00adrld \ufffd\0", ["hello", "world"]),
        ("$5\u20ac", ["$", "5\u20ac"]),
        ("", []),
    ],
)
def test_where_rust_differs_we_follow_google(text, tokens):
    assert BasicTokenizer().tokenize(text) == tokens


def test_the_cased_tokenizer_keeps_case_and_accents():
    assert BasicTokenizer(do_lower_case=False).tokenize(" \tHéLLo!") == ["HéLLo", "!"]


def test_whitespace_of_all_kinds_divides_tokens():
    assert whitespace_tokenize("  a\u00a0b\t\u2028c \n") == ["a", "b", "c"]
    assert whitespace_tokenize(" \n") == []


# WordPiece


def random_vocab(rng, letters="abcé漢𐍈😀"):
    pieces = {"".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(60)}
    pieces |= {"##" + "".join(rng.choices(letters, k=rng.randint(1, 3))) for _ in range(60)}
    return {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(pieces)])}


def test_wordpiece_as_in_rust():
    rng = random.Random(1)
    unknown = cut = 0
    for _ in range(20):
        vocab = random_vocab(rng)
        ours, theirs = WordpieceTokenizer(vocab), WordPiece(vocab, unk_token="[UNK]")
        for _ in range(1000):
            length = rng.choice([1, 2, 3, 5, 8, 99, 100, 101, 300])
            word = "".join(rng.choices("aabbcé漢𐍈😀#", k=length))
            pieces = ours.tokenize(word)
            assert pieces == [token.value for token in theirs.tokenize(word)], word
            unknown += pieces == ["[UNK]"]
            cut += len(pieces) > 1
    assert unknown > 1000
    assert cut > 1000  # both outcomes occur


def test_wordpiece_gives_up_on_long_words():
    vocab = {"[UNK]": 0, "a": 1, "##a": 2}
    assert WordpieceTokenizer(vocab).tokenize("a" * 100) == ["a"] + ["##a"] * 99
    assert WordpieceTokenizer(vocab).tokenize("a" * 101) == ["[UNK]"]
    short = WordpieceTokenizer(vocab, unk_token="?", max_input_chars_per_word=2)
    assert short.tokenize("aa aaa ab") == ["a", "##a", "?", "?"]
    assert short.tokenize("") == []


# Both together


def write_vocab(path, tokens):
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


@pytest.fixture
def english(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyzàé漢!?.,[]_$"
    tokens = [*SPECIAL_TOKENS, "want", "##want", "##ed", "wa", "un", "runn", "##ing", "mask"]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    return write_vocab(tmp_path / "english.txt", tokens)


@pytest.mark.parametrize("lower", [True, False])
def test_full_tokenizer_as_in_rust(english, lower):
    ours = FullTokenizer(english, do_lower_case=lower)
    theirs = BertWordPieceTokenizer(str(english), lowercase=lower)
    rng = random.Random(2)
    words = ["UNwantéd", "running", "want", "x" * 101, "x" * 100, "漢字", "naïve", "e\u0301", "#a"]
    words += [".", ",", "?!", "a_b", "$", "\u200b", "\x07", "😀", "\t", "zzz", "\u2028", "[", "]"]
    for _ in range(10_000):
        text = "".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(0, 9)))
        expected = theirs.encode(text, add_special_tokens=False)
        tokens = ours.tokenize(text)
        assert tokens == expected.tokens, ascii(text)
        assert ours.convert_tokens_to_ids(tokens) == expected.ids
        assert ours.convert_ids_to_tokens(expected.ids) == tokens


def test_full_tokenizer_forges_no_special_token(english):
    assert BertWordPieceTokenizer(str(english)).encode("[MASK]", None, False, False).ids == [4]
    assert FullTokenizer(english).tokenize("[MASK]") == ["[", "mask", "]"]


def test_full_tokenizer_needs_only_unk(tmp_path):
    tokens = ["[UNK]", "[CLS]", "[SEP]", "want", "##want", "##ed", "wa", "un", "runn", "##ing", ","]
    vocab_file = write_vocab(tmp_path / "vocab.txt", tokens)
    tokenizer = FullTokenizer(vocab_file)
    tokens = tokenizer.tokenize("UNwant\u00e9d,running")
    assert tokens == ["un", "##want", "##ed", ",", "runn", "##ing"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [7, 4, 5, 10, 8, 9]
    with pytest.raises(UserError, match=r"lacks \[PAD\] \[MASK\]"):
        get_tokenizer("bert", vocab_file)


# The vocabulary


def test_load_vocab_keeps_the_order_and_all_lines(tmp_path):
    # U+2028 and U+3000 end no line: Google's vocabularies have such tokens.
    tokens = ["[UNK]", "b", "a", "##a", "\u2028", "\u3000", "é", "\x85"]
    vocab = load_vocab(write_vocab(tmp_path / "vocab.txt", tokens))
    assert list(vocab.items()) == list(zip(tokens, range(8), strict=True))
    (tmp_path / "dos.txt").write_bytes(b"[UNK]\r\na\r\nb")  # and no line end at the end
    assert load_vocab(tmp_path / "dos.txt") == {"[UNK]": 0, "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", r"line 3: the token 'a' is already on line 1"),
        (b"a\n\nb\n", r"line 2 is empty"),
        (b"a\n\n", r"line 2 is empty"),
        (b"\n", r"line 1 is empty"),
        (b"a\nb c\n", r"line 2: the token 'b c' has a blank"),
        (b"a\nb\t\n", r"line 2: the token 'b\\t' has a blank"),
        (b"a\nb\xff\n", r"not UTF-8"),
        (b"a\n[UNK]\n", r"lacks \[MASK\]"),
        (b"", r"lacks \[UNK\] \[MASK\]"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, content, message):
    file = tmp_path / "vocab.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_vocab(file, needed=["[UNK]", "[MASK]"])
    assert str(file) in str(error.value)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.txt"):
        load_vocab(tmp_path / "nothing.txt")
    with pytest.raises(UserError):
        load_vocab(tmp_path)


def test_tokens_and_ids_are_converted_both_ways():
    vocab = {"a": 3, "b": 1}
    assert convert_tokens_to_ids(vocab, ["b", "a", "b"]) == [1, 3, 1]
    assert convert_ids_to_tokens({3: "a", 1: "b"}, np.array([1, 3], dtype=np.int32)) == ["b", "a"]
    with pytest.raises(KeyError):
        convert_tokens_to_ids(vocab, ["c"])


# The tokenizer of the corpus

CORPUS_VOCAB = [*SPECIAL_TOKENS, "mov", "reg8", "__ctype_b_loc", "x" * 200, "Σ", "m", "##o", "##v"]


@pytest.fixture
def corpus_tokenizer(tmp_path):
    return CorpusTokenizer(write_vocab(tmp_path / "vocab.txt", CORPUS_VOCAB))


def test_corpus_words_stay_whole(corpus_tokenizer):
    line = f"mov reg8 __ctype_b_loc {'x' * 200} Σ [MASK]"
    assert corpus_tokenizer.tokenize(line) == line.split()
    assert corpus_tokenizer.encode(line).tolist() == [5, 6, 7, 8, 9, 4]
    assert corpus_tokenizer.tokenize("mo movo MOV reg16 " + "m" * 200) == [
        "m", "##o", "mov", "##o", "[UNK]", "[UNK]", "[UNK]",
    ]  # fmt: skip


def test_corpus_pieces_are_longest_first(corpus_tokenizer):
    vocab = {**corpus_tokenizer.vocab, "reg": 13, "##1": 14, "##6": 15, "##16": 16}
    assert CorpusTokenizer(vocab).tokenize("reg16 reg61") == ["reg", "##16", "reg", "##6", "##1"]


@given(st.lists(st.lists(st.sampled_from([*CORPUS_VOCAB, "mo", "q", "mmm", "é"]))), st.booleans())
def test_encode_lines_is_tokenize_line_by_line(lines, as_bytes):
    vocab = {token: i for i, token in enumerate(CORPUS_VOCAB)}
    tokenizer = CorpusTokenizer(vocab)
    texts = [" ".join(line) + "\n" for line in lines]
    ids, offsets = tokenizer.encode_lines([t.encode() for t in texts] if as_bytes else texts)
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    assert (offsets[0], offsets[-1], len(offsets)) == (0, len(ids), len(lines) + 1)
    wordpiece = WordpieceTokenizer(vocab)
    for i, line in enumerate(lines):
        expected = []
        for word in line:
            expected += [word] if word in vocab else wordpiece.tokenize(word)
        assert [CORPUS_VOCAB[j] for j in ids[offsets[i] : offsets[i + 1]]] == expected
    whole = "".join(texts)
    assert (tokenizer.encode(whole.encode() if as_bytes else whole) == ids).all()


def test_corpus_broken_input_is_unknown(corpus_tokenizer):
    assert corpus_tokenizer.encode(b"mov \xff\xfe reg8").tolist() == [5, 1, 6]
    assert corpus_tokenizer.encode("mov \ud800 reg8").tolist() == [5, 1, 6]
    assert corpus_tokenizer.encode("").tolist() == []
    assert corpus_tokenizer.encode_lines([])[1].tolist() == [0]


def test_corpus_tokenizer_needs_all_special_tokens(tmp_path):
    vocab_file = write_vocab(tmp_path / "vocab.txt", ["[UNK]", "[PAD]", "[SEP]", "[MASK]", "mov"])
    with pytest.raises(UserError, match=r"lacks \[CLS\]"):
        CorpusTokenizer(vocab_file)


def test_each_name_gives_its_tokenizer(english):
    for name, cls in (
        ("corpus", CorpusTokenizer),
        ("bert", FullTokenizer),
        ("bert-cased", FullTokenizer),
    ):
        tokenizer = get_tokenizer(name, english)
        assert type(tokenizer) is cls
        assert tokenizer.name == name
    assert get_tokenizer("bert", english).basic_tokenizer.tokenize("Ab É") == ["ab", "e"]
    assert tokenizer.basic_tokenizer.tokenize("Ab É") == ["Ab", "É"]
    with pytest.raises(UserError, match=r"'gpt'.*corpus, bert"):
        get_tokenizer("gpt", english)
    vocab = load_vocab(english)
    for name in ("corpus", "bert", "bert-cased"):
        assert get_tokenizer(name, vocab).vocab == vocab
        with pytest.raises(UserError, match=r"the model's vocabulary lacks \[PAD\]; add"):
            get_tokenizer(name, {t: i for t, i in vocab.items() if t != "[PAD]"})


@given(st.text(max_size=20))
def test_no_lower_case_text_has_a_token_of_a_cased_vocabulary(text):
    """No token that an uncased tokenizer can produce makes `reading_of` say "cased"."""
    tokens = BasicTokenizer(do_lower_case=True).tokenize(text)
    assert reading_of([*SPECIAL_TOKENS, *tokens, *(f"##{token}" for token in tokens)]) == "bert"
    assert reading_of([*SPECIAL_TOKENS, "[unused1]", "##ed", "Ed"]) == "bert-cased"


def test_tokenization_imports_neither_angr_nor_torch():
    code = "import sys, tokenization; print({'torch', 'angr', 'tensorflow'} & set(sys.modules))"
    result = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert result == "set()\n"


def test_words_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(tokenization, "MAX_WORDS", 20)
    vocab = {token: n for n, token in enumerate([*SPECIAL_TOKENS, "a", "b", "##a", "##b"])}
    tokenizer = CorpusTokenizer(vocab)
    words = ["".join(letters) for letters in itertools.product("ab", repeat=5)]
    expected = [[letters[0], *(f"##{c}" for c in letters[1:])] for letters in words]
    for _ in range(2):
        assert [tokenizer.tokenize(word) for word in words] == expected
    assert len(tokenizer._words) == 20
