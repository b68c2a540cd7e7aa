"""The `privfr` command."""

from __future__ import annotations

import os
import sys

import typer

from privfr_cli import data, embed, evaluate, imposters, info, run, verify

app = typer.Typer(
    name="privfr",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train a face-recognition model together; no face, and no single client's model, leaves its owner.",
)
app.command("run")(run.command)
app.command("evaluate")(evaluate.command)
app.command("verify")(verify.command)
app.command("embed")(embed.command)
app.add_typer(data.app, name="data")
app.add_typer(imposters.app, name="imposters")
app.command("info")(info.command)

# What the command line's own parser raises: click's ClickException, which newer typer carries within itself.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line; what the user can mend is told in one line, with exit code 2."""
    from privfr.errors import PrivfrError

    arguments = sys.argv[1:] or ["--help"]
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except PrivfrError as error:
        _refuse(str(error))
    except _UsageError as error:
        _refuse(f"{error.format_message()} (privfr --help)")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone; leave no second complaint when Python flushes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _refuse(reason: str) -> None:
    sys.stderr.write(f"privfr: {' '.join(reason.split())}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
