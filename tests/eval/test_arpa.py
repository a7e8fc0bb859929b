"""The ARPA reader, against probabilities worked out by hand."""

import pytest

from d2v_plugin.errors import UserError
from d2v_plugin.eval.arpa import ArpaModel

TEXT = r"""
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-2.0	<unk>
-9.0	<s>	-0.3
-1.0	</s>
-0.7	a	-0.2
-0.9	b	-0.1

\2-grams:
-0.3	<s> a	-0.05
-0.5	a b	-0.4
-0.2	b </s>

\3-grams:
-0.1	<s> a b

\end\
what follows is not read
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.arpa"
    path.write_text(TEXT)
    return ArpaModel(path)


def test_known_and_backed_off(model):
    assert model.order == 3
    state, score = model.score(model.start(), "a")
    assert score == pytest.approx(-0.3) and state == ("<s>", "a")
    state, score = model.score(state, "b")
    assert score == pytest.approx(-0.1) and state == ("a", "b")
    # "a b </s>" is unknown: back off from (a b), then the bigram
    assert model.finish(state) == pytest.approx(-0.4 - 0.2)
    # "b a": back off from (a b), from (b), then the unigram
    assert model.score(state, "a")[1] == pytest.approx(-0.4 - 0.1 - 0.7)


def test_unknown_word(model):
    state, score = model.score(("<s>", "a"), "zebra")
    assert score == pytest.approx(-0.05 - 0.2 - 2.0) and state == ("a", "<unk>")


def test_unigram_model_has_no_context(tmp_path):
    path = tmp_path / "u.arpa"
    path.write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-0.5\ta\n-0.6\t</s>\n\\end\\\n")
    model = ArpaModel(path)
    assert model.start() == () and model.score((), "a") == ((), -0.5) and model.finish(()) == -0.6
    assert model.score((), "b") == ((), -100.0)


def test_errors(tmp_path):
    path = tmp_path / "x.arpa"
    path.write_text("\\1-grams:\n-0.5\ta\n-0.5 a b c\n")
    with pytest.raises(UserError, match=r":3: expected a probability, 1 words"):
        ArpaModel(path)
    path.write_text("hello\n")
    with pytest.raises(UserError, match="holds no n-gram"):
        ArpaModel(path)
