"""The command line, ``steerkit run | generate | neighbourhood | card | lint | ui``; heavy imports wait until needed."""

import os
from pathlib import Path
from typing import Annotated

import typer

STORE_HELP = "MLflow tracking URI. Default: MLFLOW_TRACKING_URI, else sqlite:///mlruns/mlflow.db."

# Before torch is loaded: threads that wait in a loop slow small models down fifty-fold when a core is busy elsewhere.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    name="steerkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from steerkit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def steerkit(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Find a direction in a language model, add it while it generates, and measure when it breaks.

    Start with `steerkit run recipes/expertise.yaml`, then `steerkit ui`.
    """
    del version


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/expertise.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: `--set sweep.alphas=[-0.1,0.1]`. May be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: output/NAME-CHANGES.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")] = False,
    store: Annotated[str | None, typer.Option(help=STORE_HELP)] = None,
) -> None:
    """Fit, sweep, calibrate, save and track, as a recipe says.

    Example: `steerkit run recipes/expertise.yaml --set estimator.learner=mean-diff`
    """
    with _errors():
        from rich.console import Console

        from steerkit.experiment import run as run_recipe
        from steerkit.recipe import load_recipe, output_name
        from steerkit.report import answers_table, layers_table

        console = Console(markup=False, emoji=False)  # the text is the user's: brackets and colons stay
        loaded = load_recipe(recipe, set_ or [])
        folder = output or Path("output") / output_name(loaded, set_ or [])
        done = run_recipe(loaded, output=folder, overwrite=overwrite, store=store, say=console.print)
        best = int(done.test_scores.argmax())
        console.print()
        console.print(layers_table(done.estimator, done.test_scores, done.calibration))
        console.print(
            f"On the test prompts a bag of words reads {done.words_score:.3f}, layer {done.estimator.layers_[best]} "
            f"reads {done.test_scores[best]:.3f}. Answers are read with accuracy {done.reader.accuracy_:.3f}.\n"
        )
        if done.calibration is None:
            console.print(f"Nothing is recommended: {done.refusal}\n")
        else:
            low, high = done.calibration.span_interval
            console.print(
                f"Steer at layer {done.calibration.layer} with alpha from {done.calibration.alphas[0]:+g} to "
                f"{done.calibration.alphas[1]:+g}: effect span {done.calibration.span:.3f} "
                f"(95 % interval {low:.3f} to {high:.3f}, n = {done.calibration.n_prompts} prompts).\n"
            )
        alphas, answers = done.shown
        console.print(answers_table(loaded.show, alphas, answers, classes=loaded.data.labels))
        places = {
            "steered model": f"{folder / 'steered'}",
            "": f"steerkit generate {folder / 'steered'} {loaded.show!r} --alpha {alphas[4]:g}",
            "answers": f"{folder / 'sweep' / 'cells.jsonl'}",
        }
        if done.calibration is not None:
            places["plots"] = f"{folder / 'plots'}"
        if done.run_id:
            from steerkit.mlflow_ui import run_url

            option = "" if store is None else f" --store {store}"
            places["MLflow"] = f"steerkit ui{option}, then {run_url(done.run_id, uri=store)}"
        for what, where in places.items():
            console.print(f"{what:14} {where}", soft_wrap=True, highlight=False)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Folder of a steered model, or its URI in MLflow.")],
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    alpha: Annotated[
        list[float] | None, typer.Option(help="Strength, as a fraction of the activation norm; repeat it to compare.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
) -> None:
    """Answer a prompt with a steered model.

    Example: `steerkit generate output/expertise/steered "What is a neutron star?" --alpha -0.4 --alpha 0.4`, or
    `steerkit generate models:/expert-tutor@champion "What is a virus?"`
    """
    with _errors():
        from steerkit.steered import SteeredModel

        steered = SteeredModel.from_pretrained(model)
        alphas = alpha or [steered.alpha]
        answers = steered.generate([prompt] * len(alphas), alpha=alphas, max_new_tokens=max_new_tokens)
        for strength, answer in zip(alphas, answers, strict=True):
            typer.echo(f"[alpha {strength:+g}] {answer}" if len(alphas) > 1 else answer)


@app.command()
def neighbourhood(
    recipe: Annotated[Path, typer.Argument(help="YAML file that was run already.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="The changes with which it was run.")] = None,
    ran: Annotated[Path | None, typer.Option("--run", help="Output of the run. Default: output/NAME-CHANGES.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: …-neighbourhood.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")] = False,
) -> None:
    """Turn the direction that a run recommends, and say how wide the cone is that works.

    Example: `steerkit neighbourhood recipes/expertise.yaml`
    """
    with _errors():
        from rich.console import Console

        from steerkit.experiment import run_neighbourhood
        from steerkit.recipe import load_recipe, output_name
        from steerkit.report import neighbourhood_table

        console = Console(markup=False, emoji=False)  # the text is the user's: brackets and colons stay
        loaded = load_recipe(recipe, set_ or [])
        name = output_name(loaded, set_ or [])
        folder = output or Path("output") / f"{name}-neighbourhood"
        found = run_neighbourhood(
            loaded, ran=ran or Path("output") / name, output=folder, overwrite=overwrite, say=console.print
        )
        console.print()
        console.print(neighbourhood_table(found))
        console.print(f"{'table, plot':14} {folder}", soft_wrap=True, highlight=False)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="Folder of a steered model or of a run, or its URI in MLflow.")],
    html: Annotated[Path | None, typer.Option(help="Write the card as a page to this file instead.")] = None,
) -> None:
    """Print the reliability card of a steered model: what was measured on it, and what was not.

    Example: `steerkit card output/expertise --html card.html`, or `steerkit card models:/expert-tutor@champion`
    """
    with _errors():
        from steerkit.card import Card
        from steerkit.mlflow_store import in_mlflow

        if in_mlflow(model):
            from steerkit.mlflow import load_card

            found = load_card(model)
        else:
            folder = Path(model)
            found = Card.load(folder / "steered" if (folder / "steered").is_dir() else folder)
        if html is None:
            typer.echo(found.to_markdown(), nl=False)
        else:
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(found.to_html(), encoding="utf-8")
            typer.echo(html)


@app.command()
def lint(
    prompts: Annotated[Path, typer.Argument(help="CSV or JSONL with text, label and, optionally, group.")],
    test: Annotated[Path | None, typer.Option(help="Contrast set on which the accuracy will be measured.")] = None,
    model: Annotated[str | None, typer.Option(help="Model whose context the prompts must fit into.")] = None,
) -> None:
    """Look for what would make a contrast set easier than it seems; exit 1 if accuracies would mean nothing.

    Example: `steerkit lint prompts.csv --test held-out.csv --model builtin:tutor`
    """
    with _errors():
        from steerkit.datasets import load_contrast
        from steerkit.lint import lint_contrast

        loaded = load_contrast(prompts)
        findings = lint_contrast(loaded, None if test is None else load_contrast(test), model=model)
        for finding in findings:
            rows = ", ".join(map(str, finding.rows[:10])) + (", …" if len(finding.rows) > 10 else "")
            typer.echo(f"{'error' if finding.fatal else 'warning'}: {finding.kind}: {finding.message} (rows {rows})")
        if not findings:
            typer.echo(f"{prompts}: nothing found in {len(loaded.data)} texts.")
        raise typer.Exit(int(any(finding.fatal for finding in findings)))


@app.command()
def ui(
    store: Annotated[str | None, typer.Option(help=STORE_HELP)] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open the tracked runs in MLflow's own pages; the addresses that are printed lead to the last run and sweep."""
    with _errors():
        from steerkit.mlflow_ui import links, serve_ui, ui_store

        chosen = ui_store(store)
        for what, address in links(uri=chosen, port=port).items():
            typer.echo(f"{what:14} {address}")
        typer.echo("Ctrl-C stops it.")
        raise typer.Exit(serve_ui(uri=chosen, port=port))


class _errors:  # noqa: N801
    """Turn steerkit's own errors into one sentence and exit status 2; any other keeps its traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from steerkit.exceptions import SteerkitError

        if isinstance(error, SteerkitError):
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(2) from None


if __name__ == "__main__":
    app()
