"""Many runs on Ray: strategies, ratios, budgets and seeds side by side, on this machine or a cluster."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upgrayedd import _native, _plots
from upgrayedd.errors import FileError, InvalidValueError, UpgrayeddError
from upgrayedd.strategies import get_strategy

PLAN = "sweep.json"
"""What a sweep was started with, in its folder."""
PAGE = "sweep.html"

PATHS = ("model", "eval_data", "teacher", "timings")
"""Options that may be paths."""

COSTS = {"parameters": "parameters", "macs": "MACs per token", "seconds": "seconds per 1000 tokens"}
"""What is set against the loss, and how that is called."""

PAGE_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sweep {title}</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; background: #fff }}
table {{ border-collapse: collapse; font-size: .85rem }}
td, th {{ padding: .2rem .6rem; border-bottom: 1px solid #ccc; text-align: right }}
td:nth-last-child(-n+2) {{ text-align: left }}
svg {{ max-width: 100%; height: auto }}
</style></head>
<body><h1>Sweep {title}</h1>
<p>Held-out loss after the last cycle. In bold: no other trial has fewer parameters and a lower loss.
Times were measured while other trials ran.</p>
{picture}
{table}
</body></html>
"""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        run: Its folder.
        options: What it was given beside what all were given.
        loss: Held-out loss of the result; None if the run failed.
        parameters: Of the result.
        macs: Multiplications a token, of the result.
        seconds: For 1000 tokens forward, as measured beside the other trials.
        error: Why there is no result.
    """

    run: Path
    options: dict[str, Any]
    loss: float | None = None
    parameters: int | None = None
    macs: int | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def command(self) -> str:
        """Makes the same model again, to the same bits."""
        return f"upgrayedd optimize --config {shlex.quote(str(self.run / 'run.toml'))} --out again"


class Sweep(Sequence[Trial]):
    """The runs of a sweep, in the order in which they were asked for."""

    def __init__(self, folder: Path, trials: Sequence[Trial]) -> None:
        self.folder = folder
        self._trials = tuple(trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, index: Any) -> Any:
        return self._trials[index]

    def pareto(self, cost: str = "parameters") -> list[Trial]:
        """The trials that no other beats in both loss and `cost` ("parameters", "macs" or "seconds"), the cheapest first."""
        if cost not in COSTS:
            raise InvalidValueError(f"cost {cost!r}: expected one of {', '.join(COSTS)}")
        done = [(getattr(trial, cost), trial.loss, trial) for trial in self._trials if trial.loss is not None]
        best: list[Trial] = []
        lowest = math.inf
        for _, loss, trial in sorted(done, key=lambda one: one[:2]):
            if loss < lowest:
                best.append(trial)
                lowest = loss
        return best

    def __repr__(self) -> str:
        failed = sum(trial.loss is None for trial in self)
        return f"Sweep({str(self.folder)!r}, {len(self)} trials{f', {failed} failed' if failed else ''})"

    def table(self) -> str:
        """A line a trial, as text."""
        rows = [["trial", "loss", *COSTS.values(), "options"]]
        for trial in self:
            figures = [figure(trial, name) for name in ("loss", *COSTS)]
            options = ", ".join(f"{name}={value}" for name, value in trial.options.items())
            rows.append([trial.run.name, *figures, options if trial.error is None else f"{options}: {trial.error}"])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = ["  ".join([*(cell.rjust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", "loss", *COSTS.values(), "options", "again"))
        best = {trial.run for trial in self.pareto()}
        body = ""
        for trial in self:
            options = ", ".join(f"{name}={value}" for name, value in trial.options.items())
            figures = "".join(f"<td>{html.escape(figure(trial, name))}</td>" for name in ("loss", *COSTS))
            again = f"<code>{html.escape(trial.command)}</code>" if trial.error is None else html.escape(trial.error)
            style = ' style="font-weight:bold"' if trial.run in best else ""
            name = html.escape(trial.run.name)
            body += f"<tr{style}><td>{name}</td>{figures}<td>{html.escape(options)}</td><td>{again}</td></tr>\n"
        return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"

    def save_page(self) -> Path:
        """Writes `sweep.html` into the folder: the table, and the loss against each cost with the best of both joined."""
        page = self.folder / PAGE
        parts = {"title": html.escape(self.folder.name), "picture": _plots.pareto(self, COSTS), "table": self._repr_html_()}
        text = PAGE_TEMPLATE.format(**parts)
        part = page.with_name(f".partial-{PAGE}")
        part.write_text(text, encoding="utf-8")
        part.replace(page)
        return page


def figure(trial: Trial, name: str) -> str:
    """A number of a trial as text."""
    value = getattr(trial, name)
    if value is None:
        return "–"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4g}" if name == "seconds" else f"{value:.4f}"


def sweep(
    model: str | os.PathLike[str] | None,
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    space: Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    *,
    num_samples: int = 1,
    threads: int = 1,
    concurrent: int | None = None,
    max_failures: int = 3,
    address: str | None = None,
    **options: Any,
) -> Sweep:
    """Runs every combination of options on Ray, and returns what came of each. `pip install upgrayedd[sweep]`.

    A trial is a run in a folder of its own in `output_dir`. One whose worker dies is started again and goes on from its last
    checkpoint; a sweep that was stopped or killed goes on when it is called again with the same arguments.

    Args:
        model: Hugging Face folder, run folder or Hub id; None or "builtin" for the built-in model.
        data: The files to learn from, of which the last tenth is measured on unless `eval_data` is among the options; an empty
            list for the built-in text.
        space: Option → a list of values to try, a distribution of `ray.tune` to draw from, or a value. Options are those of
            `upgrayedd optimize`, by the names that its TOML files have.
        output_dir: A folder for the sweep, on a file system that all machines of the cluster see.
        num_samples: Times that the grid is run through; distributions are drawn from anew each time.
        threads: Threads for a trial. Trials do not share out GPUs: with one, say `concurrent=1`.
        concurrent: Trials at once; None takes as many as there are cores for.
        max_failures: Times that a trial is started again after its worker has died.
        address: Of a Ray cluster ("auto" finds it); None starts Ray on this machine, unless it is running already.
        options: Options of every trial.

    Raises:
        InvalidValueError: (a ValueError) for options that are unknown or out of range, before anything runs.
        FileError: (an OSError) for a folder that has another sweep, or none.
    """
    try:
        import matplotlib  # noqa: F401
        import ray
        from ray import tune
    except ImportError as error:
        raise ImportError("sweeps need Ray and matplotlib: pip install upgrayedd[sweep]") from error
    folder = Path(output_dir).absolute()
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    here = Path.cwd()
    common: dict[str, Any] = {"data": [located(here, file) for file in files], "threads": threads, **options}
    if model is not None or (files and "model" not in space):
        common["model"] = "builtin" if model is None else model
    if not files and common.get("model", "builtin") != "builtin":
        raise InvalidValueError("data is missing: name at least one file to learn from")
    if not files:
        common.pop("model", None)
    common, space = placed(here, common), placed(here, space)
    trials = planned(folder, common, space, num_samples)
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    numbered: list[dict[str, Any]] = [
        {"run": str(folder / f"trial-{number:03d}"), "config": {**common, **trial}} for number, trial in enumerate(trials, 1)
    ]
    tuner = tune.Tuner(
        tune.with_resources(one_trial, {"cpu": threads}),
        param_space={"trial": tune.grid_search(numbered)},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(
            name=".ray",
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    results: Any = tuner.fit()
    # In the order of the grid.
    by_run = {result.config["trial"]["run"]: result for result in results}
    found = Sweep(
        folder, [outcome(one["run"], trial, by_run.get(one["run"])) for one, trial in zip(numbered, trials, strict=True)]
    )
    found.save_page()
    return found


def located(here: Path, name: str | os.PathLike[str]) -> str:
    """Where a file or folder is, for processes elsewhere; what is none is a name."""
    return str((here / name).absolute()) if (here / name).exists() else os.fspath(name)


def placed(here: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose files and folders are found from anywhere."""

    def of(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [of(one) for one in value]
        return located(here, value) if isinstance(value, (str, os.PathLike)) else value

    return {name: of(value) if name in PATHS else value for name, value in options.items()}


def planned(folder: Path, common: dict[str, Any], space: Mapping[str, Any], num_samples: int) -> list[dict[str, Any]]:
    """The options of each trial: those that the folder has from before, or new ones, which are written there."""
    if num_samples < 1:
        raise InvalidValueError(f"num_samples is {num_samples}: expected at least 1")
    twice = sorted(set(common) & set(space))
    if twice:
        raise InvalidValueError(f"{twice[0]} is given for all trials and in the space: leave one of them out")
    asked = {"common": common, "space": {name: described(value) for name, value in space.items()}, "num_samples": num_samples}
    asked = json.loads(json.dumps(asked))
    path = folder / PLAN
    if path.is_file():
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if plan["asked"] != asked:
            raise FileError(f"{folder} has another sweep, with other options: choose another output_dir")
        return list(plan["trials"])
    if folder.exists() and any(folder.iterdir()):
        raise FileError(f"{folder} exists and has no sweep: choose another output_dir")
    trials = [drawn(space, combination) for _ in range(num_samples) for combination in grid(space)]
    for trial in trials:
        check({**common, **trial})
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".partial-{PLAN}")
    part.write_text(json.dumps({"asked": asked, "trials": trials}, indent=1), encoding="utf-8")
    part.replace(path)
    return trials


