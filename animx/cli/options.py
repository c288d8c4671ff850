"""Options and parameter types that several commands share.

`@command` makes a click command whose function gets the `Output` first; it adds `--json`, `--progress`, `--quiet` and
`--verbose`, and with `writes=True` also `-y/--overwrite` and `-n/--no-overwrite` (the function then gets `overwrite`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from animx.cli.output import Output
from animx.errors import UsageError, nearest

Function = Callable[..., Any]

if TYPE_CHECKING:

    class _TextType(click.ParamType[str]):
        """A parameter that becomes text."""

    class _AnyType(click.ParamType[Any]):
        """A parameter that becomes a value of animx."""

else:
    _TextType = _AnyType = click.ParamType  # older clicks have no type parameter

PROGRESS = ("auto", "bar", "json", "none")


def _output(context: click.Context) -> Output:
    root = context.find_root()
    if not isinstance(root.obj, Output):
        root.obj = Output()
    return root.obj


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(_output(context), name, value)

    return callback


def _common(function: Function) -> Function:
    options = [
        click.option("--json", is_flag=True, is_eager=True, expose_value=False, callback=_store("as_json"),
                     help="Write one result object to stdout."),
        click.option("--progress", type=Choice(PROGRESS), is_eager=True, expose_value=False,
                     callback=_store("progress_mode"), metavar="HOW",
                     help="Progress on stderr: auto, bar, json (one object a line) or none.  [auto]"),
        click.option("-q", "--quiet", is_flag=True, is_eager=True, expose_value=False, callback=_store("quiet"),
                     help="Say nothing but errors."),
        click.option("-v", "--verbose", is_flag=True, is_eager=True, expose_value=False, callback=_store("verbose"),
                     help="Say more; on an error, add the traceback."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _writing(function: Function) -> Function:
    function = click.option("-n", "--no-overwrite", is_flag=True, help="Refuse to replace a file (the default).")(
        function
    )
    return click.option("-y", "--overwrite", is_flag=True, help="Replace files that exist.")(function)


def command(
    name: str, *, writes: bool = False, examples: tuple[str, ...] = (), **attributes: Any
) -> Callable[[Function], click.Command]:
    """Make the click command `name` of a function `(out: Output, **options)`."""

    def wrap(function: Function) -> click.Command:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            context = click.get_current_context()
            output = _output(context)
            output.begin(context.command_path)
            for parameter in context.command.params:
                if values.get(parameter.name or "") == "":
                    shown = (
                        parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.make_metavar(context)
                    )
                    raise UsageError(f"{shown} '': names nothing. See: {context.command_path} --help")
            if writes and values.pop("no_overwrite") and values["overwrite"]:
                raise UsageError("--overwrite and --no-overwrite cannot be given together. Leave one out")
            function(output, **values)

        decorated = _common(_writing(run) if writes else run)
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None
        made = click.command(name, cls=Command, epilog=epilog, context_settings=CONTEXT, **attributes)
        return made(decorated)

    return wrap


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Command(click.Command):
    """A command whose first option section is its own, with the options of all commands at the end."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then those that every command takes."""
        shared = {"--json", "--progress", "--quiet", "--verbose", "--help", "--overwrite", "--no-overwrite"}
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Argument):
                continue
            record = parameter.get_help_record(context)
            if record is not None:
                (common if shared & set(parameter.opts) else own).append(record)
        for title, records in (("Options", own), ("Options of every command", common)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Choice(_TextType):
    """One of a few words; a wrong one is refused with the nearest."""

    name = "choice"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        """Accept `value` when it is one of the words."""
        if value in self.words:
            return str(value)
        option = parameter.opts[-1] if parameter is not None else "value"
        raise UsageError(f"{option} '{value}': use {_or(self.words)}.{nearest(str(value), self.words)}")

    def shell_complete(self, context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
        """The words that begin with what was typed."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Parsed(_AnyType):
    """A value read by a function of `animx.times`, which is imported only when the option is used."""

    def __init__(self, name: str, parser: str) -> None:
        self.name = name
        self._parser = parser

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Read the value; the refusal names the option."""
        if not isinstance(value, str):
            return value
        from animx import times

        return getattr(times, self._parser)(value, parameter.opts[-1] if parameter is not None else self.name)


TIME = Parsed("time", "parse_time")
FPS = Parsed("rate", "parse_fps")
SIZE = Parsed("size", "parse_size")


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def several(options: list[Function]) -> Function:
    """One decorator of many options, shown in the order of the list."""

    def wrap(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


retargeting = several(
    [
        click.option("--preset", "presets", multiple=True, metavar="NAME|FILE",
                     help="Rescale preset; repeat to apply several in order. See: animx presets list"),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE",
                     help="Rescale a bone group (legs=0.5), or set an engine option (ENGINE.OPTION=VALUE)."),
        click.option("--drop", multiple=True, metavar="GROUP", help="Leave out a bone group or joint (arms)."),
        click.option("--add", multiple=True, metavar="GROUP", help="Invent a bone group where it is missing."),
        click.option("--align", type=Choice(("robust", "released", "none")), default="robust", metavar="HOW",
                     help="Fit the driving poses to the reference: robust, released or none.  [robust]"),
    ]
)  # fmt: skip
"""`--preset`, `--set`, `--drop`, `--add`, `--align`."""

extraction = several(
    [
        click.option("--backend", metavar="NAME", help="Pose backend.  [best installed; see: animx doctor]"),
        click.option("--person", default="largest", metavar="WHO",
                     help="Whom to follow: largest, first or track:N.  [largest]"),
        click.option("--smooth/--no-smooth", default=True, help="Smooth the joints' paths over time.  [smooth]"),
    ]
)  # fmt: skip
"""`--backend`, `--person`, `--smooth`."""

ranges = several(
    [
        click.option("--start", type=TIME, metavar="TIME", help="Begin here: seconds, hh:mm:ss.fff or frames (120f)."),
        click.option("--end", type=TIME, metavar="TIME", help="End here (not included)."),
        click.option("--duration", type=TIME, metavar="TIME", help="Length, instead of --end."),
        click.option("--fps", type=FPS, metavar="RATE", help="Frame rate: 25, 29.97 or 30000/1001.  [the clip's own]"),
    ]
)  # fmt: skip
"""`--start`, `--end`, `--duration`, `--fps`."""


def split_sets(sets: tuple[str, ...]) -> tuple[dict[str, float], dict[str, Any]]:
    """Split `--set` values into bone groups (`legs=0.5`) and engine options (`puppet.cell=12`)."""
    from animx.config import parse_override
    from animx.retarget.preset import parse_rescale

    groups = [text for text in sets if "." not in text.partition("=")[0] or text.startswith("rescale.")]
    engines: dict[str, Any] = {}
    for text in sets:
        if text not in groups:
            path, value = parse_override(text)
            engines[".".join(path)] = value
    return parse_rescale(groups), engines


def operations(texts: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """`--op smooth:seconds=0.4,order=2` as (name, parameters); the operation must exist."""
    from animx import plugins
    from animx.config import parse_override

    found = []
    for text in texts:
        name, _, rest = text.partition(":")
        plugins.load("retarget_ops", name)
        pairs = [parse_override(pair) for pair in rest.split(",") if pair]
        found.append((name, {".".join(path): value for path, value in pairs}))
    return found


def words(values: tuple[str, ...]) -> tuple[str, ...]:
    """`--drop a,b --drop c` as (a, b, c)."""
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())
