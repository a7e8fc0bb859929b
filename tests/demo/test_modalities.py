"""Every demo from its first command to its table, with the commands checked and not run.

What a command would leave behind is written instead, made of the same dataclasses that the real one writes.
"""

import dataclasses
import json
import shutil
import sys

import pytest
from hydra import compose, initialize_config_dir
from tiny_training import ROOT

from d2v_plugin.cli.main import build_parser
from d2v_plugin.eval.image_probe import ImageScores
from d2v_plugin.eval.probe import LayerScore
from d2v_plugin.eval.text_probe import ProbeResult, Score

EXAMPLES = ROOT / "examples"
FOLDERS = [EXAMPLES / name for name in ("demo", "speech/demo", "vision/demo", "text/demo")]
RATES = {"demo_pretrain": 10.0, "demo_pretrain_v2": 4.0}  # updates a second
COMPOSED = set()  # configurations with the keys that were overridden
LETTERS = {"letters": 0.4, "letters_error": 0.02}


@pytest.fixture
def demo(monkeypatch):
    """Runs a demo with pretended commands; gives them back."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))

    def run(name, *words):
        import run as dispatcher
        import stages

        pretend = Pretend()
        monkeypatch.setattr(stages, "run_together", pretend)
        assert dispatcher.main([name, *map(str, words)]) == 0
        return pretend.commands

    yield run
    for folder in FOLDERS:
        for path in folder.glob("*.py"):
            sys.modules.pop(path.stem, None)


class Pretend:
    """Takes the place of ``run_together``."""

    def __init__(self):
        self.commands = []

    def __call__(self, *commands, at_once=None):
        for command in commands:
            words = [str(word) for word in command.words]
            self.commands.append((command.name, words))
            {"python": self.prepare, "d2v": self.d2v, "fairseq-hydra-train": self.train}[words[0]](words)
            command.seconds = 1.0
        return commands

    def prepare(self, words):
        script = ROOT / words[1]
        assert all(word in script.read_text() for word in words if word.startswith("--"))
        dest = ROOT / words[words.index("--dest") + 1]
        if "digits" in words[1]:
            for label in range(10):
                (dest / "valid" / str(label)).mkdir(parents=True)
                (dest / "valid" / str(label) / "a.png").touch()
        elif "prompts" in words[1]:
            dest.mkdir(parents=True)
            for split in ("train", "valid", "test"):
                (dest / f"{split}.tsv").write_text("root\n" + "".join(f"{n}.wav\t16000\n" for n in range(20)))

    def train(self, words):
        """Composes the configuration, overrides and all, and leaves a log and checkpoints."""
        from fairseq.dataclass.initialize import hydra_init

        folder, name = (words[words.index(option) + 1] for option in ("--config-dir", "--config-name"))
        overrides = words[words.index("--config-name") + 2 :]
        keys = (name, *(word.partition("=")[0] for word in overrides))
        if keys not in COMPOSED:  # takes half a second
            hydra_init(name)
            with initialize_config_dir(str((ROOT / folder).resolve()), version_base="1.1"):
                compose(name, overrides)
            COMPOSED.add(keys)
        values = dict(word.split("=", 1) for word in overrides)
        out = ROOT / values["checkpoint.save_dir"]
        out.mkdir(parents=True)
        for kind in ("last", "best"):
            (out / f"checkpoint_{kind}.pt").touch()
        rates = [0.5, RATES.get(name, 1.0), RATES.get(name, 1.0)]
        records = [json.dumps({"ups": str(rate), "num_updates": "1", "loss": "1"}) for rate in rates]
        lines = [f"[time][train_inner][INFO] - {record}\n" for record in records]
        # validation chooses the first, where the test part is at 70 (scratch: 60), not the last or the best of test
        test = 60.0 if any("no_pretrained_weights=true" in word for word in overrides) else 70.0
        for update, valid, held_out in ((100, 91.0, test), (200, 90.0, 95.0)):
            for subset, accuracy in (("valid", valid), ("test", held_out)):
                record = json.dumps({f"{subset}_num_updates": str(update), f"{subset}_accuracy": str(accuracy)})
                lines.append(f"[time][{subset}][INFO] - {record}\n")
        (out / "train.log").write_text("".join(lines))

    def d2v(self, words):
        args = build_parser().parse_args(words[1:])
        if "--json" not in words:
            return
        if words[1] == "probe":
            found = self.probed(args)
        else:
            found = {"cer": 40.0, "wer": 90.0}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found))

    @staticmethod
    def probed(args):
        """What ``d2v probe`` writes for two manifests, for a folder with tables of passages, and for a folder alone."""
        if args.data[0].suffix == ".tsv":
            row = LayerScore(1, 0.5, **(LETTERS if args.align else dict.fromkeys(LETTERS)))
            return {**_plain({n: [row] for n in STATES}), "chance": 0.15 if args.align else None}
        if len(args.data) > 1:
            names = [table.stem for table in args.data[1:]]
            scores = {
                n: [Score("pieces", 0.5, 0.02)] * (n == "trained") + [Score("layer 3", 0.8, 0.01)] for n in STATES
            }
            return {n: [_plain(ProbeResult(p, 10, 20, 4, 0.3, scores[n])) for p in names] for n in STATES}
        rows = [ImageScores(layer, 0.9, 0.95, 0.7, 0.01) for layer in (0, 4)]
        found = {"trained": rows, "untrained": rows, "pixels": ImageScores(None, 0.8, 0.85, 0.6, 0.02)}
        return {**_plain(found), "images": {"train": 10, "valid": 2, "test": 3}}


STATES = ("trained", "untrained")


def _plain(found):
    """Dataclasses inside dicts and lists as dicts."""
    if dataclasses.is_dataclass(found):
        return dataclasses.asdict(found)
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    return [_plain(value) for value in found] if isinstance(found, list) else found


def test_images(demo, tmp_path):
    commands = demo("vision", "--out", tmp_path, "--updates", 7)
    names = [name for name, _ in commands]
    fine_tuned = [f"{start}_train_{n}_{d}" for n in (10, 100) for d in (1, 2, 3) for start in ("pretrained", "scratch")]
    fine_tuned += ["pretrained_train", "scratch_train"]
    assert names == ["prepare", "pretrain", "probe", *fine_tuned, "curves", "scores", "masks"]
    assert "optimization.max_update=7" in commands[1][1]
    assert sum(word.endswith(".png") for word in commands[-1][1]) == 4
    table = (tmp_path / "results.md").read_text()
    assert "| pre-trained, layer 4 | 90.0 % | 95.0 +- 1.0 % | 70.0 % |" in table
    assert "| raw pixels | 80.0 % | 85.0 +- 2.0 % | 60.0 % |" in table and "| test | 3 |" in table
    assert "| 100 | 70.0 +- 0.0 % | 60.0 +- 0.0 % |" in table and "| all 1,278 | 70.0 % | 60.0 % |" in table
    assert json.loads((tmp_path / "results.json").read_text())["seconds"].keys() >= {"fine-tune, 10 labels", "total"}


def test_text(demo, tmp_path):
    commands = demo("text", "--out", tmp_path)
    fine_tuned = [f"{start}_{labels}" for labels in ("400", "all") for start in ("pretrained", "scratch")]
    names = [name for name, _ in commands]
    assert names == ["prepare", "build", "pretrain", "probe", "label", *fine_tuned, "curves", "scores", "masks"]
    table = (tmp_path / "results.md").read_text()
    assert "part of speech of words it was not fitted on: 4 labels, 20 passages" in table
    assert "| bag of pieces | 50.0 +- 2.0 % |  |" in table
    assert "| layer 3 | 80.0 +- 1.0 % | 80.0 +- 1.0 % |" in table
    assert "| 400 | 70.0 % | 60.0 % |" in table


def test_own_text_has_a_folder_of_its_own(demo, tmp_path):
    (tmp_path / "own.txt").write_text("text")
    commands = demo("text", "--out", tmp_path / "out", "--data", tmp_path / "own.txt")
    assert commands[0][1][-2:] == ["--data", str(tmp_path / "own.txt")]
    assert "label" not in dict(commands)


def test_both_versions_get_the_same_minutes(demo, tmp_path):
    commands = dict(demo("speech2", "--out", tmp_path, "--minutes", 2))
    assert list(commands)[:5] == ["prepare", "time-v1", "time-v2", "v1", "v2"]
    assert "optimization.max_update=1200" in commands["v1"] and "optimization.max_update=480" in commands["v2"]
    starts = {name: [w for w in commands[name] if w.startswith("model.w2v_path=")] for name in ("ctc-v1", "ctc-v2")}
    assert starts["ctc-v1"] != starts["ctc-v2"]
    for version in ("v1", "v2"):
        probe = commands[f"probe {version}"]
        assert probe[probe.index("--align") + 1] == str(tmp_path / "scratch" / "checkpoint_best.pt")
    table = (tmp_path / "results.md").read_text()
    assert "| data2vec 1.0 | 1200 | 1 |" in table and "| data2vec 2.0 | 480 | 1 |" in table
    assert "| fine-tuned from data2vec 2.0 | 40.0 % | 90.0 % |" in table
    assert "| data2vec 2.0, untrained | 1 | 0.500 | 40.0 +- 2.0 % |" in table


def test_without_ctc_there_are_no_letters(demo, tmp_path):
    commands = dict(demo("speech2", "--out", tmp_path, "--ctc-updates", 0))
    assert "scratch" not in commands and "--align" not in commands["probe v1"]
    assert "| data2vec 1.0 | 1 | 0.500 | - |" in (tmp_path / "results.md").read_text()


def test_speech(demo, tmp_path):
    commands = [name for name, _ in demo("speech", "--out", tmp_path)]
    assert commands == ["prepare", "pretrain", "probe", "curves", "spectrogram"]  # the prompts' labels are not there
    assert "| 1 | 0.500 | 0.500 |" in (tmp_path / "results.md").read_text()


def test_all_that_fine_tune_end_in_one_table(demo, tmp_path, capsys):
    """Those that ended are taken as they are, until the table is there."""
    demo("vision", "--out", tmp_path / "vision")
    commands = [name for name, _ in demo("all", "--out", tmp_path)]
    assert commands.count("pretrain") == 2 and "done before" in capsys.readouterr().out
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| images: handwritten digits"] * 3 + [
        "| text: part of speech in Jane Austen's novels"
    ] * 2
    assert rows[1].endswith("| 100 | accuracy | 70.0 +- 0.0 % | 60.0 +- 0.0 % |")
    for name in ("vision", "text", "speech"):
        shutil.rmtree(tmp_path / name)
    assert [name for name, _ in demo("all", "--out", tmp_path)].count("pretrain") == 3


def test_an_unknown_demo_names_those_there_are(demo, capsys):
    with pytest.raises(SystemExit):
        demo("smell")
    assert "choose from speech, speech2, vision, text, all" in capsys.readouterr().err.replace("'", "")
