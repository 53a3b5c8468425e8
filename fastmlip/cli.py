"""The command ``fastmlip``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

import fastmlip

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(no_args_is_help=True, add_completion=False, context_settings=HELP)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastmlip {fastmlip.__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fused kernels for E(3)-equivariant interatomic potentials.

    The exit status of every command is 0 where all is well, 1 where something that was checked or
    timed failed, and 2 where an argument or a file is wrong.
    """


@app.command()
def info(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A model file to read about.")
    ] = None,
) -> None:
    """Print what runs where on this machine, and why; or the metadata of a model FILE.

    Nothing that is in FILE is executed.
    """
    if file is None:
        answers = fastmlip.info()
    else:
        _must_exist(file, "FILE")
        from fastmlip.integrations.nequip import files

        try:
            answers = files.metadata(file)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="FILE") from None
    table = Table(show_header=False, title="fastmlip" if file is None else file.name)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for question, answer in answers.items():
        table.add_row(question, escape(answer))
    Console().print(table)


@app.command()
def strip(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of nequip-train (.ckpt).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Checkpoint to write.")
    ],
) -> None:
    """Write a checkpoint with the same weights that needs no fastmlip.

    NequIP keeps the config of a run in its checkpoints. The new file's config has no modifier of
    fastmlip, so that it loads, and resumes, where fastmlip is not installed.
    """
    from fastmlip.integrations.nequip import files

    _must_exist(checkpoint, "CHECKPOINT")
    if output.exists():
        raise typer.BadParameter(f"{output} exists already", param_hint="--output")
    _must_be_writable(output, "--output")
    try:
        removed = files.strip(checkpoint, output)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="CHECKPOINT") from None
    _say(Console(), f"{output}: without {', '.join(removed)}; the weights are the same")


@app.command()
def stats(
    source: Annotated[
        Path, typer.Argument(help="NequIP config (.yaml), or a file that ASE reads (.extxyz, ...).")
    ],
    r_max: Annotated[
        float | None, typer.Option(help="Cutoff; for a data file, where it must be given.")
    ] = None,
    type_names: Annotated[
        str | None,
        typer.Option(help="Types with commas between, in the model's order, e.g. H,C,O."),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Of a config: train, val, test or predict.")
    ] = "train",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Frames read at a time.")] = None,
    ignore_nan: Annotated[
        bool, typer.Option("--ignore-nan", help="Skip and count NaN energies and forces.")
    ] = False,
    energy_key: Annotated[
        str | None, typer.Option(help="Of a data file: name of energies [default: energy].")
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(help="Of a data file: name of forces [default: forces].")
    ] = None,
) -> None:
    """Statistics of a data set, as a table and as YAML to paste into a config.

    The YAML goes to standard output; tables, progress bar and messages to standard error.
    """
    from fastmlip.data.report import tables, to_yaml

    is_config = source.suffix in (".yaml", ".yml")
    if not source.is_file():
        raise typer.BadParameter(f"there is no file {source}", param_hint="SOURCE")
    if is_config and r_max is not None:
        raise typer.BadParameter("a config has its own cutoff", param_hint="--r-max")
    if not is_config and r_max is None:
        raise typer.BadParameter("a data file needs a cutoff, in Angstrom", param_hint="--r-max")
    if not is_config and dataset != "train":
        raise typer.BadParameter("only configs have data sets", param_hint="--dataset")
    screen = Console(stderr=True)
    names = [name.strip() for name in type_names.split(",")] if type_names else None
    try:
        from fastmlip.integrations.nequip import datasets
    except ImportError as error:
        raise _failed(screen, f"data are read with NequIP, which is not there: {error}") from None
    try:
        if is_config:
            found = datasets.statistics_of_config(
                source, names, dataset, batch_size=batch_size, ignore_nan=ignore_nan, progress=True
            )
        else:
            assert r_max is not None
            found = datasets.statistics_of_file(
                source, r_max, names, batch_size, energy_key, forces_key,
                ignore_nan=ignore_nan, progress=True,
            )  # fmt: skip
    except Exception as error:  # whatever a reader of files may raise
        raise _failed(screen, f"{type(error).__name__}: {error}") from None
    for table in tables(found, title=str(source)):
        screen.print(table)
    reasons: dict[str, list[str]] = {}
    for name, reason in found.unavailable.items():
        reasons.setdefault(reason, []).append(name)
    for reason, left_out in reasons.items():
        _say(screen, f"{', '.join(left_out)} left out: {reason}")
    for name, note in found.notes.items():
        _say(screen, f"{name}: {note}")
    origin = f"{source}, {dataset}" if is_config else f"{source}, r_max {r_max}"
    typer.echo(to_yaml(found, origin), nl=False)


