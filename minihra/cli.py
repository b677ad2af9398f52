"""The command `minihra`: its arguments, and how it reports a mistake."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import minihra
from minihra.adapters.parts import CELLS, HEADS
from minihra.allocator import keep_freed_memory
from minihra.config import SIZES
from minihra.device import DEVICES, is_lost_gpu

BACKBONE = "what `minihra pretrain` wrote, the folder of an open checkpoint, or hama"
NEED_LESS = (
    "`minihra inspect` tells what a model takes; shorter recordings, smaller batches and `--recompute` need less"
)


MODULES = {
    "check": "checks",
    "demo": "demo",
    "inspect": "inspection",
    "bench": "bench",
    "pretrain": "training_commands",
    "adapt": "training_commands",
}
"""Where a command is, if not in commands.py."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status.

    0 = done, 1 = a check failed, 2 = a mistake of the user, which is told in one line, 130 = interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows has an encoding that cannot write phonemes
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    arguments = parser().parse_args(argv)
    keep_freed_memory()
    from minihra.threads import set_threads, threads
    from minihra.train import Interrupted

    try:
        set_threads(threads() if arguments.threads is None else arguments.threads)
        status = arguments.run(arguments) or 0
        sys.stdout.flush()  # here and not at exit, where a reader that has left would be a traceback
        return status
    except Interrupted as stop:
        print(f"minihra: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        why = str(error).rstrip(".")
        print(f"minihra: memory ran out{f' ({why})' if why else ''}; {NEED_LESS}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"minihra: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_lost_gpu(error):
            raise
        print(f"minihra: the GPU failed or is gone ({error}); a run's last checkpoint is whole", file=sys.stderr)
        return 2


def command(name: str) -> Callable[[argparse.Namespace], int | None]:
    """Return the function of a command, imported when it runs: `minihra --help` needs none of it."""

    def run(arguments: argparse.Namespace) -> int | None:
        from importlib import import_module

        return getattr(import_module(f"minihra.{MODULES.get(name, 'commands')}"), f"run_{name}")(arguments)

    return run


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="minihra",
        description="Hierarchical Recurrent Adapters for frozen Conformers, every backward pass written by hand.",
    )
    top.add_argument("--version", action="version", version=f"minihra {minihra.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        one.set_defaults(run=command(name))
        one.add_argument(
            "--threads", metavar="N", help="that compute (default: MINIHRA_THREADS, else one for each processor)"
        )
        return one

    demo = add("demo", "pre-train, freeze and adapt on built-in voices, with controls", "No download; a few minutes.")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default demo)")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="of everything random (default 1)")
    demo.add_argument("--resume", action="store_true", help="go on with a demo that was broken off")
    add_device(demo)

    pretrain = add("pretrain", "train a backbone from nothing", "It takes the sample rate that most recordings have.")
    add_rows(pretrain)
    add_training(pretrain, "25")
    add_device(pretrain)
    add_graph(pretrain)
    group = pretrain.add_mutually_exclusive_group()
    group.add_argument("--size", default="tiny", help=f"a named size: {', '.join(SIZES)} (default tiny)")
    group.add_argument("--config", type=Path, metavar="FILE.toml", help="sections [model], [features], [training], ...")
    pretrain.add_argument(
        "--valid",
        action="append",
        default=[],
        metavar="WHERE",
        help="rows of the manifest that draw curves in the log, such as split=test; they choose nothing",
    )

    adapt = add("adapt", "train one adapter with a head for each task, on a frozen backbone")
    adapt.add_argument("--backbone", required=True, metavar="B", help=BACKBONE)
    add_rows(adapt)
    add_training(adapt, "20, at least 500 steps; for an open model 16, at least 100")
    adapt.add_argument("--task-by", metavar="KEY", help="the field of the manifest that names the task, as speaker")
    add_adapter(adapt)
    adapt.add_argument("--limit-per-task", type=int, metavar="N", help="only N random recordings of each task")
    adapt.add_argument("--adapter", type=Path, metavar="DIR", help="add to this adapter")
    adapt.add_argument("--like", metavar="TASK", help="new heads start as that of this task of --adapter, not at zero")
    adapt.add_argument("--freeze-controller", action="store_true", help="train new heads alone; the old ones stay")
    add_recompute(adapt)
    add_device(adapt)
    add_graph(adapt)

    evaluate = add("eval", "count the errors of a backbone, or of a backbone with an adapter")
    evaluate.add_argument("--backbone", required=True, metavar="B", help=BACKBONE)
    evaluate.add_argument("--adapter", type=Path, metavar="DIR", help="what `minihra adapt` wrote")
    add_rows(evaluate)
    evaluate.add_argument("--task-by", metavar="KEY", help="the field that names the task (default: the adapter's)")
    evaluate.add_argument("--unknown", choices=["error", "base"], default="error", help="what to do without a head")
    add_beam(evaluate)
    add_device(evaluate)
    add_graph(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument("--hypotheses", type=Path, metavar="FILE", help="write what was understood, JSONL")

    transcribe = add("transcribe", "write down recordings")
    transcribe.add_argument("--backbone", required=True, metavar="B", help=BACKBONE)
    transcribe.add_argument("--adapter", type=Path, metavar="DIR", help="what `minihra adapt` wrote")
    transcribe.add_argument("--task", metavar="NAME", help="whose head to use; base = the frozen backbone")
    add_beam(transcribe)
    add_device(transcribe)
    add_graph(transcribe)
    transcribe.add_argument("audio", type=Path, nargs="+", metavar="AUDIO")

    inspect = add(
        "inspect",
        "tell what a backbone is, what of it can be used, and how much memory it takes",
        "Of an open checkpoint only the headers of the tensors are read, so that the largest takes a second. What is "
        "missing from a folder is told, and does not stop it. The memory is that of recognising recordings and of a "
        "step of adaptation, beside the program's own 150 MB; `minihra adapt` takes about 12 s of sound in a step on "
        "an open model, and 50 s, as --batch 5 of 10 s, on one of minihra's own.",
    )
    inspect.add_argument("backbone", metavar="BACKBONE", help=BACKBONE)
    inspect.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each recording (default 10)")
    inspect.add_argument("--batch", type=int, default=1, metavar="B", help="recordings together (default 1)")
    add_adapter(inspect)
    add_recompute(inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object; memory in bytes")

    params = add("params", "count the parameters of adapters of any size", "Nothing is allocated.")
    params.add_argument("--width", type=int, default=1536, help="C of the backbone (default 1536, that of USM)")
    params.add_argument("--layers", type=int, default=32, help="L of the backbone (default 32)")
    params.add_argument(
        "--backbone-size", type=whole_number, default=2_000_000_000, metavar="N", help="its parameters (default 2e9)"
    )
    params.add_argument(
        "--tasks", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="N", help="a row for each number"
    )
    add_adapter(params)

    manifest = add("manifest", "write the manifest of a folder of name.wav and name.txt", "A subfolder is a speaker.")
    manifest.add_argument("folder", type=Path, metavar="FOLDER")
    manifest.add_argument("--skip-bad", action="store_true", help="leave recordings without a text out")

    add(
        "check",
        "check every hand-written backward against central differences",
        "In float64: every layer, every block and the whole model. Exit status 1 if one is wrong.",
    )

    bench = add("bench", "time steps and their parts, alone or beside a rival", "The twins are checked first.")
    bench.add_argument(
        "--rival", metavar="FILE.py", help="with a function runs_of(row, inputs), as tests/torch_twin.py"
    )
    add_device(bench)
    bench.add_argument("--rows", nargs="+", default=[], metavar="WORD", help="only rows with all these in their names")
    bench.add_argument("--list", action="store_true", help="show the rows, and time none")
    bench.add_argument("--turns", type=int, default=7, metavar="N", help="measurements of each side (default 7)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the results there, after each row")
    return top


def whole_number(text: str) -> int:
    """Return the number that 2e9 or 2000000000 stands for."""
    return int(float(text))


def add_rows(one: argparse.ArgumentParser) -> None:
    """Add the arguments that choose rows of a manifest."""
    one.add_argument("--manifest", type=Path, required=True, metavar="M", help="JSONL: audio_filepath, text, ...")
    one.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="only rows whose field has one of the values; KEY!=V1,V2: none of them; may be repeated",
    )
    one.add_argument(
        "--split",
        action="append",
        dest="where",
        type=lambda name: f"split={name}",
        metavar="NAME",
        help="short for --where split=NAME",
    )
    one.add_argument("--skip-bad", action="store_true", help="go on without rows that are wrong, and say how many")


def add_device(one: argparse.ArgumentParser) -> None:
    """Add the arguments that say where to compute."""
    one.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where to compute: cpu, cuda = one NVIDIA GPU, auto = a GPU if a kernel runs there (default cpu)",
    )
    one.add_argument(
        "--tf32", action="store_true", help="on a GPU, products of 10-bit factors: faster, and not quite float32"
    )


def add_graph(one: argparse.ArgumentParser) -> None:
    """Add --graph."""
    one.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="on a GPU, start each batch at once, as a CUDA graph (default there: yes)",
    )


