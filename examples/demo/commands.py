"""Runs commands that the reader can copy, and shows how far they are."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
EVENT = re.compile(r"\[(train_inner|valid)\]\[INFO\] - (\{.*\})")
VALIDATION = re.compile(r"\[(valid|test)\]\[INFO\] - (\{.*\})")
REFRESH_SECONDS = 10


class CommandFailed(Exception):
    """A command ended with an error; the message names its log and shows the end of it."""


@dataclass
class Command:
    """One command line.

    Args:
        name: what to call it in the progress lines.
        words: program and arguments; a program of this environment is written without its folder.
        log: file that takes its output, or None to let it through.
        threads: ``OMP_NUM_THREADS``.
        updates: for training, the number it will reach.
        writes: folder that nothing else writes to; what a run that was stopped left there is removed first.
    """

    name: str
    words: list
    log: Path | None = None
    threads: int = 2
    updates: int = 0
    writes: Path | None = None
    seconds: float = 0.0
    progress: str = field(default="starting", init=False)
    process: subprocess.Popen | None = field(default=None, init=False, repr=False)

    def __str__(self):
        """The line to type in the repository's folder."""
        return f"OMP_NUM_THREADS={self.threads} {shlex.join(self._argv())}"

    def _argv(self):
        program = BIN / self.words[0]
        return [_relative(program) if program.exists() else self.words[0], *map(_relative, self.words[1:])]

    def run(self):
        """Run to the end, following the log. Raises ``CommandFailed``."""
        if self.writes is not None:
            shutil.rmtree(self.writes, ignore_errors=True)
        start = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        output = subprocess.PIPE if self.log else None
        with subprocess.Popen(
            self._argv(),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if self.log else None,
            text=True,
        ) as self.process:
            if self.log:
                self._follow(self.process.stdout)
            code = self.process.wait()
        self.seconds = time.monotonic() - start
        if code:
            raise CommandFailed(f"{self.name} ended with exit code {code}" + self._last_lines())
        self.progress = "done"

    def stop(self):
        """End the process if it runs, as Ctrl-C would: fairseq then leaves without saving half a file."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def _follow(self, lines):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            for line in lines:
                log.write(line)
                event = EVENT.search(line)
                if event:
                    self.progress = self._describe(event[1], json.loads(event[2]))

    def _describe(self, kind, values):
        if kind == "valid" and "valid_uer" in values:
            return f"validation character error {float(values['valid_uer']):.1f} %"
        if kind == "valid":
            return f"validation loss {values['valid_loss']}"
        return f"update {values['num_updates']} of {self.updates}, loss {values['loss']}"

    def _last_lines(self, n=15):
        if not self.log or not self.log.exists():
            return ""
        return f"; the end of {_relative(self.log)}:\n" + "\n".join(self.log.read_text().splitlines()[-n:])


def run_together(*commands, at_once=None):
    """Print the command lines, run them side by side, and show progress until all have ended.

    Args:
        at_once: how many run at the same time; all, unless it is given.
    Raises:
        CommandFailed: the first that failed, once all have ended.
    """
    for command in commands:
        print(f"$ {command}", flush=True)
    with ThreadPoolExecutor(at_once or len(commands)) as pool:
        running = [pool.submit(command.run) for command in commands]
        try:
            show_progress(commands, running)
        except BaseException:  # Ctrl-C or a kill: nothing may go on in the background
            pool.shutdown(wait=False, cancel_futures=True)
            for command in commands:
                command.stop()
            raise
        for future in running:
            future.result()
    for command in commands:
        print(f"  {command.name}: {command.seconds:.0f} s", flush=True)
    return commands


def show_progress(commands, running):
    """A line every few seconds while it changes, for commands whose output goes to a log."""
    printed = None
    while running:
        running = wait(running, timeout=REFRESH_SECONDS).not_done
        started = [c for c in commands if c.log and c.process is not None]
        state = "; ".join(f"{c.name}: {c.progress}" for c in started if c.process.poll() is None)
        if state and state != printed:
            print(f"  {state}", flush=True)
            printed = state


def training(name, out, data, config, updates, threads, *overrides, resume=False):
    """The command that trains ``config``, a YAML file, into ``out/<name>``; with ``resume`` from where it stopped."""
    words = ["fairseq-hydra-train", "--config-dir", shown(config.parent), "--config-name", config.stem]
    words += [f"task.data={shown(data)}", f"checkpoint.save_dir={shown(out / name)}"]
    words += [f"optimization.max_update={updates}", *(shown(o) for o in overrides)]
    return Command(name, words, out / name / "train.log", threads, updates, None if resume else out / name)


def held_out(log, measure):
    """``measure`` on the test part when it was best on the validation part, out of a training's log."""
    found = {"valid": {}, "test": {}}
    for subset, record in VALIDATION.findall(log.read_text()):
        values = json.loads(record)
        found[subset][values[f"{subset}_num_updates"]] = float(values[f"{subset}_{measure}"])
    chosen = max(found["valid"], key=found["valid"].get)
    return found["test"][chosen]


def shown(path):
    """Paths below the repository as they read from there, also inside ``key=path``."""
    return str(path).replace(f"{ROOT}/", "")


def _relative(path):
    """``path`` from the repository's folder if it lies inside, as text."""
    text = str(path)
    return os.path.relpath(text, ROOT) if text.startswith(str(ROOT) + os.sep) else text
