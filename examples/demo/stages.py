"""A demo as stages: what each took is recorded, and one that was stopped goes on where it was."""

import json
import shutil
import time

from commands import run_together

RECORD = "stages.json"
RESULTS = ("results.md", "results.json")


class Stages:
    """Runs the stages of one demo and gathers ``results``.

    ``out/stages.json`` holds the command lines of the stages that ended well; a stage whose lines stand there is not
    run again. A demo that got to its end starts over the next time.

    Args:
        out: folder for everything the demo writes.
    """

    def __init__(self, out):
        self.out = out
        self.results = {"seconds": {}}
        self.wall = 0.0
        path = out / RECORD
        self._done = json.loads(path.read_text()) if path.exists() else []

    def prepare(self, title, command, *stale):
        """Run the stage that makes the data, always, and forget what earlier data or an ended demo left.

        Args:
            stale: names of files and folders below ``out``, which go once there is something to train on.
        """
        if (self.out / "results.md").exists():
            print(f"\nreplacing the earlier results in {self.out} (--out keeps them)", flush=True)
        earlier = self._find([command])
        ended = (self.out / "results.md").exists()
        self._run(title, [command])
        if ended or earlier is None:
            self._done = []
            for name in (*stale, *RESULTS):
                remove(self.out / name)
        self._keep([command])

    def step(self, title, *commands, at_once=None, name=None):
        """Run ``commands`` side by side, unless all of them are recorded as done.

        Args:
            at_once: how many run at the same time; all, unless it is given.
            name: of all of them together in the table of seconds; without it each has a row.
        """
        found = self._find(commands)
        if found is None:
            self._run(title, commands, at_once, name)
            self._keep(commands)
            return
        print(f"\n== {title}: done before, {found['wall']:.0f} s", flush=True)
        self.results["seconds"] |= found["seconds"]
        self.wall += found["wall"]

    def finish(self, write_table):
        """Write ``results.json`` and, made by ``write_table(results)``, ``results.md``; print the table.

        Returns:
            ``results``.
        """
        self.results["seconds"]["total"] = self.wall
        (self.out / "results.json").write_text(json.dumps(self.results, indent=2) + "\n")
        text = write_table(self.results)
        (self.out / "results.md").write_text(text)
        print(f"\n{text}\nLogs, checkpoints and pictures are in {self.out}")
        return self.results

    def _run(self, title, commands, at_once=None, name=None):
        print(f"\n== {title}", flush=True)
        start = time.monotonic()
        run_together(*commands, at_once=at_once)
        self._last = time.monotonic() - start
        self.wall += self._last
        self._seconds = {name: self._last} if name else {command.name: command.seconds for command in commands}
        self.results["seconds"] |= self._seconds

    def _find(self, commands):
        lines = [str(command) for command in commands]
        return next((stage for stage in self._done if stage["lines"] == lines), None)

    def _keep(self, commands):
        lines = [str(command) for command in commands]
        self._done = [stage for stage in self._done if stage["lines"] != lines]
        self._done.append({"lines": lines, "seconds": self._seconds, "wall": self._last})
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / RECORD).write_text(json.dumps(self._done, indent=1) + "\n")


def remove(path):
    """Delete a file or a folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
