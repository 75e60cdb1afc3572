"""Neural plasticity cycles on a user's model and data."""

from __future__ import annotations

import html
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upgrayedd import _data, _group, _native
from upgrayedd._events import Dispatcher
from upgrayedd.callbacks import Callback
from upgrayedd.errors import FileError, InvalidValueError
from upgrayedd.history import History
from upgrayedd.model import Model
from upgrayedd.options import RunOptions
from upgrayedd.strategies import STRATEGIES, BasePruningStrategy, get_strategy
from upgrayedd.strategies._adapter import Adapter
from upgrayedd.strategies.base import number

if TYPE_CHECKING:
    from typing_extensions import Unpack

ELSEWHERE = {
    **dict.fromkeys(("pruning_ratio", "growth_ratio", "min_heads"), "strategy=get_strategy(name, {}=…)"),
    "strategy_option": "strategy=get_strategy(name, …)",
    "strategy_seed": "strategy=get_strategy(name, seed=…)",
    **dict.fromkeys(("num_cycles", "epochs_per_cycle"), "run_optimization({}=…)"),
    "data": "run_optimization(data)",
    "eval_data": "run_optimization(data, eval_dataloader=…)",
    "family": "model=Model.from_pretrained(name, family=…)",
    "threads": "upgrayedd.set_num_threads(n), before any work",
}
"""Options of the command line that are said elsewhere here."""


