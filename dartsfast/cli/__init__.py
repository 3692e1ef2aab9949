"""The ``dartsfast`` command."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dartsfast
from dartsfast.cli import export, left, query, test
from dartsfast.cli.flags import add_detail, add_old_flags, add_preset, drop_old_flags
from dartsfast.compare import CompareConfig, CompareRNNConfig
from dartsfast.errors import CheckFailedError, DivergedError, InputError, LostRankError, RunStopped
from dartsfast.parsing import Command, add_field
from dartsfast.runs.config_file import read_config
from dartsfast.runs.detail import NORMAL, QUIET, saying
from dartsfast.runs.options import GROUPS, HERE, MOVED
from dartsfast.search.config import CNNConfig, RNNConfig
from dartsfast.verbs import VERBS, WITHOUT_EFFECT

# Only names and options are imported here: --help needs no torch, and Ctrl-C finds main() in charge.

VERBOSE_HELP = "lines of iterations on a terminal too, and how long each phase of an epoch took"
# What of a search's options its programs go by.
EXPLAINED = (
    "init_channels", "layers", "batch_size", "image_size", "order", "backend", "memory", "storage_dtype",
    "space", "preset", "method", "auxiliary_skip", "accumulate",
    "accumulate_statistics",
)  # fmt: skip
EXPLAINED_OF_TEXTS = (
    "emsize", "nhid", "nhidlast", "batch_size", "bptt", "order", "backend", "memory", "dropout", "dropouth",
    "dropoutx", "dropouti", "dropoute",
)  # fmt: skip
COMPARISONS: dict[str, Any] = {"cnn": CompareConfig, "rnn": CompareRNNConfig}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its status.

    0; 1 for a check that failed; 2 for input that cannot work or a disk that is full; 3 for a search that
    diverged; 4 where another process of the same run has ended; 130 for Ctrl-C and 128 more than its number
    for another signal that stopped a search (143 for SIGTERM); 141 where the reader of the output has gone.
    """
    _let_threads_sleep()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and pictures of any alphabet, whatever the locale
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _status(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What Python still wants to write when it exits goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep where they wait for each other, unless the environment says how they wait.

    Spinning is a tenth faster on an idle machine and half as fast where one other process is busy: the thread
    that spins holds the core that its partner needs. The runtime reads this once, when torch loads it: a
    program that has loaded torch keeps its environment.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _status(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        return 0
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:  # such as a full disk, a folder that cannot be written
        return _complain(error, 2)
    except CheckFailedError as error:
        return _complain(error, 1)
    except DivergedError as error:
        return _complain(error, 3)
    except LostRankError as error:
        return _complain(error, 4)
    except RunStopped as stopped:
        return _complain(stopped, 128 + stopped.signum) if _rank() == "0" else 128 + stopped.signum
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(problem: object, status: int) -> int:
    rank = _rank()
    print(f"dartsfast: {problem}" if rank == "0" else f"dartsfast: rank {rank}: {problem}", file=sys.stderr)
    return status


def _rank() -> str:
    """Return which of the processes this is that torchrun has started; dartsfast.ranks would import torch."""
    return os.environ.get("RANK", "0")


def _parser() -> argparse.ArgumentParser:
    parser = Command(prog="dartsfast", description="Differentiable architecture search.")
    parser.add_argument("--version", action="version", version=f"dartsfast {dartsfast.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb, what in VERBS.items():
        command = commands.add_parser(verb, help=what.help.replace("{} ", ""))
        group = command.add_subparsers(required=True, metavar="KIND")
        for kind, config in what.configs.items():
            _add_run(group, verb, kind, config)
    test.add(commands)
    left.add(commands)
    compare = commands.add_parser("compare", help="how far two backends are from each other")
    kinds = compare.add_subparsers(required=True, metavar="KIND")
    for kind, config in COMPARISONS.items():
        command = kinds.add_parser(
            kind,
            help=f"compare two backends on {kind.upper()} searches, to the bit",
            description="Run two backends from one seed on random data, and compare them.",
            argument_default=argparse.SUPPRESS,
        )
        for field in dataclasses.fields(config):
            add_field(command, field)
        command.add_argument(
            "--out", type=os.path.expanduser, help="folder for compare.json, compare.png and compare.svg"
        )
        command.set_defaults(run=_compare, kind=kind, config=config)
    _add_explain(commands)
    export.add(commands)
    query.add(commands)
    draw = commands.add_parser("draw", help="draw a cell as PNG and SVG")
    draw.add_argument(
        "genotype",
        help='folder of a run, genotype.json, "Genotype(...)" or "|op~0|+..." as a search prints it, or a '
        "published cell, e.g. rnn:DARTS_V2",
    )
    draw.add_argument(
        "--out",
        help="the picture, .png, .svg or .pdf; else PNG and SVG (default: the genotype's name)",
    )
    draw.set_defaults(run=_draw)
    doctor = commands.add_parser("doctor", help="versions, devices, backends")
    doctor.add_argument("--deep", action="store_true", help="also check every operator against its oracle")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_run(kinds: Any, verb: str, kind: str, config: Any) -> None:
    command = kinds.add_parser(
        kind,
        help=VERBS[verb].help.format(kind.upper()),
        usage=f"dartsfast {verb} {kind} [OPTION ...]",
        argument_default=argparse.SUPPRESS,
    )
    if verb == "train":
        command.add_argument("cell", nargs="?", metavar="CELL", help="the same as --arch")
    groups = {name: command.add_argument_group(name) for name in GROUPS}
    for field in dataclasses.fields(config):
        add_field(groups[field.metadata["group"]], field)
    add_preset(groups["optimisation"], config)
    if verb == "search":
        groups["optimisation"].add_argument(
            "--unrolled", action="store_const", const=2, dest="order", help="the same as --order 2"
        )
    run = groups["run"]
    run.add_argument("--gpu", type=int, metavar="N", help="the same as --device cuda:N")
    run.add_argument("--save", metavar="NAME", help=f"the same as --out {VERBS[verb].saved_as}-NAME-TIME")
    run.add_argument(
        "--resume", "--continue_train", nargs="?", const="", metavar="DIR",
        help="go on with the run in this folder (or in --out), under its own options; "
        "--data says where its data lie now",
    )  # fmt: skip
    run.add_argument(
        "--config", dest="config_file", metavar="FILE",
        help="options from this file, such as the config.toml of a run, but for those given beside it",
    )  # fmt: skip
    add_detail(run, VERBOSE_HELP)
    if (verb, kind) in WITHOUT_EFFECT:
        add_old_flags(command, verb, kind)
    command.set_defaults(run=_run, verb=verb, kind=kind, config=config)


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser("explain", help="what cells are computed as, before anything runs")
    kinds = explain.add_subparsers(required=True, metavar="KIND")
    command = kinds.add_parser(
        "cnn",
        help="programs of a CNN search: instructions, bytes, operations, memory",
        description="Count what the programs of a search come to. Nothing is computed, no data are read.",
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(CNNConfig):
        if field.name in EXPLAINED:
            add_field(command, field)
    command.add_argument(
        "--primitives", nargs="+", metavar="NAME", help="the search space, another than --space"
    )
    command.add_argument(
        "-v", "--instructions", type=int, metavar="CELL", help="print every instruction of this cell too"
    )
    command.set_defaults(run=_explain)
    command = kinds.add_parser(
        "rnn",
        help="passes of an RNN search: bytes, operations, memory",
        description="Count what the passes of a search come to. Nothing is computed, no data are read.",
        argument_default=argparse.SUPPRESS,
    )
    for field in dataclasses.fields(RNNConfig):
        if field.name in EXPLAINED_OF_TEXTS:
            add_field(command, field)
    command.add_argument(
        "--words", type=int, default=10_000, help="of the vocabulary; 10,000 are those of Penn Treebank"
    )
    command.set_defaults(run=_explain_rnn)


def _run(args: argparse.Namespace) -> None:
    given = dict(vars(args))
    verb, kind, config_cls = given.pop("verb"), given.pop("kind"), given.pop("config")
    del given["run"]
    drop_old_flags(given, verb, kind)
    detail = given.pop("detail", NORMAL)
    cell = given.pop("cell", None)
    if cell is not None and given.setdefault("arch", cell) != cell:
        raise InputError(f"two cells to train, {cell} and {given['arch']}: name one")
    resume = given.pop("resume", None)
    for alias, name in (("gpu", "device"), ("save", "out")):
        if alias in given and name in given and (resume is None or alias == "gpu"):
            raise InputError(f"--{alias} and --{name} say the same: give one of them")
    if "gpu" in given:
        given["device"] = f"cuda:{given.pop('gpu')}"
    if resume is not None:
        _resume(verb, kind, config_cls, given, resume, detail)
        return
    base: dict[str, Any] = {}
    if "config_file" in given:
        base = read_config(given.pop("config_file"), (verb, kind), config_cls)
    if "preset" in given and hasattr(config_cls, "protocols"):
        base |= config_cls.protocol(given.pop("preset"))
    if "save" in given:
        saved = f"{VERBS[verb].saved_as}-{given.pop('save')}-{time.strftime('%Y%m%d-%H%M%S')}"
        given.setdefault("out", saved)
    config = config_cls.kept(base).but(**given) if base else config_cls(**given)
    _begin(verb, kind, config, None, detail)


def _resume(verb: str, kind: str, config_cls: Any, given: dict[str, Any], resume: str, detail: str) -> None:
    named = (resume, given.get("out"), given.get("save"))
    places = [os.path.expanduser(place) for place in named if place]
    if not places:
        raise InputError("--resume needs the folder of the run: --resume DIR, or --resume --out DIR")
    folder = places[0]
    paths = [Path(place).resolve() for place in places]
    if len({path.parent if path.is_file() else path for path in paths}) > 1:
        raise InputError(f"a resumed run stays in its folder: name one of {', '.join(places)}")
    own = set(given) - {"out", "save", *MOVED, *HERE}
    fixed = sorted(name.removesuffix("_file") for name in own)
    if fixed:
        raise InputError(
            f"a resumed run keeps its own options: leave out {', '.join('--' + name for name in fixed)}"
        )
    if given.get("data") == config_cls.data:
        raise InputError(
            f"--data {given['data']} is no place where the data of a run can lie now: leave it out"
        )
    here = {name: given[name] for name in (*MOVED, *HERE) if name in given}
    _begin(verb, kind, config_cls(**here), folder, detail)


def _begin(verb: str, kind: str, config: Any, resume: str | None, detail: str) -> None:
    from dartsfast import candidates, ranks, search, train

    what = VERBS[verb]
    try:
        run = getattr({"search": search, "train": train}.get(verb, candidates), f"{verb}_{kind}")
    except ModuleNotFoundError as error:
        raise InputError(
            f"a {what.noun} needs {error.name}, which is not installed: pip install 'dartsfast[search]'"
        ) from error
    with saying(detail), ranks.joined(config.device):
        result = run(config, resume=resume)
        if not ranks.first():
            return
    if detail != QUIET:
        _print_places(verb, result)
    if result.lesson:
        print(result.lesson)


def _print_places(verb: str, result: Any) -> None:
    print(result.genotype)
    print(f"genotype    {result.out / 'genotype.json'}")
    print(f"pictures    {', '.join(str(result.out / picture) for picture in VERBS[verb].pictures)}")
    if verb == "train":
        print(f"weights     {result.weights}")
    if verb in ("random", "select"):
        print(f"candidates  {result.out / 'candidates.json'}")
    else:
        print(f"checkpoint  {result.checkpoint}")
        print(f"log         {result.out / 'log.jsonl'}  (scalars: tensorboard --logdir {result.out})")
    print(f"report      {result.out / 'report.html'}")


def _compare(args: argparse.Namespace) -> None:
    from dartsfast import compare

    given = dict(vars(args))
    kind, config, out = given.pop("kind"), given.pop("config"), given.pop("out", None)
    del given["run"]
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    result = (compare.compare_cnn if kind == "cnn" else compare.compare_rnn)(config(**given))
    compare.print_comparison(result)
    for file in () if out is None else compare.write_comparison(result, out):
        print(file)


def _explain(args: argparse.Namespace) -> None:
    from dartsfast.explain import explain_cnn, explain_memory, print_explanation

    given = {name: getattr(args, name) for name in EXPLAINED if hasattr(args, name)}
    config, primitives = CNNConfig(**given), getattr(args, "primitives", None)
    passes = explain_cnn(config, primitives)
    print_explanation(passes, getattr(args, "instructions", None))
    if config.plan:
        print(f"{config.plan}: {explain_memory(config, primitives)}")


def _explain_rnn(args: argparse.Namespace) -> None:
    from dartsfast.explain import explain_rnn, print_texts

    if args.words < 1:
        raise InputError(f"words must be above zero, got {args.words}")
    given = {name: getattr(args, name) for name in EXPLAINED_OF_TEXTS if hasattr(args, name)}
    config = RNNConfig(**given)
    passes, fit = explain_rnn(config, args.words)
    print_texts(passes)
    if fit is not None:
        print(f"memory {config.memory}: {fit}")


def _draw(args: argparse.Namespace) -> None:
    from dartsfast.drawing import draw_genotype
    from dartsfast.genotypes import picture_name, resolve_genotype

    genotype = resolve_genotype(args.genotype)
    for file in draw_genotype(genotype, args.out or picture_name(args.genotype)):
        print(file)


def _doctor(args: argparse.Namespace) -> None:
    from dartsfast.doctor import deep_diagnosis, diagnosis

    deep = deep_diagnosis() if args.deep else []
    lines = [*diagnosis(), *deep]
    if args.json:
        print(json.dumps(dict(lines), indent=1))
    else:
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            print(f"{name:<{width}}  {value}")
    if any(not value.startswith("ok") for _, value in deep):
        raise SystemExit(1)
