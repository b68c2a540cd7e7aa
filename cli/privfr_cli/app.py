"""The `privfr` command."""

from __future__ import annotations

import sys

import typer

from privfr_cli import data, embed, evaluate, info, run, verify

app = typer.Typer(
    name="privfr",
    no_args_is_help=True,
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
app.command("info")(info.command)


def main() -> None:
    """Run the command line; what the user can mend is told in one line, with exit code 2."""
    from privfr.errors import PrivfrError

    try:
        app()
    except PrivfrError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"privfr: {line}\n")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
