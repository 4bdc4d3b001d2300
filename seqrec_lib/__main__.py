"""The command line: ``python -m seqrec_lib study ...``."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path

import click

from .data import DATASETS
from .device import device as pick_device
from .study.grid import AXES, GRIDS, NEURAL, Run, load_grid, select
from .study.progress import duration, estimate, remaining, under_way
from .study.records import Store
from .study.records import results as read_results
from .study.runner import run_grid
from .study.scratch import Scratch

#: Exit code of ``run`` where nothing failed, but not all is done.
LEFT = 3


@contextmanager
def _refused_in_words():
    """What cannot be read or written, a device that is not there: said without a traceback."""
    try:
        yield
    except BrokenPipeError:  # whoever read this has seen enough
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


class _OfGrid(click.Command):
    """A command with ``--only``; it says what is wrong with ``--only seed=0 loss=ce``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        stray = [
            word
            for before, word in pairwise(["", *args])
            if "=" in word and not word.startswith("-") and not before.startswith("-")
        ]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if stray:
                error.message += f"; each choice has an --only of its own: --only {stray[0]}"
            raise


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Attention in sequential recommendation, from the command line."""


@main.group()
def study() -> None:
    """Many runs, one record each.

    A grid (a TOML file) says which runs there are. `run` does those that have no record yet and
    may be interrupted at any moment: the same command goes on where it stopped. `status` says
    how far it is; `table` and `plot` show what was measured. A small grid, of four runs:

    \b
    seeds = [0, 1]
    [config]
    dim = 32
    [[runs]]
    datasets = ["world-series"]
    attentions = ["softmax", "uniform"]

    Some commands to begin with:

    \b
    python -m seqrec_lib study run --grid quick --results runs/quick    # two minutes, to try it
    python -m seqrec_lib study run --dry-run                            # all the book rests on
    python -m seqrec_lib study run --only dataset=lastfm,beauty --only seed=0 --jobs 2
    """


def _only(context, parameter, pairs: tuple[str, ...]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for pair in pairs:
        name, found, values = pair.partition("=")
        if not found:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE; names: {', '.join(AXES)}")
        chosen.setdefault(name, []).extend(values.split(","))
    return chosen


def _grid_options(command):
    """The options that say which runs are meant, and where their records are."""
    options = (
        click.option(
            "--grid",
            default="main",
            show_default=True,
            metavar="FILE",
            help="A TOML file, or one that comes with the library: "
            f"{', '.join(sorted(path.stem for path in GRIDS.glob('*.toml')))}.",
        ),
        click.option(
            "--only",
            multiple=True,
            callback=_only,
            metavar="NAME=VALUE[,VALUE]",
            help=f"Only these runs of the grid; may be repeated. Names: {', '.join(AXES)}.",
        ),
        click.option(
            "--results",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="The folder of records; by default the checkout's results/.",
        ),
    )
    for option in reversed(options):  # click lists the last one first
        command = option(command)
    return command


def _runs(grid: str, only: dict[str, list[str]]) -> list[Run]:
    try:
        return select(load_grid(grid), only)
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


def _records(grid: str, only: dict[str, list[str]], results: Path | None):
    """The records of these runs, as a table."""
    store, found = Store(results), read_results(results)
    done = {tuple(run.axes.values()) for run in _runs(grid, only) if store.state(run) == "done"}
    rows = found[list(AXES)].itertuples(index=False, name=None)
    return found.loc[[row in done for row in rows]]


def _count(help: str) -> dict:
    """An option that is 1 or more, 1 where nothing is said."""
    return {"type": click.IntRange(min=1), "default": 1, "show_default": True, "help": help}


@study.command(cls=_OfGrid)
@_grid_options
@click.option(
    "--jobs",
    **_count(
        "Runs at a time, one to a core: the best use of a CPU by far. With 1 it is this process: "
        "a run that is killed for its memory ends the command."
    ),
)
@click.option("--threads", **_count("Cores for each run."))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..")
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask"]),
    default="loky",
    show_default=True,
    help="Who starts the processes: this machine, or a Dask cluster.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Of a Dask cluster with workers of one thread each; without it, they are started here.",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Checkpoints, locks, tracebacks.",
)
@click.option(
    "--keep-models",
    is_flag=False,
    flag_value="runs/models",
    default=None,
    type=click.Path(path_type=Path),
    metavar="[DIR]",
    help="Keep the trained models, in runs/models unless DIR says otherwise.",
)
@click.option(
    "--seeds-at-once/--seed-by-seed",
    default=None,
    help="Train the seeds of a setting as one batched model; by default on a GPU.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    metavar="MINUTES",
    help="Begin nothing, not even an epoch, after so long; the same command goes on.",
)
@click.option("--dry-run", is_flag=True, help="List the runs that are missing, and their cost.")
def run(grid, only, results, dry_run, backend, scheduler, **options) -> None:
    """Do the runs that have no record yet.

    A record of other settings than the grid's counts for none, and is set aside. Interrupt the
    command whenever you like; the same one goes on. A run that fails is reported at the end and
    keeps no other from being done. Several such commands may share the folders of results and
    scratch. On a terminal a bar shows how far it is; elsewhere `status` tells.

    The exit code is 0 when nothing is left, 1 when a run failed, 3 when none did but some are
    left (time was up, or another process is at them), and 130 when it was interrupted.

    On a GPU, all seeds of a setting are trained at once; some jobs beside each other keep it
    busy. Where it is lent for minutes, do the study in pieces, with the same line again and
    again until it says "nothing is left"; rehearse the line on a CPU:

    \b
    python -m seqrec_lib study run --device cuda --jobs 4 --time-limit 9
    python -m seqrec_lib study run --device cpu --seeds-at-once --time-limit 0.5 \\
        --grid quick --results runs/quick
    """
    runs = _runs(grid, only)
    with _refused_in_words():
        pick_device(options["device"])
        if dry_run:
            # how many workers a cluster has is not asked
            jobs = None if scheduler else options["jobs"]
            _dry_run(runs, Store(results), jobs, options["device"], Scratch(options["scratch"]))
            return
    backend = "dask" if scheduler else backend
    with (
        _interrupted_in_words(),
        _refused_in_words(),
        _cluster(backend, scheduler, options["jobs"]),
    ):
        report = run_grid(runs, results=results, backend=backend, say=click.echo, **options)
    click.echo(
        f"{len(report.done)} done, {len(report.skipped)} before, {len(report.busy)} left to "
        f"another process, {len(report.failed)} failed"
    )
    if report.cut:
        click.echo(f"{len(report.cut)} left when time was up; the same command goes on")
    for failed, detail in report.failed.items():
        click.echo(f"\n{failed}\n{detail}", err=True)
    if report.failed:
        raise SystemExit(1)
    if report.cut or report.busy:
        raise SystemExit(LEFT)
    click.echo("nothing is left")


@contextmanager
def _interrupted_in_words():
    """Ctrl-C says what to do next; and what `timeout` or a scheduler sends ends a command alike."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on", err=True)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@study.command(cls=_OfGrid)
