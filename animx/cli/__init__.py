"""The command line: parses, makes one call into the library, and turns errors into one line and an exit code.

`run(arguments)` is the whole program but for process-wide things (signals, closed pipes), which `animx.__main__` adds.
Commands are imported when they are asked for: `animx --help` shows them from the table below and loads none.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from animx.cli.options import CONTEXT
from animx.cli.output import Output
from animx.errors import (
    EXIT_CLOSED_PIPE,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    AnimxError,
    BatchError,
    OutOfMemoryError,
    UsageError,
    nearest,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "render": ("animx.cli.render:render", "Make the character of a picture move like the person of a video."),
    "pose": ("animx.cli.pose:pose", "Extract, retarget, draw, convert and check poses."),
    "presets": ("animx.cli.presets:presets", "List, show, check and preview rescale presets."),
    "batch": ("animx.cli.batch:batch", "Render many jobs from a list, in shards or on a cluster."),
    "weights": ("animx.cli.weights:weights", "List, fetch, check and convert the weights of the full model."),
    "data": ("animx_trainer.data_command:data", "Prepare training data, collect poses, look at augmentations."),
    "train": ("animx_trainer.command:train", "Train the full model, on one process or many."),
    "bench": ("animx.cli.bench:bench", "Measure, each speed only after its correctness check."),
    "doctor": ("animx.cli.doctor:doctor", "Say what is installed, what is missing and how to get it."),
    "plugins": ("animx.cli.plugins:plugins", "List what is loaded and from where."),
}
"""Built-in commands: where each lives and its line in the help."""


_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click 8.1 shows the help by itself


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt, so that nothing partial is left.  A text of its own is said."""


class Group(click.Group):
    """A group that names the nearest command when it does not know one."""

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """Find the command of `args`."""
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            known = self.list_commands(context)
            where = "" if context.parent is None else f" of '{context.command_path}'"
            raise UsageError(
                f"unknown command '{name}'{where}.{nearest(name, known)} Known: {', '.join(known)}. "
                f"See: {context.command_path} --help"
            )
        return super().resolve_command(context, args)


class LazyGroup(Group):
    """The top group: built-in commands from `COMMANDS`, others from the plugin door, all imported on demand."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of all commands, built-ins first."""
        from animx import plugins

        return [*COMMANDS, *(name for name in plugins.names("commands") if name not in COMMANDS)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import the command `name`, or None when there is none."""
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            from animx import plugins

            plugin = plugins.find("commands").get(name)
            if plugin is None:
                return None
            found = plugin.load()
            if not isinstance(found, click.Command):
                raise UsageError(f"plugin '{name}' of {plugin.origin}: {plugin.target} is no click command. Update it")
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing any."""
        from animx import plugins

        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        others = [plugin for name, plugin in plugins.find("commands").items() if name not in COMMANDS]
        if others:
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(plugin.name, f"from {plugin.origin}") for plugin in others])


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        import animx

        click.echo(f"animx {animx.__version__}")
        context.exit()


@click.group(
    "animx",
    cls=LazyGroup,
    context_settings=CONTEXT,
    epilog="\b\nExamples:\n"
    "  animx render ref.png dance.mp4                  writes ref_dance.mp4\n"
    "  animx render ref.png dance.mp4 --preset chibi -o out.webm --background transparent\n"
    "  animx pose extract dance.mp4 -o - | animx pose retarget - --preset no-arms -o - \\\n"
    "      | animx render ref.png - -o out.mp4\n\n"
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or output, 4 no figure, 5 memory, 6 weights, 7 batch.",
)
@click.option("-V", "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version,
              help="Show the version.")  # fmt: skip
def cli() -> None:
    """Animate a character: one picture and one driving video in, the character moving like the person out."""


def run(arguments: Sequence[str]) -> int:
    """Run `animx` with `arguments` (without the program's name) in this process and return its exit code.

    Writes to `sys.stdout` and `sys.stderr`.  Raises nothing but what ends an interpreter.
    """
    args = list(arguments)
    with Output() as output:
        try:
            with cli.make_context("animx", args, obj=output) as context:
                cli.invoke(context)
            sys.stdout.flush()
            return 0
        except click.exceptions.Exit as done:
            return done.exit_code
        except BaseException as error:
            if isinstance(error, (SystemExit, GeneratorExit)):
                raise
            # A wrong option ends the parsing before these two are stored.
            output.verbose = output.verbose or bool({"-v", "--verbose"} & set(arguments))
            return report(output, error, as_json=output.as_json or "--json" in arguments)


def report(output: Output, error: BaseException, as_json: bool) -> int:
    """Say what `error` means in one line (with `-v` also its traceback) and return the exit code."""
    message, code = explain(error)
    if code == EXIT_CLOSED_PIPE:
        return code
    if isinstance(error, _NO_ARGUMENTS):
        output.say(error.ctx.get_help() if error.ctx is not None else message)
        return code
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        output.say(f"animx: {message}")
        return code
    if output.verbose:
        output.say("".join(traceback.format_exception(error)).rstrip())
    elif code == 1 and not isinstance(error, AnimxError):
        message += " Run again with -v for the traceback"
    data = error.data if isinstance(error, BatchError) else None
    output.error(message, type(error).__name__, code, as_json=as_json, data=data)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """The one line and the exit code for an error."""
    if isinstance(error, AnimxError):
        return str(error), error.exit_code
    if isinstance(error, _NO_ARGUMENTS):
        return "no command given", 2
    if isinstance(error, click.ClickException):
        return _usage(error), 2
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return str(error) or "interrupted; nothing partial was left", EXIT_INTERRUPTED
    if isinstance(error, Terminated):
        return str(error) or "terminated; nothing partial was left", EXIT_TERMINATED
    if isinstance(error, BrokenPipeError):
        return "", EXIT_CLOSED_PIPE
    if _is_out_of_memory(error):
        return (
            "out of memory. Try a smaller --size or a shorter --duration; when training, a smaller batch",
            OutOfMemoryError.exit_code,
        )
    if type(error).__name__ == "ProviderError":  # of animx_kernels, which loads torch
        return f"kernel plugin {error}. Leave it out of ANIMX_KERNELS", 2
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        if error.errno == errno.ENOENT:
            return "the working folder does not exist any more. Change to another one", 3
        return f"cannot write to stdout: {error.strerror}", 3
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}", 3
    if _is_broken_install(error):
        return f"a library cannot be loaded: {' '.join(str(error).split())}. To see how to mend it: animx doctor", 2
    from animx.provenance import bug_report

    return bug_report(error), 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in Python, on a device, or where torch allocates on the CPU (torch is not imported)."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: " in str(error)


def _is_broken_install(error: BaseException) -> bool:
    """Whether a library beneath animx is missing or does not load (a system library is missing, a half install)."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("animx")
    return isinstance(error, OSError) and "shared object" in str(error)


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        known = (
            [name for parameter in context.command.get_params(context) for name in parameter.opts] if context else []
        )
        near = nearest(error.option_name, [name for name in known if name.startswith("--")])
        message = f"unknown option '{error.option_name}'{near or '.'}".replace("' Did", "'. Did")
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        message = f"missing {error.param.make_metavar(context) if context else error.param.name}"
    path = context.command_path if context is not None else "animx"
    return f"{message}{'' if message.endswith('?') else '.'} See: {path} --help"
