"""``fairseq-train --user-dir d2v_plugin``, the way without Hydra: the same names are registered, and it trains."""

import re
import subprocess
import sys

from tiny_training import ROOT, write_data

from d2v_plugin.checkpoints import read_checkpoint

ARGUMENTS = """
--user-dir d2v_plugin --task d2v_audio_pretraining --arch data2vec_audio --criterion d2v_regression
--optimizer d2v_adamw --lr 0.0005 --lr-scheduler fixed --cpu --max-update 2 --max-tokens 24000 --num-workers 0
--normalize --min-sample-size 2000 --encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64
--encoder-attention-heads 4 --average-top-k-layers 2 --instance-norm-target-layer --disable-validation
--watch-interval 1 --log-format json --log-interval 1
""".split()


def test_trains_two_steps(tmp_path):
    data = write_data(tmp_path)
    words = [sys.executable, "-m", "fairseq_cli.train", str(data), *ARGUMENTS, "--save-dir", str(tmp_path / "run")]
    words += ["--conv-feature-layers", "[(16, 10, 5), (16, 8, 8), (16, 8, 8)]"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for logged in ("target_var", "pred_var", "ema_decay", "feature_std", "student_std", "teacher_std"):
        assert re.search(rf'"{logged}": "?[0-9]', done.stdout + done.stderr), logged
    state = read_checkpoint(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    names = {group: state["cfg"][group]["_name"] for group in ("model", "task", "criterion", "optimizer")}
    expected = {"model": "data2vec_audio", "task": "d2v_audio_pretraining", "criterion": "d2v_regression"}
    assert names == {**expected, "optimizer": "d2v_adamw"}
    assert "_ema" in state["model"]


def test_a_folder_that_is_not_there_is_one_line():
    """Validation is on, for which fairseq lists the folder before anything is read from it."""
    words = [sys.executable, "-m", "fairseq_cli.train", "nowhere", *ARGUMENTS]
    words.remove("--disable-validation")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("d2v: error: task.data=nowhere is no folder")