@_grid_options
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where `run` was told to keep its checkpoints.",
)
@_refused_in_words()
def status(grid, only, results, scratch) -> None:
    """How far the grid is, data set by data set, and what is running, cut, failed or damaged.

    Outdated is a record of other settings than the grid's; `run` sets it aside and does it again.
    """
    runs, store, scratch = _runs(grid, only), Store(results), Scratch(scratch)
    states = {run: store.state(run) for run in runs}
    todo = [run for run in runs if states[run] != "done"]
    begun = {run: how for run in todo if (how := under_way(scratch, run))}
    counted = states | {run: "running" for run, how in begun.items() if how.startswith("running")}
    for dataset in dict.fromkeys(run.dataset for run in runs):
        counts = Counter(state for run, state in counted.items() if run.dataset == dataset)
        click.echo(f"{dataset:18}" + "  ".join(f"{n} {state}" for state, n in counts.items()))
    for run in todo:
        if run in begun:
            click.echo(f"{run}: {begun[run]}")
        if states[run] == "damaged":
            click.echo(f"{run}: damaged, {store.path(run)}")
        with suppress(FileNotFoundError):  # it may end while we look
            why = scratch.traceback(run).read_text().strip().splitlines()
            click.echo(f"{run}: failed, {why[-1] if why else 'and there was no room to say why'}")
    seconds = sum(remaining(estimate(todo, store), scratch).values())
    click.echo(f"about {duration(seconds)} left, one run at a time" if todo else "nothing is left")


@study.command(cls=_OfGrid)
@click.argument(
    "kind", type=click.Choice(["benchmark", "effects", "regimes", "missing"]), default="benchmark"
)
@_grid_options
@click.option("--format", "form", type=click.Choice(["text", "csv", "html"]), default="text")
@_refused_in_words()
def table(kind, grid, only, results, form) -> None:
    """Show what was measured.

    \b
    benchmark  mean and spread over seeds, beside the published bands
    effects    softmax against uniform: difference, Hedges' g, equivalence
    regimes    mixing and reliance of each data set
    missing    what the grid still lacks, and the commands that make it

    Real logs rank new items ("filtered"), which is what published figures are
    beside, and worlds all items. In effects, g and the verdict (margin 5 % of
    softmax's mean) are of NDCG@10; in regimes, g is the mean over HR@1, HR@10,
    HR@100, NDCG@10 and NDCG@100. Both have a row where the grid has softmax and
    uniform, with the commands for what is missing; seeds is the smaller number of
    the two that is there, of the smaller number that is planned.
    """
    from .study import tables

    runs, commands = _runs(grid, only), []
    chosen = {name: {getattr(run, name) for run in runs} for name in only}
    if kind in ("benchmark", "missing"):
        found = getattr(tables, kind)(grid, results, **chosen)
        found = found.drop(columns="missing", errors="ignore")  # a table of its own
    else:
        found = getattr(tables, kind)(_records(grid, only, results))
        found = tables.with_missing(found, grid=grid, root=results, **chosen)
        if found.empty:
            raise click.ClickException("none of these runs is softmax with uniform beside it")
        if form == "text":  # too long for a column
            commands = [command for command in found.pop("missing") if command]
    if found.empty and form == "text":
        click.echo("nothing is missing")
        return
    shown = {"csv": found.to_csv, "html": found.to_html, "text": found.to_string}[form]
    click.echo(shown(index=kind == "benchmark", na_rep=""))
    if commands:
        click.echo("\n".join(["\nmissing:", *commands]))