@app.command()
def tabulate(
    model: Annotated[
        Path, typer.Argument(help="NequIP checkpoint (.ckpt) or package (.nequip.zip).")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Compiled model to write (.nequip.pt2).")
    ],
    tol: Annotated[
        float, typer.Option(help="Largest error of a force component, in eV/Angstrom.")
    ] = 1e-5,
    target: Annotated[str, typer.Option(help="Of nequip-compile: ase, pair_nequip, ...")] = "ase",
    device: Annotated[str, typer.Option(help="Device the compiled model runs on.")] = "cpu",
) -> None:
    """Compile a trained NequIP model with tabulated radial networks, for MD.

    MODEL is a program that runs when it is loaded: take only files of people you trust.
    It is nequip-compile with the modifier enable_FastMLIP_tabulated, and takes minutes. The table
    is refined until forces agree; the error that was reached is printed and kept in the file.
    """
    screen = Console(stderr=True)
    _must_exist(model, "MODEL")
    if not model.name.endswith((".ckpt", ".nequip.zip")):
        raise typer.BadParameter(
            f"expected a checkpoint (.ckpt) or a package (.nequip.zip), got {model.name}",
            param_hint="MODEL",
        )
    if not str(output).endswith(".nequip.pt2"):
        raise typer.BadParameter(f"{output} must end in .nequip.pt2", param_hint="--output")
    _must_be_writable(output, "--output")
    if not tol > 0:
        raise typer.BadParameter(f"expected a positive number, got {tol}", param_hint="--tol")
    try:
        from fastmlip.integrations.nequip.tabulate import compile_tabulated

        with screen.status("tabulating, then compiling with AOTInductor"):
            found = compile_tabulated(str(model), str(output), tol, target, device)
    except Exception as error:  # whatever NequIP and AOTInductor may raise
        raise _failed(screen, f"{type(error).__name__}: {error}") from None
    table = Table(show_header=False, title=str(output))
    for key, value in found.items():
        table.add_row(key.removeprefix("fastmlip_table_").replace("_", " "), value)
    Console().print(table)


