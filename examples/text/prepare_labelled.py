"""Prepare labelled passages for fine-tuning: the tables that ``prepare_prose.py`` writes, as GLUE's tasks look.

    python examples/text/prepare_labelled.py PROSE/probes/word_class.tsv --data TEXT --dest DIR --labels 400 1000

PROSE is the folder of ``prepare_prose.py``, TEXT the one that ``d2v text build`` wrote of it. Written below DIR: a
folder for each number of labels and one called ``all``, with ``train``, ``valid`` and ``test`` as the task
``d2v_sentence_prediction`` reads them. ``valid`` and ``test`` are the same in each.

* ``word_class.tsv`` becomes pairs, a word and the passage it stands in, whose label is the word's part of speech: noun,
  verb, adjective or adverb, by WordNet, for words that can be one only. No word of one split is in another.
* ``speech.tsv`` becomes single passages, spoken or told.

The chapters of ``test`` are those that pre-training was not given.
"""

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

from d2v_plugin.data.text.build import whole_folder
from d2v_plugin.data.text.labelled import Sample, TextEncoder, write_split
from d2v_plugin.errors import UserError
from d2v_plugin.eval.text_probe import SCORE, Example, read_examples

ALL = "all"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="word_class.tsv or speech.tsv of prepare_prose.py")
    parser.add_argument("--data", required=True, type=Path, help="folder of binarised text of the pre-trained model")
    parser.add_argument("--dest", required=True, type=Path, help="folder to make")
    parser.add_argument("--labels", nargs="+", type=int, default=[], help="sizes of smaller training sets")
    parser.add_argument("--max-positions", type=int, default=128, help="longest sequence of the model (default 128)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of few labels (default 1)")
    args = parser.parse_args(argv)
    try:
        prepare(args.table, args.data, args.dest, args.labels, args.max_positions, args.seed)
    except UserError as error:
        print(f"prepare_labelled: error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(table: Path, data: Path, dest: Path, budgets: list[int], max_positions: int, seed: int) -> None:
    encoder, examples = TextEncoder.of_folder(data), read_examples(table)
    splits = {"train": [], "valid": [], "test": []}
    for example in examples:
        splits["test" if example.split == SCORE else "valid" if example.chooses else "train"].append(sample(example))
    classes = sorted({found.label for found in splits["train"]})
    for split, rows in splits.items():
        if not rows or len({row.label for row in rows}) < 2:
            raise UserError(f"{table}: the {split} part has {len(rows)} passages and no two labels; give more text")
    with whole_folder(dest) as folder:
        for name, rows in few(splits["train"], budgets, seed).items():
            for split, chosen in (splits | {"train": rows}).items():
                count = write_split(folder / name, split, chosen, encoder, classes, max_positions)
                if split == "train" or name == ALL:
                    print(f"{dest / name}: {split}: {count}")


def sample(example: Example) -> Sample:
    """A passage alone where all of it is meant, otherwise behind the words that are."""
    passage, texts = example.passage, (" ".join(example.passage.words),)
    if passage.end is not None:
        texts = (" ".join(passage.words[passage.start : passage.end]), *texts)
    return Sample(texts, example.label)


def few(rows: list[Sample], budgets: list[int], seed: int) -> dict[str, list[Sample]]:
    """``{"100": rows, ..., "all": rows}``: as many of each label, and what fewer labels hold, more do, too."""
    by_label = defaultdict(list)
    for row in random.Random(seed).sample(rows, len(rows)):
        by_label[row.label].append(row)
    chosen = {}
    for budget in budgets:
        each, most = budget // len(by_label), min(map(len, by_label.values()))
        if not 1 <= each <= most:
            least, most = len(by_label), most * len(by_label)
            raise UserError(f"--labels {budget}: there are {least} to {most} with as many of each label")
        chosen[str(budget)] = [row for label in sorted(by_label) for row in by_label[label][:each]]
    return chosen | {ALL: rows}


if __name__ == "__main__":
    sys.exit(main())
