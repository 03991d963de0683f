"""The command line: validate everything first, then let Hydra make the run directory and run.

python -m pipeline model=qwen lora.rank=16
python -m pipeline -m lora.rank=4,8,16
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from pipeline import job, launched, schema, sweep
from pipeline.compose import opened
from pipeline.configure import configure
from pipeline.errors import Interrupted, Refused, Unable
from pipeline.job import Session
from pipeline.overrides import Words, quoted, read
from pipeline.parent import Parent
from pipeline.schema import Config

USAGE = "%(prog)s [flags] [key=value ...]   (--help shows what there is)"

Planned = tuple[Words, Config, Parent | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a command line means."""

    planned: list[Planned]
    """Its configurations; of a search some, with the ends of each range."""
    searched: Words | None = None
    """What a search is given, the sweeper's own ranges included."""


def main() -> None:
    """Run this process's command line and exit with the code that its end deserves."""
    _settle_streams()
    schema.register()
    try:
        _require_directory()
        code = _command(_parse(sys.argv[1:]))
    except KeyboardInterrupt:
        code = job.report(Interrupted(2))
    except BrokenPipeError:
        code = 0  # The reader (`| head`) has seen enough.
    except Exception as error:
        code = job.report(error)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would complain when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _require_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        found = "has been deleted or moved while this shell stood in it"
        raise Unable("working directory", found, "cd to one that exists") from None


def _settle_streams() -> None:
    """Let a run go on whatever becomes of what shows it: closed, full, or unable to show `→`."""
    logging.raiseExceptions = False
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (never closed)
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    parser.prog, parser.usage = "python -m pipeline", USAGE
    args = parser.parse_intermixed_args(argv)
    modes = [args.run, args.multirun, args.cfg, args.info, args.shell_completion]
    if sum(map(bool, modes)) > 1:
        parser.error("only one of --run, --multirun, --cfg, --info, --shell-completion at a time")
    if args.resolve and not (args.cfg or args.help):
        parser.error("--resolve goes with --cfg")
    if args.config_path:
        parser.error("--config-path is not used here; --config-dir adds your own options")
    if args.experimental_rerun:
        parser.error(f"a run is run again by run={args.experimental_rerun}")
    return args


def _command(args: argparse.Namespace) -> int:
    session = Session(args)
    place = launched.place()
    shows = args.help or args.cfg or args.info
    if place and not place.leads and (shows or args.shell_completion or args.hydra_help):
        return 0
    as_it_is = shows and not args.overrides and not args.config_dir
    if args.shell_completion or args.hydra_help or as_it_is:
        return _hydra(session, sys.argv[1:])
    checked = _check(args)
    if shows:
        return _hydra(session, sys.argv[1:])
    if place and (args.multirun or checked.searched or len(checked.planned) > 1):
        found = "found a sweep, and launched processes train one adapter together"
        raise Refused("mlx.launch", found, "start the sweep without mlx.launch")
    if place and not place.leads:
        return _follow(checked, place)
    if checked.planned[0][1].dry_run:
        return _dry_run(checked)
    mode = ["--multirun"] if args.multirun else []
    argv = [*session.flags(), *mode, *_pin(args.overrides, *checked.planned[0])]
    if checked.searched:
        from pipeline import search  # Optuna takes a while to import

        configs = [config for _, config, _ in checked.planned]
        return search.run(configs, checked.searched, session, lambda: _hydra(session, argv))
    code = _hydra(session, argv)
    if session.trials:
        trials = sweep.own_overrides(session.trials)
        sweep.show(trials, session.objective, sweep=session.directory)
    return code


def _check(args: argparse.Namespace) -> Checked:
    """Compose every configuration of the command line; refuse before Hydra creates anything."""
    sweeping = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    with opened(args.config_dir, args.config_name or "config") as composer:
        words = read(args.overrides, composer.loader, sweeping=sweeping)
        composed = composer.compose(sweep.first(words))
        if args.cfg and composed.config.run is not None:
            raise Refused("--cfg", "does not show what run= adds", "dry_run=true does")
        if args.help or args.cfg or args.info:
            return Checked(planned=[])
        sweep.check(words, composed, sweeping=sweeping)
        if not sweeping:
            return Checked(planned=[(words, *configure(composed, words, composer))])
        words = sweep.space(words, composed, composer)
        trials = sweep.combinations(words, composed)
        return Checked(
            planned=[
                (trial, *configure(composer.compose(trial), trial, composer)) for trial in trials
            ],
            searched=words if sweep.searches(composed) else None,
        )


def _follow(checked: Checked, place: launched.Place) -> int:
    """Train beside the first process, which alone shows and records."""
    from pipeline.follower import follow

    [(_, config, parent)] = checked.planned
    if not config.dry_run:
        follow(config, place, parent)
    return 0


def _dry_run(checked: Checked) -> int:
    from pipeline.explain import explain

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    planned = checked.planned
    if checked.searched:
        sys.stdout.write(f"{sweep.announcement(checked.searched, planned[0][1])}; one of them:\n\n")
        planned = planned[:1]
    for number, (words, config, parent) in enumerate(planned):
        if len(planned) > 1:
            given = " ".join(str(override.input_line) for override in words.overrides)
            sys.stdout.write(f"\ntrial {number}: {given}\n")
        explain(config, parent=parent)
    return 0


def _pin(given: Sequence[str], words: Words, config: Config, parent: Parent | None) -> list[str]:
    """Fix what `run=` means: `latest` may move during a sweep, and the run's name is inherited."""
    if parent is None:
        return list(given)
    directory = quoted(str(parent.directory.resolve()))
    kept = [word for word in given if word.partition("=")[0] != "run"]
    name = [] if "name" in words.given else [f"name={config.name}"]
    return [*kept, f"run={directory}", *name]


def _hydra(session: Session, argv: list[str]) -> int:
    """Give the command line to Hydra; return the exit code of the worst that happened."""

    @hydra.main(config_path="pkg://conf", config_name="config", execution_whitelist=("stages.*",))
    def pipeline(cfg: DictConfig) -> float:
        return job.run(cfg, session)

    given, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        pipeline()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    finally:
        sys.argv = given
    return max(code, session.exit_code)
