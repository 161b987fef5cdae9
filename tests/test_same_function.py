"""bench/same_function.py: features of two functions' words."""

import numpy as np
import pytest
import same_function

from tasks.tables import Examples


@pytest.mark.parametrize("kind", list(same_function.VECTORIZERS))
def test_features_of_pairs_show_what_words_are_shared(kind):
    texts = ["mov __ctype_b_loc", "mov str", "mov"] * 5
    train = Examples(texts, texts[::-1], None)
    words = same_function.Bags(kind, train)
    assert set(words.words.vocabulary_) == {"mov", "__ctype_b_loc", "str"}
    equal = words.features(Examples(["mov str"] * 2, ["mov str", "__ctype_b_loc"], None))
    assert equal.shape == (2, 4 + 2 * 3)
    cosine, differences, common = np.split(equal.toarray(), [1, 7], axis=1)
    assert cosine[:, 0].tolist() == pytest.approx([1, 0])
    assert not differences[0, 2:].any()
    assert common[0].sum() > 0
    assert not common[1].any()
