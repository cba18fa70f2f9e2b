"""The training loop: candidate projections learn, everything else is frozen.

    folder = train(TrainingConfig.from_toml("train.toml"))

Stopped at any point (Ctrl-C included), the same call goes on from the last resume state with the same examples and the
same result.
"""

from __future__ import annotations

import math
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from safetensors import SafetensorError
from transformers import PreTrainedModel

from focus_core.device import naming_lack_of_memory, peak_bytes
from focus_core.disk import replace_file
from focus_core.errors import ConfigError, FocusError
from focus_core.loading.adapters import save_adapter
from focus_core.loading.fingerprint import other_shapes, weights_fingerprint
from focus_core.methods.focus import FocusModel
from focus_core.progress import progress_bar
from focus_core.training.ahead import Examples, prefetched
from focus_core.training.card import write_card
from focus_core.training.config import TrainingConfig
from focus_core.training.examples import TrainingExample
from focus_core.training.kept import KeptChunks
from focus_core.training.log import LossLog, Unwritten
from focus_core.training.loss import FocusLoss
from focus_core.training.start import (
    boundaries_of,
    checked_trackers,
    chosen_device,
    focus_model_for,
    make_folder,
    usable,
)

Evaluate = Callable[[FocusModel], dict[str, float]]

RESUME_STATE = "checkpoint.pt"  # the name that the file has had since the first version
ADAPTER = "adapter"
BEST = "best"  # the adapter with the lowest loss on the held-out questions
_STATE = ("done", "config", "identity", "projections", "optimizers", "scaler")  # in a resume state
_LOOKED_AT = 64  # examples of a rehearsal, at most; a large one among few small ones decides on the memory
_LONGEST_EVALUATION = timedelta(days=1)  # the main process evaluates, and the others wait for its next gradients
_LEARN_FROM_LESS = (
    "Set recompute=true, lower max_chunks, the largest of chunk_sizes or targets_per_span, or use dtype='bfloat16'."
)


def train(
    config: TrainingConfig,
    *,
    model: PreTrainedModel | FocusModel | None = None,
    examples: Examples | None = None,
    records: Iterable[Mapping[str, Any]] | None = None,
    evaluate: Evaluate | None = None,
    until: int | None = None,
) -> Path:
    """Train candidate projections and save them as an adapter.

    Args:
        model: the base model, or a `FocusModel` whose projections go on learning; `None` loads `config.model`
        examples: example number i as a function of i (best: exact resume costs nothing), or an iterable in a fixed
            order; `None` reads `config.data`
        records: instead of files, the rows of a dataset, which may be streamed: with the fields of a line, in a fixed
            order that begins anew with each iteration, one example of each
        evaluate: called every `evaluate_every` steps and at the end; its results are logged, beside those of the
            questions that `config` holds out
        until: end after this step of a schedule that is laid out for more; a call without it goes on from there

    Returns:
        the adapter's folder; with held-out questions that of the best one

    Raises:
        ConfigError: settings that cannot work, or a resume state of other settings
        OutOfMemoryError: an example does not fit the device
        FocusError: the gradient is not finite, or the state cannot be saved
        KeyboardInterrupt: after Ctrl-C, once the state is saved
    """
    with _started(config, model, examples, records) as (run, made):
        if run.config.holds_out:
            evaluate = _with_validation(run, evaluate, made)
        return run.to_the_end(made, evaluate, until)


def rehearse(
    config: TrainingConfig,
    *,
    model: PreTrainedModel | FocusModel | None = None,
    examples: Examples | None = None,
    records: Iterable[Mapping[str, Any]] | None = None,
) -> Rehearsal:
    """What a run would take, by the sizes of its first examples; nothing is saved but what goes to a `store`.

    Raises:
        ConfigError: settings that cannot work
        OutOfMemoryError: an example does not fit the device
    """
    with _started(config, model, examples, records) as (run, made):
        if run.config.holds_out:
            _with_validation(run, None, made)  # reads it, so that what cannot be held out is found now
        return run.rehearse(made)


