"""Fine-tuning on GLUE's tasks over learning rates and seeds: what ended is kept, what was interrupted goes on."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import d2v_plugin
from d2v_plugin.errors import UserError

EVENT = re.compile(r"\[(train_inner|valid1?)\]\[INFO\] - (\{.*\})")
ERROR = "d2v: error:"
RECORD, LOG = "sweep.json", "train.log"
REFRESH_SECONDS = 10
EXAMPLES = Path(d2v_plugin.__file__).resolve().parents[1] / "examples" / "text"
# sizes of a network of 1.0 that fine-tuning has to be told, since fairseq builds it from the run's own configuration
SIZES = ("max_source_positions", "layernorm_embedding", "no_scale_embedding", "activation_fn")
ENCODER_SIZES = ("embed_dim", "ffn_embed_dim", "layers", "attention_heads", "normalize_before", "learned_pos")
MODELS = {"data2vec_multi": "glue", "data2vec_text": "glue_v1"}
# what the two papers' results were the best of
RATES = {"data2vec_multi": ("1e-5", "2e-5", "4e-5", "6e-5"), "data2vec_text": ("1e-5", "2e-5", "3e-5", "4e-5")}
POSITIONS = 512


@dataclass
class Run:
    """One fine-tuning; ``scores`` by update from the log, ``progress`` for the screen."""

    task: object
    rate: str
    seed: int
    folder: Path
    progress: str = "waits"
    process: subprocess.Popen | None = None
    scores: dict[int, dict[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task.name} rate {self.rate} seed {self.seed}"

    def follow(self, line: str) -> None:
        """Take in a line of the log."""
        event = EVENT.search(line)
        if event is None:
            return
        try:
            values = json.loads(event[2])
        except json.JSONDecodeError:
            return  # cut short by a kill
        source = event[1]
        if source == "train_inner":
            self.progress = f"update {values['num_updates']}"
            return
        scores = self.scores.setdefault(int(values[f"{source}_num_updates"]), {})
        prefix, name = f"{source}_", "mismatched_" if source == "valid1" else ""
        for key in ("loss", "accuracy", "mcc", "f1", "acc_and_f1", "pearson", "spearman", "pearson_and_spearman"):
            if f"{prefix}{key}" in values:
                scores[name + key] = float(values[f"{prefix}{key}"])
        metric = self.task.metric
        if metric in scores:
            self.progress = f"update {values[f'{source}_num_updates']}, {metric} {scores[metric]:.1f}"

    def best(self) -> tuple[int, dict[str, float]] | None:
        """(update, scores) of the best checkpoint, of equals the last as in fairseq; None where nothing was scored."""
        metric = self.task.metric
        scored = {update: scores for update, scores in self.scores.items() if metric in scores}
        return max(scored.items(), key=lambda item: (item[1][metric], item[0]), default=None)


class Sweep:
    """All runs of a sweep.

    Args:
        model: checkpoint of pre-training.
        data: folder with a prepared folder a task.
        out: runs go to ``out/TASK/lrRATE_seedSEED``.
        tasks: ``GlueTask``.
        rates: learning rates, as written; None for those of the model's paper.
        config_dir: YAML files by task, None for those that go with the model.
        settings: further ``KEY=VALUE``.
    Raises:
        UserError: one line on what is wrong, before anything runs.
    """

    def __init__(
        self,
        model: Path,
        data: Path,
        out: Path,
        tasks: Sequence,
        rates: Sequence[str] | None,
        seeds: Sequence[int],
        config_dir: Path | None = None,
        settings: Sequence[str] = (),
    ):
        self.model, self.data, self.out = model.resolve(), data.resolve(), out.resolve()
        _check_rates(rates or ())
        for setting in settings:
            if "=" not in setting:
                raise UserError(f"--set takes KEY=VALUE, got {setting!r}")
        name, model_settings = _model_settings(self.model)
        rates = rates or RATES[name]
        self.config_dir = (config_dir or EXAMPLES / MODELS[name]).resolve()
        for task in tasks:
            if not (self.config_dir / f"{task.name}.yaml").is_file():
                raise UserError(f"{self.config_dir}: has no {task.name}.yaml; name the folder with --config-dir")
            if not (self.data / task.name / "input0").is_dir():
                raise UserError(
                    f"{self.data / task.name}: no prepared data; write it with `d2v glue prepare`, or leave "
                    f"{task.name} out with --tasks"
                )
        start = "model.model_path" if name == "data2vec_multi" else "checkpoint.finetune_from_model"
        self.settings = [f"{start}={_quoted(self.model)}", *model_settings, *_hardware(), *settings]
        self.runs = [
            Run(task, rate, seed, self.out / task.name / f"lr{rate}_seed{seed}")
            for task in tasks
            for rate in dict.fromkeys(rates)
            for seed in dict.fromkeys(seeds)
        ]
        self._check_record(list(settings))
        self._devices: queue.Queue = queue.Queue()
        self._hopeless: set[str] = set()  # tasks whose runs would all be refused
        self._stopping = False

    def _check_record(self, settings: list[str]) -> None:
        """Runs of another model or of other settings must not meet in one table."""
        record = {"model": str(self.model), "config_dir": str(self.config_dir), "settings": settings}
        path = self.out / RECORD
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            for key, value in record.items():
                if found.get(key) != value:
                    raise UserError(
                        f"{self.out} holds runs with {key} {found.get(key)}, and this is {value}; choose another --out"
                    )
        self.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def command(self, run: Run) -> list[str]:
        """What trains it."""
        words = [sys.executable, "-m", "fairseq_cli.hydra_train"]
        words += ["--config-dir", str(self.config_dir), "--config-name", run.task.name]
        words += [f"common.user_dir={_quoted(Path(d2v_plugin.__file__).parent)}"]
        words += [f"task.data={_quoted(self.data / run.task.name)}", f"checkpoint.save_dir={_quoted(run.folder)}"]
        return [*words, *self.settings, f"optimization.lr=[{run.rate}]", f"++common.seed={run.seed}"]

    def run(self, jobs: int) -> int:
        """Train what has not ended, ``jobs`` at a time; how many failed."""
        from d2v_plugin.eval.glue_table import RESULT

        left = [run for run in self.runs if not (run.folder / RESULT).is_file()]
        print(f"{len(self.runs)} runs, {len(self.runs) - len(left)} of them ended before", flush=True)
        for device in _devices(jobs):
            self._devices.put(device)
        with ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(self._train, run) for run in left]
            try:
                _show(left, running)
            except BaseException:  # Ctrl-C or a kill: nothing may go on in the background
                self._stopping = True
                for future in running:
                    future.cancel()
                for run in left:
                    if run.process is not None and run.process.poll() is None:
                        run.process.send_signal(signal.SIGINT)
                raise
        return sum(not future.result() for future in running)

    def _train(self, run: Run) -> bool:
        """Train one to its end and write its result; whether that worked."""
        device = self._devices.get()
        try:
            if run.task.name in self._hopeless or self._stopping:
                run.progress = "failed"
                return False
            run.folder.mkdir(parents=True, exist_ok=True)
            path, began = run.folder / LOG, time.monotonic()
            if path.is_file():
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    run.follow(line)
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
            environment |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
            run.progress = "starts"
            with (
                path.open("a", encoding="utf-8") as log,
                subprocess.Popen(
                    self.command(run),
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                ) as run.process,
            ):
                for line in run.process.stdout:
                    log.write(line)
                    log.flush()
                    run.follow(line)
                code = run.process.wait()
            best = run.best()
            if code or best is None:
                if not self._stopping:
                    self._tell(run, f"failed, exit code {code}; {_why(path)}")
                run.progress = "failed"
                return False
            _finish(run, best, time.monotonic() - began)
            return True
        finally:
            self._devices.put(device)

    def _tell(self, run: Run, what: str) -> None:
        """Say how a run failed. One that was refused before it began says what is wrong with all of its task."""
        print(f"  {run}: {what}", flush=True)
        if ERROR in what and run.progress == "starts" and run.task.name not in self._hopeless:
            self._hopeless.add(run.task.name)
            print(f"  {run.task.name}: its other runs would end alike and are not started", flush=True)


def _finish(run: Run, best: tuple[int, dict[str, float]], seconds: float) -> None:
    """Write the result whole, and remove what only resuming needs."""
    from d2v_plugin.eval.glue_table import RESULT

    update, scores = best
    result = {"task": run.task.name, "lr": run.rate, "seed": run.seed, "scores": scores, "update": update}
    part = run.folder / f"{RESULT}.part"
    part.write_text(json.dumps({**result, "seconds": round(seconds, 1)}, indent=1) + "\n", encoding="utf-8")
    part.rename(run.folder / RESULT)
    (run.folder / "checkpoint_last.pt").unlink(missing_ok=True)
    run.progress = "ended"
    print(f"  {run}: {run.task.metric} {scores[run.task.metric]:.1f} at update {update}, {seconds:.0f} s", flush=True)


def _show(runs: list[Run], running: list) -> None:
    """A line every few seconds while something changes."""
    shown = None
    while running:
        running = wait(running, timeout=REFRESH_SECONDS).not_done
        active = [f"{run}: {run.progress}" for run in runs if run.progress not in ("waits", "ended", "failed")]
        ended = sum(run.progress == "ended" for run in runs)
        line = f"  {ended} of {len(runs)} ended" + "".join(f"; {part}" for part in active)
        if active and line != shown:
            print(line, flush=True)
            shown = line


def _why(log: Path) -> str:
    """The line that says what went wrong, or the last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # Hydra says what it could not do first, and ends with advice for its developers
    told = next((line for line in reversed(lines) if line.startswith((ERROR, "Could not override"))), None)
    return told or f"the end of {log}: {lines[-1] if lines else 'nothing'}"