def check(config: dict[str, Any]) -> None:
    """Refuses what is wrong with a trial, before any is run."""
    _native.check_config(json.dumps(config))
    shared = {name: config[name] for name in ("pruning_ratio", "growth_ratio", "min_heads") if name in config}
    get_strategy(config.get("strategy", "auto"), **shared, **config.get("strategy_option", {}))


def grid(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of what is listed."""
    listed = {name: values for name, values in space.items() if isinstance(values, (list, tuple))}
    empty = [name for name, values in listed.items() if not values]
    if empty:
        raise InvalidValueError(f"{empty[0]} has no values to try")
    return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


def drawn(space: Mapping[str, Any], combination: dict[str, Any]) -> dict[str, Any]:
    """A combination with a draw from each distribution, in the order of the space."""
    return {
        name: combination[name] if name in combination else value.sample() if hasattr(value, "sample") else value
        for name, value in space.items()
    }


def described(value: Any) -> Any:
    """A part of the space as JSON, the same in every process."""
    if hasattr(value, "sample"):
        parts = {name: part for name, part in vars(value).items() if isinstance(part, (str, int, float, list, tuple, type(None)))}
        sampler = value.get_sampler() if hasattr(value, "get_sampler") else value
        return {"distribution": type(value).__name__, "of": repr(parts), "drawn": type(sampler).__name__}
    return list(value) if isinstance(value, tuple) else value


def one_trial(given: dict[str, Any]) -> dict[str, Any]:
    """A run, from its beginning or from where it was saved, in a process of Ray's."""
    from upgrayedd.model import Model

    trial = given["trial"]
    run, config = Path(trial["run"]), trial["config"]
    try:
        if (run / "model").is_dir():
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        else:
            _native.set_num_threads(config["threads"])
            if (run / "run.toml").is_file():
                summary = json.loads(_native.resume(str(run), None, "{}", None, None, None))
            else:
                core = Model.from_pretrained(config.get("model", "builtin"))._core
                summary = json.loads(_native.optimize(json.dumps(config), core, False, None, "{}", None, None, None, str(run)))
    except InvalidValueError as error:
        # It would come to the same again; what else is wrong may pass.
        return {"error": str(error)}
    after = summary["after"]
    return {
        "loss": after["evaluation"]["loss"],
        "parameters": after["cost"]["parameters"],
        "macs": after["cost"]["macs_per_token"],
        "seconds": 1000.0 / after["speed"]["forward"],
    }


def outcome(run: str, options: dict[str, Any], result: Any) -> Trial:
    """What Ray says of a trial."""
    if result is None or result.error is not None:
        return Trial(
            Path(run), options, error="its worker died too often" if result is None else str(result.error).splitlines()[-1]
        )
    metrics = result.metrics or {}
    if "loss" not in metrics:
        return Trial(Path(run), options, error=metrics.get("error", "it was stopped"))
    return Trial(Path(run), options, **{name: metrics[name] for name in ("loss", *COSTS)})


def main(arguments: Sequence[str]) -> int:
    """`python -m upgrayedd sweep sweep.toml`: what the function takes, from a file."""
    import argparse
    import sys

    description = "Runs the combinations of options in [space] on Ray; docs/python.md shows a file."
    parser = argparse.ArgumentParser(prog="upgrayedd sweep", description=description)
    parser.add_argument("file", type=Path, help="TOML; paths in it are relative to it")
    parser.add_argument("--json", action="store_true", help="print the trials as JSON")
    args = parser.parse_args(arguments)
    try:
        # Ray says what it does on stdout, which is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            found = sweep(**read(args.file))
    except (UpgrayeddError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidValueError) else 1
    if args.json:
        print(json.dumps([{**vars(trial), "run": str(trial.run), "command": trial.command} for trial in found], indent=1))
    else:
        print(f"{found.table()}\n\nPage: {found.folder / PAGE}")
        for trial in found.pareto():
            print(f"{trial.run.name} again: {trial.command}")
    return 0 if all(trial.error is None for trial in found) else 1


def read(file: Path) -> dict[str, Any]:
    """The arguments of `sweep` from a TOML file."""
    try:
        import tomllib as toml
    except ImportError:
        import tomli as toml  # type: ignore[no-redef]
    try:
        with file.open("rb") as stream:
            options = toml.load(stream)
    except OSError as error:
        raise FileError(f"{file}: {error.strerror}") from error
    except toml.TOMLDecodeError as error:
        raise InvalidValueError(f"{file}: {error}") from error
    known = {"threads", "concurrent", "max_failures", "num_samples", "address"}
    ray_options = options.pop("ray", {})
    unknown = sorted(set(ray_options) - known)
    if unknown:
        raise InvalidValueError(f"{file}: [ray] has {unknown[0]}: expected {', '.join(sorted(known))}")
    missing = [name for name in ("output_dir", "space") if name not in options]
    if missing:
        raise InvalidValueError(f"{file}: {missing[0]} is missing")
    here = file.absolute().parent
    data = options.pop("data", [])
    options = placed(here, options)
    return {
        "model": options.pop("model", None),
        "data": [located(here, path) for path in ([data] if isinstance(data, str) else data)],
        "output_dir": here / options.pop("output_dir"),
        "space": placed(here, options.pop("space")),
        **ray_options,
        **options,
    }