def _require_one_source(
    config: TrainingConfig, examples: Examples | None, records: Iterable[Mapping[str, Any]] | None
) -> None:
    """One of the others would be ignored, and the model card would name it as trained."""
    given = {"data": bool(config.data), "examples": examples is not None, "records": records is not None}
    names = [name for name, there in given.items() if there]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} are both given. Leave one of them out.")


def _require_whole_model(accelerator: Accelerator) -> None:
    """Only projections are parameters of the module that is prepared: what shards it would shard nothing else."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"distributed_type={kind.value}: each process holds the frozen model as a whole, and the projections are "
            "too small to be divided. Use MULTI_GPU or MULTI_CPU, and dtype='bfloat16' or a quantised model for less "
            "memory."
        )


@contextmanager
def _started(
    config: TrainingConfig,
    model: PreTrainedModel | FocusModel | None,
    examples: Examples | None,
    records: Iterable[Mapping[str, Any]] | None,
) -> Iterator[tuple[_Run, Examples]]:
    """A run and its examples; what it changed in this process is put back at the end."""
    _require_one_source(config, examples, records)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.accumulation
        ),  # no variable changes it
        cpu=chosen_device(config).type == "cpu",
        log_with=checked_trackers(config.trackers) or None,
        project_dir=str(config.output),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_EVALUATION)],
    )
    try:
        _require_whole_model(accelerator)
        make_folder(config.output)
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        focus, base_id = focus_model_for(config, model, accelerator.device)
        config = config.with_rank(focus.projections.rank)
        if examples is None:
            used_with = replace(
                config.for_use(), bos_per_chunk=config.bos_per_chunk, boundaries=boundaries_of(config, focus)
            )  # as the chunks are trained
            config = usable(config, used_with, focus)
            examples = _made_from(records, config, focus, base_id, visible=accelerator.is_main_process)
        else:
            config = usable(config, config.used_with or focus.config.as_settings(), focus)
        yield _Run(config, accelerator, focus, base_id), examples
    finally:
        if isinstance(model, FocusModel):
            model.projections.to(model.dtype)  # as it was handed over
        # Otherwise a second run in this process could not choose another precision or device.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)


def _with_validation(run: _Run, evaluate: Evaluate | None, trained: Examples) -> Evaluate:
    from focus_core.training.validation import Validation  # needs a tokenizer

    validation = Validation(run.config, run.focus, run.base_id, kept=run.kept)
    validation.warn_of(trained)
    run.identity["held_out"] = validation.digest
    return lambda focus: {**validation(focus), **(evaluate(focus) if evaluate else {})}


def _kept_chunks(config: TrainingConfig, focus: FocusModel) -> KeptChunks | None:
    if config.store is None:
        return None
    return KeptChunks(config.store, focus, computed_in=config.mixed_precision, limit=config.store_limit)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """In step number `step`, from 0: linear warm-up, then a cosine down to `final_share`."""
    highest = config.learning_rate
    assert highest is not None, "a run knows its rank, and so has a rate"
    if step < config.warm_up:
        return highest * (step + 1) / config.warm_up
    progress = (step - config.warm_up) / max(config.steps - config.warm_up, 1)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return highest * share


def _optimizers(config: TrainingConfig, parameters: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    rate, decay = learning_rate(config, config.warm_up), config.weight_decay
    matrices = [parameter for parameter in parameters if parameter.ndim == 2 and config.optimizer == "muon"]
    others = [parameter for parameter in parameters if parameter.ndim != 2 or config.optimizer != "muon"]
    chosen: list[torch.optim.Optimizer] = []
    if matrices:
        chosen.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        chosen.append(torch.optim.AdamW(others, lr=rate, betas=config.betas, weight_decay=decay))
    return chosen


@dataclass(frozen=True)
class Rehearsal:
    """What a run would take.

    Attributes:
        parameters: those that learn
        adapter_bytes: of the adapter's file
        seconds_per_step: without evaluations
        peak_bytes: the most memory so far, with gradients; two further copies of what learns come with the optimizer
    """

    parameters: int
    adapter_bytes: int
    seconds_per_step: float
    steps: int
    peak_bytes: int

    @property
    def hours(self) -> float:
        """Of all steps."""
        return self.seconds_per_step * self.steps / 3600


class _Run:
    """One training run: its optimizers and its loop."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, focus: FocusModel, base_id: str) -> None:
        self.config, self.accelerator, self.focus, self.base_id = config, accelerator, focus, base_id
        # A run of the same settings goes on with the same result only if these are equal, too.
        self.identity: dict[str, Any] = {
            "dtype": str(focus.dtype),
            "model": weights_fingerprint(focus.model, focus.parts),
            "processes": accelerator.num_processes,
        }
        self._unwritten = Unwritten()
        self.kept = _kept_chunks(config, focus)
        loss = FocusLoss(
            focus,
            recompute=config.recompute,
            distillation=config.distillation,
            temperature=config.temperature,
            kept=self.kept,
        )
        self.loss, *self.optimizers = accelerator.prepare(loss, *_optimizers(config, list(loss.parameters())))

    def to_the_end(self, examples: Examples, evaluate: Evaluate | None, until: int | None = None) -> Path:
        last = self.config.steps if until is None else min(until, self.config.steps)
        self.identity["data"] = getattr(examples, "data_digest", None)
        self.identity["boundaries"] = getattr(examples, "boundaries", None)
        first = self._saved_after = self._resume()
        numbers = self._example_numbers(first)
        log = LossLog(self.config, first, self.accelerator, self._unwritten)
        with self._tracked(), log, _asked_to_stop() as stop, prefetched(examples, numbers) as ready:
            if evaluate is not None and first and self._evaluates_after(first) and not log.has_evaluation(first):
                self._judge(first, evaluate, log)  # the run stopped before it
            for step in range(first, last):
                if self._out_of_patience(step, log):
                    log.end(step, learning_rate(self.config, step - 1))
                    if step > self._saved_after:
                        self._save(step, log.unwritten())
                    break
                with naming_lack_of_memory(_LEARN_FROM_LESS), self._saved_if_examples_end(step, log):
                    self._step(step, ready, log)
                done = step + 1
                stopping = self._any_process(stop.is_set())
                if done % self.config.save_every == 0 or done == last or stopping:
                    self._save(done, log.unwritten())
                if stopping:
                    if self.accelerator.is_main_process:
                        self._write_cards(log)
                    raise KeyboardInterrupt(f"Stopped and saved after step {done} of {self.config.steps}.")
                if evaluate is not None and self._evaluates_after(done):
                    self._judge(done, evaluate, log)
            if self.accelerator.is_main_process:
                self._write_cards(log)
        self.accelerator.wait_for_everyone()  # else others would return a folder that is still being written
        self.accelerator.end_training()
        return self.config.output / (BEST if self.config.holds_out else ADAPTER)

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """Losses go to the trackers, which end with the run also where it is stopped."""
        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self.config.plain().items()
        }
        self.accelerator.init_trackers(self.config.output.name, config=settings)
        try:
            yield
        except BaseException:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            raise

    def rehearse(self, examples: Examples) -> Rehearsal:
        """Losses and gradients of an example of middle size, twice, and of the largest one; without a step."""
        first = range(min(_LOOKED_AT, self.config.steps * self.config.accumulation))
        with prefetched(examples, first) as ready:
            by_size = sorted(ready, key=lambda example: example.tokens_read)
        middle = by_size[len(by_size) // 2]
        a_token, parameters = list[float](), list(self.loss.parameters())
        with naming_lack_of_memory(_LEARN_FROM_LESS):
            for example in (middle, middle, by_size[-1]):  # the first is slower than those that follow
                began = time.monotonic()
                self.accelerator.backward(self.loss(example))
                if self.focus.device.type == "cuda":
                    torch.cuda.synchronize(self.focus.device)
                a_token.append((time.monotonic() - began) / example.tokens_read)
        tokens = statistics.mean(example.tokens_read for example in by_size)
        return Rehearsal(
            parameters=sum(parameter.numel() for parameter in parameters),
            adapter_bytes=sum(parameter.nbytes for parameter in parameters),
            seconds_per_step=statistics.median(a_token) * tokens * self.config.accumulation,
            steps=self.config.steps,
            peak_bytes=peak_bytes(self.focus.device),
        )

    @contextmanager
    def _saved_if_examples_end(self, step: int, log: LossLog) -> Iterator[None]:
        """Save the state before this step if its examples cannot be made; other processes may still make theirs."""
        if self.accelerator.num_processes > 1:
            yield
            return
        unwritten = log.unwritten()
        try:
            yield
        except ConfigError:
            if step > self._saved_after:
                self._save(step, unwritten)
            raise

    def _step(self, step: int, ready: Iterator[TrainingExample], log: LossLog) -> None:
        """One optimizer step over `accumulation` examples."""
        rate = learning_rate(self.config, step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        norm, began = 0.0, time.monotonic()
        for example in islice(ready, self.config.accumulation):
            with self.accelerator.accumulate(self.loss):
                loss = self.loss(example)
                self.accelerator.backward(loss * example.weight)
                if self.accelerator.sync_gradients:
                    norm = float(
                        self.accelerator.clip_grad_norm_(self.loss.parameters(), self.config.max_gradient_norm)
                    )
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            log.example(example.objective, loss.item(), example.num_targets)
        if not math.isfinite(norm) and self.config.mixed_precision != "fp16":
            raise FocusError(f"Step {step + 1}: the gradient is {norm}. Lower learning_rate, or look at the data.")
        log.step(step + 1, rate, norm, time.monotonic() - began)

    # --- examples -----------------------------------------------------------------------------------------------------

    def _example_numbers(self, first: int) -> Iterable[int]:
        """Numbers of this process's examples from optimizer step `first` on."""
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        per_step = self.config.accumulation * processes
        return range(first * per_step + rank, self.config.steps * per_step, processes)

    # --- state --------------------------------------------------------------------------------------------------------

    def _save(self, done: int, unwritten: Unwritten) -> None:
        """The exact state after `done` steps, and the projections as an adapter that can be used at once."""
        self.accelerator.wait_for_everyone()
        self._saved_after = done
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "done": done,
            "config": self.config.settings_digest(),
            "identity": self.identity,
            "projections": self.focus.projections.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": None if scaler is None else scaler.state_dict(),
            "unwritten": asdict(unwritten),
        }
        try:
            self._save_adapter(ADAPTER)  # first: of a run that is killed between the two, the step is done again
            replace_file(self.config.output / RESUME_STATE, lambda path: torch.save(state, path))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors do not say OSError
            raise FocusError(
                f"Step {done} could not be saved in {self.config.output} ({error}). Make room there, and go on from "
                "the last step that was saved."
            ) from error

    def _save_adapter(self, name: str) -> None:
        save_adapter(
            self.config.output / name,
            self.focus.projections,
            self.focus.model,
            trained_with=self.config.for_use(),
            base_id=self.base_id,
        )

    def _resume(self) -> int:
        """Load the last resume state if there is one; returns the number of steps already done."""
        path = self.config.output / RESUME_STATE
        if not path.exists():
            return 0
        try:
            saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            state = {name: saved[name] for name in _STATE}
            unwritten = Unwritten(**saved.get("unwritten", {}))  # older versions wrote a row with every state
        except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged, or no resume state of this program ({error}). Delete it to start again."
            ) from error
        ours = self.config.settings_digest()
        # A state from before there was a setting is of a run with its default.
        theirs = {**TrainingConfig(self.config.output).settings_digest(), **state["config"]}
        if theirs["rank"] == "None":  # older states leave it to the projections
            theirs["rank"] = str(_rank_of(state["projections"]))
        differing = [name for name, value in ours.items() if theirs[name] != value]
        if differing:
            changes = ", ".join(f"{name}: {theirs[name]} there, {ours[name]} now" for name in differing)
            raise ConfigError(
                f"{path} is of a run with other settings ({changes}). Go on with those, choose another output folder, "
                "or delete it to start again."
            )
        for name, ours_now in self.identity.items():
            if name in ("held_out", "boundaries") and name not in state["identity"]:
                continue  # the run held nothing out so far, or did not note what
            if not _same(state["identity"].get(name), ours_now):
                other = {
                    "dtype": f"dtype of the base model ({state['identity'].get('dtype')}, now {ours_now})",
                    "model": "base model",
                    "data": "content of the data files",
                    "held_out": "held-out part (validation or held_out of the data, validation_examples)",
                    "boundaries": f"place where chunks end ({state['identity'][name]}, now {ours_now})",
                    "processes": f"number of processes ({state['identity'][name]})",
                }[name]
                raise ConfigError(
                    f"{path} is of a run with another {other}. Go on with that, choose another output folder, or "
                    "delete it to start again."
                )
        self.identity = {**state["identity"], **self.identity}
        self.focus.projections.load_state_dict(state["projections"])
        for optimizer, its_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            self._unwritten = unwritten
        else:  # the main process has their examples
            self._unwritten = replace(unwritten, examples=[])
        if self.identity.keys() != state["identity"].keys():  # from now on it is compared
            self._save(int(state["done"]), unwritten)
        return int(state["done"])

    # --- evaluation and stopping --------------------------------------------------------------------------------------

    def _evaluates_after(self, done: int) -> bool:
        every = self.config.evaluate_every
        return self.accelerator.is_main_process and (done == self.config.steps or (every > 0 and done % every == 0))

    def _judge(self, done: int, evaluate: Evaluate, log: LossLog) -> None:
        """Evaluate, and keep the adapter if there was no better one."""
        results = self._evaluate(evaluate)
        if self.config.holds_out and log.would_be_best(results):
            self._save_adapter(BEST)  # before the row is written: a run that is killed between the two evaluates again
        log.evaluated(done, results)

    def _write_cards(self, log: LossLog) -> None:
        """Of the last adapter, and of the best."""
        steps = {ADAPTER: self._saved_after}
        if self.config.holds_out:
            steps[BEST] = log.best()[0]
        for name, step in steps.items():
            if (self.config.output / name).is_dir():  # of a run that is stopped before an evaluation there is no best
                write_card(self.config.output / name, self.config, self.base_id, step)

    def _out_of_patience(self, step: int, log: LossLog) -> bool:
        """Whether the held-out loss has not fallen for so long that the run ends before this step."""
        config = self.config
        evaluated = step > 0 and config.evaluate_every > 0 and step % config.evaluate_every == 0
        if not (config.holds_out and config.patience and evaluated):
            return False
        main = self.accelerator.is_main_process
        return self._any_process(main and log.best()[1] >= config.patience)

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        with torch.no_grad(), self.accelerator.autocast():
            return evaluate(self.focus)

    def _any_process(self, flag: bool) -> bool:
        """Processes stop together: the others would wait for the gradients of the one that stopped."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([int(flag)], device=self.accelerator.device)
        return bool(self.accelerator.gather(flags).any())


def _rank_of(projections: Mapping[str, torch.Tensor]) -> int:
    """Of a state dict of projections; 0 for full copies."""
    return next((len(tensor) for name, tensor in projections.items() if name.endswith("down.weight")), 0)


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a part of two runs' identities is the same; older fingerprints of a model have fewer numbers."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return not other_shapes(theirs, ours) and theirs["weights"] == ours["weights"]
    return bool(theirs == ours)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that a step is never cut in half; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _made_from(
    records: Iterable[Mapping[str, Any]] | None,
    config: TrainingConfig,
    focus: FocusModel,
    base_id: str,
    *,
    visible: bool,
) -> Examples:
    """Examples of a dataset's rows, or of the files that `config` names."""
    from focus_core.training.data import FileExamples  # needs a tokenizer, which examples made in Python do not

    if records is not None:
        return FileExamples.stream(config, records, focus, base_id)
    examples = FileExamples.open(config, focus, base_id)
    with progress_bar("checking the data", visible=visible) as progress:
        examples.check(progress)
    return examples