class UpgrayeddPipeline:
    """Prunes, measures, grows, learns and measures again, cycle by cycle; every run can be continued and repeated.

    Args:
        model: Hugging Face folder, run folder or Hub id (`id@revision` for a version of it), "builtin", a `Model`, or a
            `transformers.PreTrainedModel`.
        tokenizer: The tokenizer where the model brings none: a folder, a `Tokenizer`'s folder, a `tokenizers.Tokenizer`,
            or a transformers tokenizer. Texts need one, batches of token ids do not.
        strategy: A name, a strategy object, or one of your own (`BasePruningStrategy`). By name it has its default parameters.
        device: "auto" (the first GPU that can be used, or the CPU), "cpu", "cuda" or "cuda:N".
        output_dir: The run folder, which must not exist; None takes `runs/MODEL-STRATEGY-N`.
        learning_rate: Peak learning rate; None takes 5e-5 (1e-3 for the built-in model).
        callbacks: `Callback` objects.
        seed: Of every random choice.
        options: Any other option of the command line (`upgrayedd.options.RunOptions`), such as `batch_size`, `sequence_length`,
            `max_steps_per_cycle`, `max_loss_increase`, `budget`, `scope`, `teacher`. None is as if it were left out.

    Raises:
        InvalidValueError: (a ValueError) for an unknown name or option, or a value out of range.
        FileError: (an OSError) for a model that cannot be read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        strategy: str | BasePruningStrategy = "auto",
        device: str = "auto",
        *,
        output_dir: str | os.PathLike[str] | None = None,
        learning_rate: float | None = None,
        callbacks: Sequence[Callback] = (),
        seed: int = 42,
        **options: Unpack[RunOptions],
    ) -> None:
        self.strategy = checked_strategy(get_strategy(strategy) if isinstance(strategy, str) else strategy)
        callbacks = checked_callbacks(callbacks)
        self.model = as_model(model, tokenizer)
        # What a name stands for is read again by it; whatever else it may be, the run keeps.
        named = isinstance(model, (str, os.PathLike)) and tokenizer is None
        self._name = os.fspath(model) if named else None
        self._named_state = self.model._core.state_id()
        self.history = History()
        self.run_dir: Path | None = None
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._callbacks = callbacks
        self._resumed = False
        for name in options:
            if name in ELSEWHERE:
                raise InvalidValueError(f"{name} is not an option of the pipeline: use {ELSEWHERE[name].format(name)}")
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        self._config = {k: plain(k, v) for k, v in {**options, **rate, "device": device, "seed": seed}.items() if v is not None}
        _native.check_config(json.dumps(self._full_config(1, 1)))

    @classmethod
    def resume(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        strategy: BasePruningStrategy | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> UpgrayeddPipeline:
        """A pipeline that continues an interrupted run from where it was last saved: call `finish` on it.

        Args:
            run_dir: The folder of the run.
            strategy: The same strategy object, if the run was started with one of your own.
            callbacks: `Callback` objects.

        What the run was started with, it goes on with: cycles, epochs and options are those of its `run.toml`, and data has to be
        the same. A loader gives the same bits again if it gives the same batches in the same order; one that shuffles goes on
        with the sequences that were held out, and learns from the others in an order of its own.

        Raises:
            InvalidValueError: (a ValueError) for another strategy than the run's.
            FileError: (an OSError) for what is no run folder, or is in use.
        """
        text, core = _native.recorded(os.fspath(run_dir))
        record = json.loads(text)
        config = record["config"]
        shared = {k: config[k] for k in ("pruning_ratio", "growth_ratio", "min_heads")}
        if not record["given"]["strategy"]:
            if strategy is not None:
                raise InvalidValueError(
                    f"the run has a built-in strategy, {config['strategy']}, with its parameters: leave strategy out"
                )
            strategy = get_strategy(config["strategy"], **shared, seed=config.get("strategy_seed"), **config["strategy_option"])
        elif strategy is None:
            raise InvalidValueError("the run was started with a strategy of your own: give it again as strategy=")
        elif type(checked_strategy(strategy)).__name__ != config["strategy"]:
            raise InvalidValueError(f"the run was started with a {config['strategy']}, not a {type(strategy).__name__}")
        else:
            for name, value in shared.items():
                if getattr(strategy, name) != value:
                    raise InvalidValueError(f"the run was started with {name}={value}, not {getattr(strategy, name)}")
        pipeline = cls.__new__(cls)
        pipeline.strategy = strategy
        pipeline.model = Model._of(core)
        pipeline._name, pipeline._named_state = None, 0
        pipeline.history = History()
        pipeline.run_dir = pipeline._output_dir = Path(run_dir)
        pipeline._callbacks = checked_callbacks(callbacks)
        pipeline._resumed = True
        pipeline._config = {**config, "needs_data": record["given"]["data"]}
        return pipeline

    def run_optimization(
        self,
        dataloader: Any = None,
        num_cycles: int = 3,
        epochs_per_cycle: int = 1,
        eval_dataloader: Any = None,
    ) -> Model:
        """Runs the cycles and returns the optimised model, which is in `run_dir/model` too.

        Args:
            dataloader: What to learn from: `TextFiles` or a path; texts; a `torch.utils.data.DataLoader`, a
                `datasets.Dataset`, or any iterable of dictionaries with `input_ids`, `attention_mask`, `labels` (tensors,
                arrays or lists; ragged ones are padded, labels of -100 do not count), tuples of these, or arrays of token
                ids; or a function that returns such an iterator. Each epoch reads it anew. None only for the built-in
                model, which brings its own text.
            num_cycles: Cycles.
            epochs_per_cycle: Passes over the data per cycle.
            eval_dataloader: What to measure on; None holds out the last tenth of `dataloader`.

        Raises:
            InvalidValueError: (a ValueError) for data that cannot be used, or an impossible decision of a strategy.
            KeyboardInterrupt: On Ctrl-C; what has been learned is saved, and `resume(run_dir).finish()` continues.
        """
        self._check_new()
        return self._run(dataloader, num_cycles, epochs_per_cycle, eval_dataloader, None)

    def run_continuous(
        self,
        dataloader: Any,
        until: Callable[[History], bool],
        epochs_per_cycle: int = 1,
        eval_dataloader: Any = None,
    ) -> Model:
        """Runs cycles until `until(history)` is true after one of them, and returns the optimised model.

        Args:
            dataloader: As for `run_optimization`.
            until: Asked after every cycle.
            epochs_per_cycle: Passes over the data per cycle.
            eval_dataloader: As for `run_optimization`.
        """
        self._check_new()
        if self._config.get("schedule") == "target":
            raise InvalidValueError("schedule 'target' spreads the ratio over a number of cycles: use run_optimization")
        return self._run(dataloader, _native.OPEN_ENDED, epochs_per_cycle, eval_dataloader, until)

    def finish(
        self, dataloader: Any = None, eval_dataloader: Any = None, *, until: Callable[[History], bool] | None = None
    ) -> Model:
        """Continues the run that `resume` has opened to its end, and returns the optimised model.

        Args:
            dataloader: The same data as before; None if the run reads files or the built-in text.
            eval_dataloader: Likewise.
            until: For a run that was started by `run_continuous`: asked after every cycle; `history` has the cycles before too.
        """
        if not self._resumed:
            raise InvalidValueError("finish continues a run: open one with resume(run_dir), or use run_optimization")
        open_ended = self._config["num_cycles"] == _native.OPEN_ENDED
        if open_ended != (until is not None):
            way = (
                "has no number of cycles: say with until=… when it ends"
                if open_ended
                else "has a number of cycles: leave until out"
            )
            raise InvalidValueError(f"the run {way}")
        return self._run(dataloader, self._config["num_cycles"], self._config["epochs_per_cycle"], eval_dataloader, until)

    def __repr__(self) -> str:
        strategy = self.strategy.name or type(self.strategy).__name__
        return f"UpgrayeddPipeline({self.model!r}, strategy={strategy!r}, run_dir={str(self.run_dir)!r})"

    def _repr_html_(self) -> str:
        """The run's page, once there is one: a notebook shows it in a frame of its own."""
        page = None if self.run_dir is None else self.run_dir / "report.html"
        if page is None or not page.is_file():
            return f"<div>{html.escape(repr(self))}{self.history._repr_html_()}</div>"
        source = html.escape(page.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{source}" sandbox style="width:100%;height:40em;border:1px solid #888"></iframe>'

    def _check_new(self) -> None:
        if self._resumed:
            raise InvalidValueError("the run has its cycles and options already: continue it with finish(dataloader)")

    def _run(self, data: Any, num_cycles: int, epochs: int, eval_data: Any, until: Callable[[History], bool] | None) -> Model:
        config = self._config if self._resumed else self._full_config(num_cycles, epochs)
        if not self._resumed:
            _native.check_config(json.dumps(config))
        source, files, reading = self._sources(data, eval_data, config)
        # A built-in strategy is the core's own: the same bits as on the command line, and nothing to give again.
        adapter = None if type(self.strategy) in STRATEGIES.values() else Adapter(self.strategy)
        history = self.history = History()
        group = _group.joined()
        first = group is None or group.rank == 0
        begun = not self._resumed

        def record(event: dict[str, Any]) -> bool:
            nonlocal begun
            # By its first event, a run that goes on has cut off what was written after its checkpoint. Notices are not written.
            if begun or event["event"] == "notice":
                history._record(event)
            else:
                history._load(Path(str(self.run_dir)))
                begun = True
            # Of several processes the first decides for all.
            return until is not None and first and event["event"] == "saved" and bool(until(history))

        handler = Dispatcher(self._callbacks, record, lambda: len(history.steps))
        if self._resumed:
            summary = _native.resume(str(self.run_dir), source, json.dumps(reading), adapter, handler, group)
        else:
            if group is not None and self._output_dir is None:
                raise InvalidValueError(
                    "several processes share the run: name its folder, output_dir, on a file system that all see"
                )
            out = self.run_dir = self._output_dir or self._default_out()
            if out.exists():
                unfinished = (out / "run.toml").is_file() and not (out / "model").is_dir()
                way = f", or continue it with UpgrayeddPipeline.resume({str(out)!r}).finish()" if unfinished else ""
                raise FileError(f"{out} already exists: choose another output_dir{way}")
            config.update(files)
            if self._origin() == "builtin" and source is not None:
                config["model"] = "builtin"
            keep, text = self._origin() is None, json.dumps(config)
            parts = (keep, source, json.dumps(reading), adapter, handler, group, str(out))
            summary = _native.optimize(text, self.model._core, *parts)
        if not first and self._resumed:
            # What came before was read while the first process wrote.
            history = self.history = History.read(str(self.run_dir))
        history.summary = json.loads(summary)
        return Model.from_pretrained(str(Path(history.summary["run"])))

    def _sources(
        self, data: Any, eval_data: Any, config: dict[str, Any]
    ) -> tuple[tuple[_data.Source, _data.Source | None] | None, dict[str, Any], dict[str, Any]]:
        """What the core is given, or what the configuration says instead (the built-in text, files); how texts are read."""
        if data is None:
            if self._resumed and config["needs_data"]:
                raise InvalidValueError("the run was started with data of yours: give the same again")
            if not self._resumed and self._origin() != "builtin":
                raise InvalidValueError("no data: give a path, texts, or a data loader")
            return None, {}, {}
        if self._resumed and not config["needs_data"]:
            raise InvalidValueError("the run reads the files it was started with: call finish without data")
        data, eval_data = _data.as_files(data), _data.as_files(eval_data)
        by_core = isinstance(data, _data.TextFiles) and (
            eval_data is None or isinstance(eval_data, _data.TextFiles) and len(eval_data.paths) == 1
        )
        if by_core and self._origin() not in (None, "builtin"):
            files = {"data": [str(p) for p in data.paths], **_data.joint_options(data, eval_data)}
            return None, files if eval_data is None else {**files, "eval_data": str(eval_data.paths[0])}, {}
        train, measured, options = _data.sources(
            data,
            eval_data,
            tokenizer=lambda: self.model.tokenizer,
            classifies=self.model._classifies(),
            batch_size=config.get("batch_size", 4),
            max_length=config.get("sequence_length") or min(256, int(self.model._info()["max_positions"])),
            epochs=config["num_cycles"] * config["epochs_per_cycle"],
        )
        own = {name: config[name] for name in _data.READING if config.get(name) is not None}
        return (train, measured), {}, {**own, **options}

    def _full_config(self, num_cycles: int, epochs_per_cycle: int) -> dict[str, Any]:
        strategy = self.strategy
        shared = {k: v for k, v in strategy._common().items() if k != "seed"}
        seed = {} if strategy.seed is None else {"strategy_seed": strategy.seed}
        config: dict[str, Any] = {
            **self._config,
            **shared,
            **seed,
            "num_cycles": num_cycles,
            "epochs_per_cycle": epochs_per_cycle,
        }
        if type(strategy) in STRATEGIES.values():
            config |= {"strategy": strategy.name, "strategy_option": strategy._options()}
        if self._origin() not in (None, "builtin"):
            config["model"] = self._origin()
        return config

    def _origin(self) -> str | None:
        """What loads this very model; None if nothing does."""
        return self._name if self.model._core.state_id() == self._named_state else None

    def _default_out(self) -> Path:
        origin = self._origin()
        stem = f"{Path(origin).name if origin else self.model.family}-{self.strategy.name or type(self.strategy).__name__}"
        return next(p for n in itertools.count(1) if not (p := Path("runs") / f"{stem}-{n}").exists())


def checked_strategy(strategy: Any) -> BasePruningStrategy:
    """A strategy object, made as it should be."""
    if not isinstance(strategy, BasePruningStrategy):
        raise InvalidValueError(
            f"strategy is a {type(strategy).__name__}: expected {', '.join(map(repr, STRATEGIES))} "
            "or an object of a subclass of BasePruningStrategy"
        )
    if not hasattr(strategy, "pruning_ratio"):
        raise InvalidValueError(f"{type(strategy).__name__} has no pruning_ratio: its __init__ has to call super().__init__(…)")
    return strategy


def checked_callbacks(callbacks: Any) -> list[Callback]:
    """A list of callbacks."""
    if not isinstance(callbacks, (list, tuple)):
        raise InvalidValueError(f"callbacks is a {type(callbacks).__name__}: expected a list of Callback objects")
    wrong = [c for c in callbacks if not isinstance(c, Callback)]
    if wrong:
        raise InvalidValueError(f"callbacks: {type(wrong[0]).__name__} given: expected objects of a subclass of Callback")
    return list(callbacks)


def plain(name: str, value: Any) -> Any:
    """An option as JSON takes it: NumPy's numbers and paths are welcome, what is no finite number is not."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = number(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValueError(f"{name} is {value}: expected a finite number")
    if not isinstance(value, (str, int, float, list, tuple, dict, type(None))):
        raise InvalidValueError(f"{name} is a {type(value).__name__}: expected a number, a name or a path")
    return value


def as_model(model: Any, tokenizer: Any) -> Model:
    """Our model of whatever the user brings, with the tokenizer's files beside it."""
    if isinstance(tokenizer, str) and tokenizer in STRATEGIES and not os.path.exists(tokenizer):
        raise InvalidValueError(f"tokenizer {tokenizer!r} is no folder with a tokenizer (a strategy is given as strategy=)")
    if isinstance(model, (str, os.PathLike)):
        loaded = Model.from_pretrained(model)
    elif isinstance(model, Model):
        loaded = model.copy()
    elif hasattr(model, "state_dict"):
        return Model.from_transformers(model, tokenizer)
    else:
        raise InvalidValueError(
            f"model is a {type(model).__name__}: expected a folder, a Hub id, an upgrayedd.Model "
            "or a transformers.PreTrainedModel"
        )
    if tokenizer is not None:
        loaded._attach(tokenizer)
    return loaded