@app.command()
def check(
    model: Annotated[
        Path,
        typer.Argument(
            help="NequIP or Allegro config (.yaml), checkpoint (.ckpt), package (.nequip.zip) or "
            "compiled model (.nequip.pt2)."
        ),
    ],
    structures: Annotated[
        Path | None,
        typer.Argument(help="A file that ASE reads; a few are made up where it is left out."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="A model to compare with, for instance a compiled one's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64, of a config or checkpoint.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where both models run.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of all random numbers.")] = 0,
    frames: Annotated[int, typer.Option(min=1, help="Frames used of STRUCTURES.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a check to do; can be given several times.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.")] = None,
) -> None:
    """Compare a model with its accelerated form; the exit status is 1 where a check fails.

    A model file is a program that runs when it is loaded: check only files of people you trust.

    Energies, forces, stress, parameter gradients and the Hessian against stock, against finite
    differences, under rotations and the like, and run after run. Nothing is trained.
    """
    from rich.progress import Progress, SpinnerColumn

    from fastmlip.checks.table import names

    screen = Console(stderr=True)
    for path, name in ((model, "MODEL"), (structures, "STRUCTURES"), (against, "--against")):
        if path is not None:
            _must_exist(path, name)
    if json is not None:
        _must_be_writable(json, "--json")
    try:
        names(only)
    except ValueError as error:
        raise typer.BadParameter(str(error).removeprefix("only: "), param_hint="--only") from None
    if dtype not in (None, "float32", "float64"):
        raise typer.BadParameter(f"expected float32 or float64, got {dtype}", param_hint="--dtype")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise typer.BadParameter(str(error).partition("\n")[0], param_hint="--device") from None
    try:
        with Progress(SpinnerColumn(), *Progress.get_default_columns(), console=screen) as bar:
            task = bar.add_task("building the models", total=None)
            report = fastmlip.check(
                model, structures, against=against, dtype=dtype, device=device, seed=seed,
                frames=frames, only=only,
                progress=lambda name, done, total: bar.update(
                    task, description=name, completed=done, total=total
                ),
            )  # fmt: skip
    except Exception as error:  # whatever a reader of files may raise
        raise _failed(screen, f"{type(error).__name__}: {error}") from None
    console = Console()
    for table in report.tables(console.width):
        console.print(table)
    for remark in report.remarks():
        _say(console, remark)
    if json is not None:
        json.write_text(report.to_json())
    for verdict, results in (("failed", report.failed), ("could not be done", report.undone)):
        if results:
            _say(console, f"{verdict}: {', '.join(result.name for result in results)}")
    done = sum(result.status == "passed" for result in report.results)
    if report.passed:
        _say(console, "all checks passed" if not report.asked else f"{done} checks passed")
    raise typer.Exit(0 if report.passed else 1)


@app.command()
def bench(
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for index.html, results.json, results.csv and pytest.log."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Run nothing: take a finished results.json, report folder, or "
                     "JSON of pytest-benchmark."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Run nothing: compare two reports, before and after."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of a comparison: what may be slower, as a fraction.")
    ] = 0.2,
    keyword: Annotated[
        str | None,
        typer.Option("-k", help="Rows to run, of all, as in pytest -k: 'zbl and forward'."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All rows, instead of those that take ten minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    blocks: Annotated[
        int, typer.Option(min=1, help="Time each row that many times, in turns with its peers.")
    ] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Longest time of a row; three rounds at least.")
    ] = 2.0,
) -> None:  # fmt: skip
    """Time the operators against other implementations, on this machine, within ten minutes.

    All rows take far longer: the time is said before they run. The last thing printed is a table of
    ratios, the time of the other implementation over that of fastmlip, by operator and model.

    The exit status is 1 where a row failed or, with --compare, became slower than --tolerance
    allows in its median and in its best round.
    """
    screen = Console(stderr=True)
    try:
        from fastmlip.bench import report as pages
        from fastmlip.bench import results
        from fastmlip.bench.run import SuiteError, run
        from fastmlip.bench.summary import text
    except ImportError as error:
        raise _failed(screen, f"the benchmarks cannot be loaded: {error}") from None
    if compare is not None and (report or source):
        raise typer.BadParameter("goes with neither --report nor --from", param_hint="--compare")
    try:
        if compare is not None:
            found = [results.load(path) for path in compare]
            raise typer.Exit(_compare(found[0], found[1], tolerance, screen))
        if source is not None:
            timed = results.load(source)
        else:
            options = [f"--threads={threads}", f"--device={device}", f"--blocks={blocks}"]
            options += [f"--seconds={seconds}", *(("-k", keyword) if keyword else ())]
            options += ["--all"] if everything or keyword else []
            timed = run(options, report and report / "pytest.log", screen)
        if report is not None:
            page = pages.write(timed, report)
            _say(screen, f"{page}")
    except (OSError, ValueError, SuiteError, ImportError) as error:
        raise _failed(screen, str(error)) from None
    if warning := results.busy(timed):
        _say(screen, warning)
    for line in text(timed):
        typer.echo(line)
    if failed := timed.environment.get("failed"):
        raise _failed(screen, f"{len(failed)} rows failed and were not timed: {', '.join(failed)}")


