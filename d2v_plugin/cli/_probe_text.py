"""``d2v probe`` for text: labels of passages or of words in them, beside a bag of pieces."""

import argparse
import dataclasses
import json
import time

from d2v_plugin.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Collect, fit, print."""
    from d2v_plugin.eval.features import check_layers
    from d2v_plugin.eval.load import pick_device
    from d2v_plugin.eval.text_features import load_text_model
    from d2v_plugin.eval.text_probe import format_table, probe_network, read_examples

    if args.max_tokens is not None and args.max_tokens < 3:
        raise UserError(f"--max-tokens must be at least 3, got {args.max_tokens}; <s> and </s> are two of them")
    began, device = time.monotonic(), pick_device(args.device)
    tables = {table.stem: read_examples(table) for table in args.tables}
    found, probes = {}, []
    for name, seed in {"trained": None, **({"untrained": args.seed} if args.untrained else {})}.items():
        loaded = load_text_model(args.checkpoint, args.data, device=device, untrained_seed=seed)
        if seed is None:
            print(loaded.describe())
            probes = _probes(tables, loaded, args.max_tokens)
        layers = check_layers(args.layers, loaded.depth)
        found[name] = [probe_network(probe, loaded, layers, pieces=seed is None) for probe in probes]
    print(format_table(found["trained"], found.get("untrained")))
    for probe in probes:
        if probe.left_out:
            print(f"{probe.name}: {probe.left_out} passages are left out, their words lie behind the longest passage")
    print(f"{time.monotonic() - began:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {name: [dataclasses.asdict(result) for result in results] for name, results in found.items()}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _probes(tables: dict, loaded, max_tokens: int | None) -> list:
    """A probe of each table; one that is too small is told and left out, unless it is the only one."""
    from d2v_plugin.eval.text_probe import Probe

    probes, fault = [], None
    for name, examples in tables.items():
        try:
            probes.append(Probe(name, examples, loaded, max_tokens))
        except UserError as error:
            fault = error
            print(f"left out: {error}")
    if not probes:
        raise fault
    return probes