def add_beam(one: argparse.ArgumentParser) -> None:
    """Add the argument of the decoder."""
    one.add_argument("--beam", type=int, metavar="N", help="prefix beam search of this width (default: greedy)")


def add_training(one: argparse.ArgumentParser, epochs: str) -> None:
    """Add the arguments of a training run."""
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="the run: checkpoints and log.jsonl")
    one.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    length = one.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help=f"times through the data (default {epochs})")
    length.add_argument("--steps", type=int, metavar="N", help="batches, in place of epochs")
    one.add_argument("--seed", type=int, metavar="N", help="of everything random (default 1)")


def add_recompute(one: argparse.ArgumentParser) -> None:
    """Add the switch between time and memory."""
    one.add_argument(
        "--recompute", action="store_true", help="a step of adaptation computes layers twice, for much less memory"
    )


def add_adapter(one: argparse.ArgumentParser) -> None:
    """Add the arguments of an adapter's shape."""
    one.add_argument("--controller", default="gru", help=f"the cell: {', '.join(CELLS)} (default gru)")
    one.add_argument("--head", default="linear", help=f"{', '.join(HEADS)} (default linear)")
    one.add_argument("--state-size", type=int, default=32, metavar="H", help="of the controller (default 32)")
    one.add_argument("--bottleneck", type=int, metavar="R", help="inner width of ffn heads (default: the state size)")
