"""A text run does not go on with text that was binarised with another dictionary of the same size."""

import pytest
from tiny_training import ROOT, scaled_down, train, write_data

from d2v_plugin.errors import UserError


def test_another_dictionary_of_the_same_size(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data, "text")
    path = ROOT / "examples" / "text" / "base_books_wiki_v2.yaml"
    train(scaled_down(path, data, tmp_path / "run"))
    dictionary = data / "dict.txt"
    lines = dictionary.read_text().splitlines()
    dictionary.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    with pytest.raises(UserError, match="trained with another dictionary"):
        train(scaled_down(path, data, tmp_path / "run", optimization__max_update=4))
    dictionary.write_text("\n".join(lines) + "\n")
    train(scaled_down(path, data, tmp_path / "run", optimization__max_update=4))
