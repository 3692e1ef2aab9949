"""The ``dartsfast`` command: ``search`` and ``compare`` (each ``cnn`` or ``rnn``), ``draw``, ``doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dartsfast.compare import (
    CompareConfig,
    CompareRNNConfig,
    compare_cnn,
    compare_rnn,
    print_comparison,
    write_comparison,
)
from dartsfast.errors import DivergedError, InputError, SearchStopped
from dartsfast.search.config import CNNConfig, RNNConfig

# Flags of the original command lines that never changed its search; accepted so that those lines run.
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "cnn": {"model_path": str, "drop_path_prob": float},
    "rnn": {"nonmono": int, "alpha": float, "max_seq_len_delta": int, "cuda": None, "single_gpu": None},
}

COMPARISONS: dict[str, tuple[Any, Any]] = {
    "cnn": (CompareConfig, compare_cnn),
    "rnn": (CompareRNNConfig, compare_rnn),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    0; 2 for input that cannot work or a disk that is full; 3 for a search that diverged; 130 for Ctrl-C and
    128 more than its number for another signal that stopped a search (143 for SIGTERM).
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        print(f"dartsfast: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"dartsfast: {error}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"dartsfast: {error}", file=sys.stderr)
        return 3
    except SearchStopped as stopped:
        print(f"dartsfast: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("dartsfast: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dartsfast", description="Differentiable architecture search.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    search = commands.add_parser("search", help="search a cell").add_subparsers(required=True, metavar="KIND")
    configs: dict[str, Any] = {"cnn": CNNConfig, "rnn": RNNConfig}
    for kind, config in configs.items():
        command = search.add_parser(
            kind,
            help=f"search a {kind.upper()} cell",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        _add_options(command, config, kind)
        command.set_defaults(run=_search, kind=kind, config=config)
    compare = commands.add_parser("compare", help="how far two backends are from each other")
    kinds = compare.add_subparsers(required=True, metavar="KIND")
    for kind, (config, run) in COMPARISONS.items():
        command = kinds.add_parser(
            kind,
            help=f"compare two backends on {kind.upper()} searches, to the bit",
            description="Run two backends from one seed on random data, and compare them.",
            argument_default=argparse.SUPPRESS,
        )
        _add_fields(command, config)
        command.add_argument("--out", help="folder for compare.json, compare.png and compare.svg")
        command.set_defaults(run=_compare, config=config, compare=run)
    draw = commands.add_parser("draw", help="draw a cell as PNG and SVG")
    draw.add_argument(
        "genotype",
        help='folder of a run, genotype.json, "Genotype(...)" as a search prints it, or a published cell, '
        "e.g. rnn:DARTS_V2",
    )
    draw.add_argument(
        "--out",
        help="the picture, .png, .svg or .pdf; else PNG and SVG (default: the genotype's name)",
    )
    draw.set_defaults(run=_draw)
    doctor = commands.add_parser("doctor", help="versions, devices, backends")
    doctor.add_argument("--deep", action="store_true", help="also check every operator against its oracle")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_fields(command: argparse.ArgumentParser, config: Any) -> None:
    for field in dataclasses.fields(config):
        flags = [f"--{field.name}"]
        if "_" in field.name:
            flags.append(f"--{field.name.replace('_', '-')}")
        help_ = f"{field.metadata['help']} (default: {field.default!r})".replace("%", "%%")
        if field.default is None:  # yes, no, or left alone
            command.add_argument(*flags, action=argparse.BooleanOptionalAction, help=field.metadata["help"])
        elif isinstance(field.default, bool):
            command.add_argument(*flags, action="store_true", help=help_)
        elif isinstance(field.default, tuple):
            command.add_argument(*flags, nargs=len(field.default), metavar="NAME", help=help_)
        else:
            choices = field.metadata["choices"] or None
            command.add_argument(*flags, type=type(field.default), choices=choices, help=help_)


def _add_options(command: argparse.ArgumentParser, config: Any, kind: str) -> None:
    _add_fields(command, config)
    command.add_argument(
        "--unrolled", action="store_const", const=2, dest="order", help="the same as --order 2"
    )
    command.add_argument("--gpu", type=int, help="the same as --device cuda:GPU")
    command.add_argument("--save", help="the same as --out search-SAVE-TIME")
    command.add_argument(
        "--resume", "--continue_train", nargs="?", const="",
        help="go on with the run in this folder (or in --out), under its own options; "
        "--data says where its data lie now",
    )  # fmt: skip
    for name, type_ in WITHOUT_EFFECT[kind].items():
        kwargs: dict[str, Any] = {"action": "store_true"} if type_ is None else {"type": type_}
        command.add_argument(f"--{name}", help="accepted, without effect, as in the original", **kwargs)


def _search(args: argparse.Namespace) -> None:
    given = dict(vars(args))
    kind, config_cls = given.pop("kind"), given.pop("config")
    del given["run"]
    for name in WITHOUT_EFFECT[kind]:
        if given.pop(name, None) is not None:
            print(f"dartsfast: --{name} has no effect on a search", file=sys.stderr)
    resume = given.pop("resume", None)
    if resume is not None:
        _resume(kind, config_cls, given, resume)
        return
    if "gpu" in given:
        given["device"] = f"cuda:{given.pop('gpu')}"
    if "save" in given:
        given.setdefault("out", f"search-{given.pop('save')}-{time.strftime('%Y%m%d-%H%M%S')}")
        given.pop("save", None)
    _run_search(kind, config_cls(**given), None)


def _resume(kind: str, config_cls: Any, given: dict[str, Any], resume: str) -> None:
    folder = resume or given.get("out") or given.get("save")
    if not folder:
        raise InputError("--resume needs the folder of the run: --resume DIR, or --resume --out DIR")
    if "gpu" in given:
        given["device"] = f"cuda:{given.pop('gpu')}"
    fixed = sorted(set(given) - {"out", "save", "data", "device", "checkpoint_seconds"})
    if fixed:
        raise InputError(
            f"a resumed run keeps its own options: leave out {', '.join('--' + name for name in fixed)}"
        )
    if given.get("data") == config_cls.data:
        raise InputError(
            f"--data {given['data']} is no place where the data of a run can lie now: leave it out"
        )
    here = {name: given[name] for name in ("data", "device", "checkpoint_seconds") if name in given}
    _run_search(kind, config_cls(**here), folder)


def _run_search(kind: str, config: Any, resume: str | None) -> None:
    try:
        from dartsfast import search
    except ModuleNotFoundError as error:
        raise InputError(
            f"a search needs {error.name}, which is not installed: pip install 'dartsfast[search]'"
        ) from error
    result = (search.search_cnn if kind == "cnn" else search.search_rnn)(config, resume=resume)
    print(result.genotype)
    print(f"genotype    {result.out / 'genotype.json'}")
    print(f"pictures    {result.out / 'cell.png'}, {result.out / 'alphas.png'}, {result.out / 'curves.png'}")
    print(f"checkpoint  {result.checkpoint}")
    print(f"log         {result.out / 'log.jsonl'}  (scalars: tensorboard --logdir {result.out})")


def _compare(args: argparse.Namespace) -> None:
    given = dict(vars(args))
    config, compare, out = given.pop("config"), given.pop("compare"), given.pop("out", None)
    del given["run"]
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    result = compare(config(**given))
    print_comparison(result)
    for file in () if out is None else write_comparison(result, out):
        print(file)


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
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")
    if any(not value.startswith("ok") for _, value in deep):
        raise SystemExit(1)