def _compare(before: Any, after: Any, tolerance: float, screen: Console) -> int:
    from fastmlip.bench import report as pages
    from fastmlip.bench import results

    both, gone, new = results.changes(before, after)
    if not any(change.after.ours for change in both):
        raise ValueError("the two reports have no row of fastmlip in common")
    for line in results.differences(before, after):
        _say(screen, f"not the same: {line}")
    for text, report in (("before", before), ("after", after)):
        if warning := results.busy(report):
            _say(screen, f"{text}: {warning}")
    table, slower = pages.compared(before, after, tolerance)
    Console().print(table)
    for text, rows in (("only before", gone), ("only after", new)):
        for row in rows[:5]:
            _say(screen, f"{text}: {row.name}, {row.who}")
        if len(rows) > 5:
            _say(screen, f"{text}: {len(rows) - 5} more")
    if peers := [change.mins for change in both if not change.after.ours]:
        ratio = results.ratio(results.mean(peers), 3)
        _say(screen, f"peers, which did not change: {ratio} times as long (geometric mean)")
    _say(screen, f"{len(slower)} rows slower by more than {tolerance:.0%}")
    return 1 if slower else 0


@app.command()
def gpu_report(
    out: Annotated[
        Path | None, typer.Option(help="Write the rows to FILE.json or FILE.csv.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm_90, gfx942, ...; repeat for more. Default: all.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="tensor_product_conv, ...; repeat. Default: all.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="All presets and code paths, not only NequIP M (slow).")
    ] = False,
) -> None:
    """Compile every GPU kernel and show registers, spills, instructions and a modelled time.

    Needs Triton and no GPU. Nothing is measured. Exit status 1 where a kernel spills registers or
    has atomics.
    """
    from fastmlip.gpu import passes, report
    from fastmlip.gpu.targets import TARGETS

    screen = Console(stderr=True)
    chosen = _known(target, list(TARGETS), "--target")
    cases = passes.SWEEP if sweep else passes.SHOWN
    names = _known(operator, list(cases), "--operator")
    try:
        if out is not None:
            report.check_out(out)
        report.check_compiler()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    except report.CannotCompile as error:
        raise _failed(screen, str(error)) from None
    todo = [p for name in names for case in cases[name] for p in passes.passes(name, case)]
    compiling = report.rows(todo, [TARGETS[name] for name in chosen])
    total = len(todo) * len(chosen)
    found = list(track(compiling, "compiling", total, console=screen, transient=True))
    for table in report.tables(found):
        Console().print(table)
    Console().print(report.NOTE)
    if out is not None:
        report.write(found, out)
    for row in found:
        if row.fails:
            _say(
                screen,
                f"{row.operator} {row.case} {row.order} on {row.target}: {row.spilled} bytes "
                f"spilled, {row.atomics} atomics",
            )
    raise typer.Exit(any(row.fails for row in found))


def _known(given: list[str] | None, known: list[str], option: str) -> list[str]:
    for name in given or ():
        if name not in known:
            raise typer.BadParameter(
                f"expected one of {', '.join(known)}, got {name!r}", param_hint=option
            )
    return given or known


def _must_exist(path: Path, name: str) -> None:
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder, expected a file", param_hint=name)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}", param_hint=name)


def _must_be_writable(path: Path, name: str) -> None:
    """Before work begins whose result would be lost."""
    folder = path.absolute().parent
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise typer.BadParameter(f"cannot write {path}", param_hint=name)


def _say(screen: Console, text: str) -> None:
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _failed(screen: Console, message: str) -> typer.Exit:
    screen.print("error", style="bold red", end=": ")
    _say(screen, message)
    return typer.Exit(2)
