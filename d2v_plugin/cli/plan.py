"""``d2v plan``: what a recipe needs on other hardware to keep its batch, and how long it takes there."""

import argparse
from pathlib import Path

from d2v_plugin.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v plan``."""
    parser = subparsers.add_parser(
        "plan",
        help="fit a recipe to your GPUs: batch, accumulation, learning rate, memory, hours",
        description="Reads a recipe, counts the memory of its step tensor by tensor (on the CPU, no GPU is needed), "
        "and prints the batch for one pass, the accumulation and the learning rate that keep what an update sees in "
        "seconds of audio, images or tokens, with the overrides to paste.",
    )
    parser.add_argument("--config", required=True, help="a recipe's name in examples/, or its YAML file")
    parser.add_argument("--gpus", type=int, required=True, help="how many there are")
    parser.add_argument("--memory", type=float, required=True, metavar="GB", help="of one GPU")
    parser.add_argument("--config-dir", type=Path, help="look for the name here as well")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="plan the recipe with these")
    parser.add_argument("--micro", type=int, help="what fits into one pass, in the recipe's field; not counted then")
    parser.add_argument("--vocab", type=int, help="symbols of the dictionary, for text (default 50265)")
    parser.add_argument("--rate", type=float, help="units of the data that one GPU gets through in a second")
    parser.add_argument("--log", type=Path, help="take the rate from this hydra_train.log of a run")
    parser.add_argument("--gpu", help="take the rate that was measured here on a GPU of this name")
    parser.add_argument("--write", action="store_true", help="keep the overrides as hardware/NAME.yaml by the recipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, count, divide, print."""
    from d2v_plugin.planning import plan
    from d2v_plugin.planning.hours import Rate, from_log, measured
    from d2v_plugin.planning.memory import VOCABULARY
    from d2v_plugin.planning.recipe import find, read
    from d2v_plugin.rebuild import quiet

    if args.rate is not None and not args.rate > 0:
        raise UserError(f"--rate must be above 0, got {args.rate:g}")
    if args.rate is not None and args.log is not None:
        raise UserError("--rate and --log are two ways to say the same; leave one of them out")
    for name, value in (("micro", args.micro), ("vocab", args.vocab)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    # both tell about themselves while they are imported and while a configuration is composed
    with quiet("hydra", "fairseq"):
        recipe = read(find(args.config, [args.config_dir] if args.config_dir else []), args.override)
        if args.rate is not None:
            rate = Rate(args.rate, "as given")
        else:
            rate = from_log(args.log, recipe) if args.log else measured(recipe, args.gpu)
        made = plan.make(recipe, args.gpus, args.memory, args.micro, args.vocab or VOCABULARY)
    print("\n".join(plan.lines(made, rate)))
    if args.write:
        print(f"  written   {plan.write(made)}: add +hardware={plan.name_of(made)}")
    return 0
