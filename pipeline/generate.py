"""Talk to a trained model.

python -m pipeline.generate --prompt "Book a table for two"    one answer, as it is written
python -m pipeline.generate --prompts questions.txt            many answers, in batches
python -m pipeline.generate                                    a conversation
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipeline import environment
from pipeline.errors import Broken, Interrupted, PipelineError, Refused
from pipeline.process import Event
from pipeline.prompts import Prompt, as_prompt, read_prompts
from pipeline.speaker import Speaker, open_speaker
from pipeline.trained import Trained, open_trained

LEAVE = "/exit"
SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0, the default, takes the most likely token every time"),
    "top_p": (float, "draw from the fewest tokens whose probabilities sum to this (default: 1)"),
    "top_k": (int, "draw from so many of the most likely tokens (default: 0, all)"),
    "min_p": (float, "draw from tokens this share as likely as the likeliest (default: 0, all)"),
    "max_tokens": (int, "longest answer (default: 256)"),
    "seed": (int, "same seed, same answer (default: another one each time)"),
}
"""The flags that set a field of `stages.generation.sampling.Sampling`, where they are given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, as `python -m pipeline` has them."""
    options = _parser().parse_args(argv)
    try:
        _run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _report(Interrupted(signal.SIGINT))
    except Exception as error:
        return _report(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="answer each line of a text "
                      "file, or each `prompt` or `messages` of a .jsonl file")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="write the answers to --prompts here, as JSONL")
    add("--run", default="latest", help="a run directory, its name in `python -m pipeline.runs ls`,"
        " or latest (the default)")  # fmt: skip
    add("--name", help="with latest: only runs of this name")
    add("--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    add("--base", action="store_true", help="the untuned model")
    add("--system", metavar="TEXT", help="the system turn of each conversation")
    for field, (kind, text) in SAMPLING.items():
        add(_flag(field), type=kind, help=text)
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be given twice "
        "and more")  # fmt: skip
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.out is not None and options.prompts is None:
        raise Refused("--out", "goes with --prompts", "redirect the output instead: > FILE")
    environment.require_mlx()
    trained = open_trained(options.run, options.outputs, options.name, base=options.base, say=_say)
    if options.prompts is not None:
        _answer_all(options, trained)
    elif options.prompt is not None:
        row = {"prompt": options.prompt}
        prompt = as_prompt(row, "--prompt", trained.chat, options.system)
        with open_speaker(trained, _sampling(options)) as speaker:
            _answer(speaker, prompt, [])
    else:
        with open_speaker(trained, _sampling(options)) as speaker:
            _converse(speaker, trained, options.system)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    fields = {field: getattr(options, field) for field in (*SAMPLING, "stop")}
    return {field: value for field, value in fields.items() if value is not None}


def _answer(speaker: Speaker, prompt: Prompt, pieces: list[str]) -> None:
    """Write the answer as it comes, also to `pieces`, and then its speed."""

    def on_text(event: Event) -> None:
        pieces.append(event["text"])
        sys.stdout.write(event["text"])
        sys.stdout.flush()

    try:
        speed = speaker.answer([prompt], on_text)
    finally:
        if pieces:
            sys.stdout.write("\n")
    _say(_speed(speed))


def _answer_all(options: argparse.Namespace, trained: Trained) -> None:
    """Write a line for each prompt, in order, as soon as those before it are answered."""
    prompts, rows = read_prompts(options.prompts, chat=trained.chat, system=options.system)
    early: dict[int, Event] = {}
    waiting = iter(enumerate(rows))
    index, row = next(waiting)

    with _target(options.out) as target, open_speaker(trained, _sampling(options)) as speaker:

        def on_text(event: Event) -> None:
            nonlocal index, row
            early[event["index"]] = event
            while index in early:
                said = early.pop(index)
                answer = {"answer": said["text"], "finish_reason": said["finish_reason"]}
                target.write(json.dumps({**row, **answer}, ensure_ascii=False) + "\n")
                target.flush()
                index, row = next(waiting, (-1, {}))

        speed = speaker.answer(prompts, on_text)
    _say(f"{len(prompts):,} answers, {_speed(speed)}")


def _converse(speaker: Speaker, trained: Trained, system: str | None) -> None:
    """Answer line after line until the input ends; Ctrl-C ends an answer, not the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (makes input() a line that can be edited)
    asking = "> " if sys.stdin.isatty() else ""
    if asking:
        what = "the untuned model" if "adapter" not in trained.handed_over else trained.name
        _say(f"talking to {what}: {LEAVE} or Ctrl-D leaves, Ctrl-C ends an answer")
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input(asking)
        except EOFError:
            return
        if line.strip() == LEAVE:
            return
        if not line.strip():
            continue
        asked = {"role": "user", "content": line}
        row = {"messages": [*messages, asked]} if trained.chat else {"prompt": line}
        pieces: list[str] = []
        try:
            _answer(speaker, as_prompt(row, "the conversation", trained.chat, system), pieces)
        except Interrupted:
            _say("interrupted")
        except Refused as error:
            _say("\n".join(_lines(error)))
        if pieces:
            messages += [asked, {"role": "assistant", "content": "".join(pieces)}]


@contextmanager
def _target(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        found = f"cannot be written: {error.strerror or error}".lower()
        raise Refused(str(path), found, "name another file") from None
    with file:
        yield file


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _speed(metrics: Mapping[str, float]) -> str:
    tokens, rate = metrics["generate.tokens"], metrics["generate.tokens_per_second"]
    return f"{tokens:,.0f} tokens, {rate:,.0f} tokens/s"


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _lines(error: PipelineError) -> list[str]:
    if isinstance(error, Interrupted):
        return ["interrupted"]
    if error.where in SAMPLING or error.where == "stop":
        error.where = _flag(error.where)
    return error.lines()


def _report(error: Exception) -> int:
    if not isinstance(error, PipelineError):
        error = Broken("generate", repr(error), traceback.format_exc())
    _say("\n".join(_lines(error)))
    return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
