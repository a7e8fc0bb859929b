"""Trains recipes for some updates on made-up data: updates a second, and memory beside what ``d2v plan`` counts.

    python benchmarks/training_rates.py [--smoke] [RECIPE[:MICRO] ...]

runs ``fairseq-hydra-train`` on one GPU for each recipe, data loading, optimiser and teacher included, and appends a row
of JSON to ``$OUT`` where that is set, else to ``benchmarks/results``, from where ``d2v plan`` takes its hours. Rows of
``--smoke`` mean nothing and are only printed. The data is noise of the length, the image size and the block size of the
recipe, from a local disk.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPES = ["base_librispeech", "base_librispeech_v2", "base_imagenet_v2", "base_books_wiki_v2"]
SECONDS, INTERVAL = 40, 10
RECORDINGS, IMAGES, BLOCKS = 600, 4096, 4096
# a network that trains on any processor: shows that the script works, its numbers mean nothing
SMOKE = {
    "audio": ["++task.max_sample_size=16000", "++task.min_sample_size=16000"],
    "image": ["++task.input_size=64", "++model.modalities.image.input_size=64"],
    "text": ["++task.tokens_per_sample=64"],
}
SMOKE_MODEL = ["++model.depth=2", "++model.embed_dim=64", "++model.num_heads=4", "++model.average_top_k_layers=2"]
SMOKE_SECONDS, SMOKE_ROWS = 15, 256
SAMPLE_RATE, WORDS = 16_000, 50_000
PEAK = "PEAK_BYTES "


def write_audio(folder: Path, seconds: float, recordings: int) -> None:
    import numpy as np
    import soundfile

    rng, count = np.random.default_rng(0), int(seconds * SAMPLE_RATE)
    noise = rng.integers(-8000, 8000, count, dtype=np.int16)
    with open(folder / "train.tsv", "w", encoding="utf-8") as file:
        print(folder, file=file)
        for n in range(recordings):
            soundfile.write(folder / f"{n}.wav", np.roll(noise, 977 * n), SAMPLE_RATE)
            print(f"{n}.wav\t{count}", file=file)


def write_images(folder: Path, images: int) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for n in range(images):
        place = folder / "train" / str(n % 16)
        place.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (60, 75, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 400)).save(place / f"{n}.jpg", quality=90)


def write_text(folder: Path, length: int, blocks: int) -> None:
    import numpy as np
    import torch
    from fairseq.data.indexed_dataset import make_builder

    (folder / "dict.txt").write_text("".join(f"w{n} 1\n" for n in range(WORDS)))
    rng = np.random.default_rng(0)
    builder = make_builder(str(folder / "train.bin"), impl="mmap", vocab_size=WORDS + 4)
    for _ in range(blocks):
        builder.add_item(torch.from_numpy(rng.integers(4, WORDS, length)).int())
    builder.finalize(str(folder / "train.idx"))


def train(config: str, overrides: list[str]) -> None:
    """In a process of its own: fairseq's command, and the most memory it allocated."""
    import torch
    from fairseq_cli.hydra_train import cli_main

    sys.argv = ["fairseq-hydra-train", "--config-dir", str(Path(config).parent), "--config-name", Path(config).stem]
    sys.argv += overrides
    cli_main()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(f"{PEAK}{peak}", flush=True)


def write_data(recipe, folder: Path, smoke: bool) -> None:
    """Noise that the recipe can be trained on."""
    if recipe.kind == "audio":
        write_audio(folder, recipe.row_size / SAMPLE_RATE, SMOKE_ROWS if smoke else RECORDINGS)
    elif recipe.kind == "image":
        write_images(folder, SMOKE_ROWS if smoke else IMAGES)
    else:
        write_text(folder, recipe.row_size, SMOKE_ROWS if smoke else BLOCKS)


def measure(name: str, micro: int | None, scratch: Path, smoke: bool) -> dict:
    """One recipe.

    Returns:
        A row: ``units_per_second`` of one GPU, ``rows`` in a pass, ``peak_bytes``, ``counted_bytes``.
    """
    from d2v_plugin.eval.logs import read_log
    from d2v_plugin.planning.memory import count
    from d2v_plugin.planning.recipe import find, read

    path = find(name, [ROOT / "examples"])
    smaller = [*SMOKE[read(path).kind], *SMOKE_MODEL, "++common.cpu=true", "common.fp16=false"] if smoke else []
    recipe = read(path, smaller)
    data, out = scratch / name, scratch / f"{name}_run"
    data.mkdir()
    write_data(recipe, data, smoke)
    micro = micro or (4 * recipe.field_row if smoke else recipe.micro)
    words = [f"task.data={data}", f"checkpoint.save_dir={out}", "distributed_training.distributed_world_size=1"]
    words += [f"common.user_dir={ROOT}/d2v_plugin", f"common.log_interval={INTERVAL}", "++checkpoint.no_save=true"]
    words += [f"{recipe.field}={micro}", "++optimization.update_freq=[1]", f"++dataset.num_workers={0 if smoke else 8}"]
    # the schedule stays that of the recipe: only the first updates are run
    words += [f"++optimization.stop_time_hours={(SMOKE_SECONDS if smoke else SECONDS) / 3600}"]
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import training_rates as rates; "
    code += f"rates.train({str(path)!r}, {smaller + words!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    peaks = [line.removeprefix(PEAK) for line in done.stdout.splitlines() if line.startswith(PEAK)]
    if done.returncode != 0 or not peaks:
        raise SystemExit(f"training_rates: {name} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    curve = [value for _, value in read_log(out / "hydra_train.log").train["ups"] if value > 0]
    ups = statistics.median(curve[len(curve) // 3 :])
    rows = micro / recipe.field_row
    counted = count(recipe, 1, WORDS + 4)
    return {
        "recipe": name,
        "units_per_second": ups * recipe.in_units(micro),
        "updates_per_second": ups,
        "intervals": curve,
        "micro": micro,
        "rows": rows,
        "peak_bytes": int(peaks[0]),
        "counted_bytes": round(counted.total(rows)),
    }


def keep(row: dict, folder: Path, gpu: str) -> None:
    """Append a row to the file of this kind of GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"training_{gpu.split()[-1].lower()}.jsonl", "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training on one GPU.")
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="NAME or NAME:MICRO")
    parser.add_argument("--smoke", action="store_true", help="small networks, any device: shows that the script works")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("benchmarks: error: no CUDA device; pass --smoke to try the script without one")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    scratch = Path(tempfile.mkdtemp())
    from common import environment

    try:
        for word in args.recipes:
            name, _, micro = word.partition(":")
            row = {
                **measure(name, int(micro) if micro else None, scratch, args.smoke),
                **environment("cpu" if gpu == "none" else "cuda"),
                "gpu": gpu,
            }
            row["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
            print(json.dumps(row), flush=True)
            if not args.smoke:
                keep(row, folder, gpu)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