@study.command()
@click.argument("datasets", nargs=-1, type=click.Choice(sorted(DATASETS)), required=True)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of records; by default the checkout's results/.",
)
def profile(datasets, results) -> None:
    """Write what simple statistics say of DATASETS, beside the records.

    \b
    python -m seqrec_lib study profile lastfm ml-100k
    """
    from .study.profiling import write_profile

    with _refused_in_words():
        for dataset in datasets:
            click.echo(f"written: {write_profile(dataset, results)}")


@study.command(cls=_OfGrid)
@click.argument("kind", type=click.Choice(["regimes", "curves", "length", "weightings"]))
@_grid_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("figure.svg"),
    show_default=True,
    help="Its suffix says the format: svg, png, pdf.",
)
@_refused_in_words()
def plot(kind, grid, only, results, output) -> None:
    """Draw what was measured.

    \b
    regimes     mixing against reliance, the published points beside ours
    curves      validation NDCG@10 over the epochs, of one data set
    length      test NDCG@10 by the length of the users' histories, of one data set
    weightings  test NDCG@10 of each weighting, with intervals over seeds

    Real logs rank the items that are new to a user, worlds (where items return) all items.
    """
    import matplotlib

    matplotlib.use("Agg")
    from . import plotting
    from .study import tables

    found = _records(grid, only, results)
    if found.empty:
        raise click.ClickException("there is no such record yet; `study run` makes them")
    if found["split"].nunique() > 1 and kind in ("regimes", "weightings"):
        found["dataset"] += " (" + found["split"] + ")"
    if kind == "regimes":
        points = tables.regimes(found).dropna(subset=["mixing", "g"])
        if points.empty:
            raise click.ClickException(
                "no data set here has two seeds or more of both softmax and uniform; "
                "`study table regimes` says what is missing"
            )
        ax = plotting.regimes(points, tables.published_regimes())
    elif kind == "curves":
        found = found[found["curve"].map(bool)]
        if found.empty:
            raise click.ClickException("what counts pairs has no epochs, and so no curve")
        _one_setting(found)
        ax = plotting.seed_curves(found)
    elif kind == "length":
        _one_setting(found)
        ax = plotting.by_length(tables.by_length(found))
    else:
        summary = tables.summarize(found)
        ax = plotting.seed_intervals(
            summary.assign(
                name=[f"{row['dataset']} {tables.label(row)}" for row in summary.to_dict("records")]
            ),
            "name",
        )
    ax.figure.savefig(output)
    click.echo(f"written: {output}")


def _one_setting(found) -> None:
    """Refuse records that differ in more than weighting and seed: a line would average them."""
    several = [name for name in AXES if found[name].nunique() > 1]
    several = [name for name in several if name not in ("attention", "seed")]
    if several:
        first = found.sort_values("model", key=lambda models: ~models.isin(NEURAL)).iloc[0]
        raise click.ClickException(
            f"these are records of more than one {', '.join(several)}, which a line would average; "
            f"choose, as with {' '.join(f'--only {name}={first[name]}' for name in several)}"
        )


def _dry_run(
    runs: list[Run], store: Store, jobs: int | None, device: str, scratch: Scratch
) -> None:
    states = {run: store.state(run) for run in runs}
    todo = [run for run in runs if states[run] != "done"]
    cost = remaining(estimate(todo, store, device), scratch)
    for run in todo:
        old = ""
        if states[run] == "outdated":
            old = f" (its record will be set aside: {store.changes(run)})"
        click.echo(f"{duration(cost[run]):>8}  {run}{old}")
    total = duration(max(sum(cost.values()) / (jobs or 1), max(cost.values(), default=0.0)))
    how = f"with {jobs} at a time" if jobs else "of computing, on however many workers"
    click.echo(f"{len(todo)} of {len(runs)} runs to do, about {total} {how}")


def _cluster(backend: str, scheduler: str | None, jobs: int):
    """The Dask client, open as long as it is needed."""
    if backend != "dask":
        return nullcontext()
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise click.ClickException("--backend dask needs: pip install distributed") from error
    # A run seeds the generators of its process and sets torch's threads: one run to a process.
    return Client(scheduler) if scheduler else Client(n_workers=jobs, threads_per_worker=1)


if __name__ == "__main__":
    main(prog_name="python -m seqrec_lib")