def _check_rates(rates: Sequence[str]) -> None:
    for rate in rates:
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if not 0 < value < 1:
            raise UserError(f"--lrs takes learning rates above 0 and below 1, got {rate}")


def _model_settings(path: Path) -> tuple[str, list[str]]:
    """(kind of model, settings of its size) of a checkpoint of pre-training.

    Raises:
        UserError: it is of another model.
    """
    from omegaconf import OmegaConf

    from d2v_plugin.checkpoints import read_checkpoint
    from d2v_plugin.rebuild import check_modality, configuration

    cfg = configuration(read_checkpoint(path, keys=("model",), verify=False), path)
    name = str(cfg.model.get("_name"))
    if name not in MODELS:
        raise UserError(f"{path} holds a {name} model; give a checkpoint of pre-training with {' or '.join(MODELS)}")
    if name == "data2vec_multi":
        check_modality(cfg, "TEXT", path)
        longest = OmegaConf.select(cfg, "model.modalities.text.max_source_positions")
        return name, [f"task.max_positions={min(POSITIONS, longest or POSITIONS)}"]
    transformer = cfg.model.transformer
    longest = min(POSITIONS, transformer.max_source_positions)
    settings = [f"task.max_positions={longest}", f"model.max_positions={longest}"]
    settings += [f"model.head_layers={cfg.model.head_layers}"]
    settings += [f"model.transformer.{key}={transformer[key]}" for key in SIZES]
    return name, settings + [f"model.transformer.encoder.{key}={transformer.encoder[key]}" for key in ENCODER_SIZES]


def _hardware() -> list[str]:
    """What the recipes need where there is no GPU."""
    import torch

    return [] if torch.cuda.is_available() else ["common.fp16=false", "++common.cpu=true"]


def _devices(jobs: int) -> list[str | None]:
    """For each job the GPU it sees; None leaves the environment as it is."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = [name for name in given.split(",") if name] or [str(k) for k in range(torch.cuda.device_count())]
    return [visible[k % len(visible)] if visible and torch.cuda.is_available() else None for k in range(jobs)]


def _quoted(value: Path) -> str:
    """A path as Hydra's command line takes it, whatever characters it has."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
