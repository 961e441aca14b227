"""A run on this rank, from meeting the other ranks to the marker that says how it ended."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from model.errors import LeaseLostError
from model.sentences import ranges
from parallel.address import Address
from parallel.collectives import any_of
from parallel.layout import Layout
from parallel.mesh import Mesh, device_name, init_mesh, is_initialised, local_device
from parallel.rendezvous import Rendezvous, meet
from trainer.checkpoint.saver import Phase, Saver
from trainer.checkpoint.tensor_files import Storage
from trainer.config.load import flat
from trainer.engine.determinism import deterministic
from trainer.engine.engine import Engine
from trainer.faults.signals import SIGNALS, StopRequest, ended_by_signal, stop_on_signal
from trainer.faults.stragglers import AttentionClock, Stragglers
from trainer.faults.watchdog import Watchdog
from trainer.logs.log import Warnings, log, shown
from trainer.logs.step_profile import StepProfiler
from trainer.loop import Outcome, Trainer
from trainer.prepare import Plan
from trainer.resume import Start, restore, verify
from trainer.run.control_files import ControlFiles
from trainer.run.environment import commit, versions
from trainer.run.lease import Attempt, Lease, acquire


def _ignore(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Hooks:
    """Where a caller may observe a run, or stand in for its disk."""

    on_step: Callable[[int], None] = _ignore
    """Called with the number of each step before it is made."""
    on_phase: Callable[[Phase | None, int], None] = _ignore
    """Called with each phase of a save and its step, in the thread that saves; None at its end."""
    storage: Storage | None = None
    """Writes the tensors of checkpoints."""


def train(
    plan: Plan,
    rank: int = 0,
    local_rank: int = 0,
    stop: StopRequest | None = None,
    *,
    address: Address | None = None,
    hooks: Hooks | None = None,
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Run `plan` on this rank, from where it starts to its last step or to a signal.

    The ranks meet at `address`, by default what MASTER_ADDR and MASTER_PORT name; `stop` may have
    been asked for already. `profile` names the first and the last step that are profiled. Where the
    run was saved, `stop` has the same exit code on all ranks.
    """
    with ExitStack() as stack:
        warnings = stack.enter_context(shown(is_main=rank == 0))
        if plan.start.is_done:
            done = plan.start.steps_done
            log.info("%s is done: %s steps; nothing is left to do", plan.run.path, done)
            return Outcome.DONE
        lease = None
        if rank == 0:
            plan.run.path.mkdir(parents=True, exist_ok=True)
            lease = stack.enter_context(acquire(plan.run.path, Attempt.here()))
            plan.start.check_current()
        with ended_by_signal():
            device = local_device(local_rank, plan.configuration.settings.train.device)
            rendezvous = None if is_initialised() else _meet(plan, rank, device, address)
            watchdog = _watchdog(plan, Mesh(plan.layout, rank, device), rendezvous)
            if watchdog is not None:
                stack.callback(watchdog.close)
                watchdog.start()
            met = () if rendezvous is None else (rendezvous.store, rendezvous.backend)
            mesh = init_mesh(plan.layout, rank, device, *met)
        stop = stack.enter_context(stop_on_signal(stop))
        wanted = plan.configuration.settings.train.deterministic
        stack.enter_context(deterministic(wanted=wanted))
        if profile is not None:
            profiler = StepProfiler(*profile, plan.run.profile_folder, mesh)
            stack.callback(profiler.close)
            hooks = _with_profiler(hooks or Hooks(), profiler)
        trainer = make_trainer(plan, mesh, stop, lease, warnings, watchdog=watchdog, hooks=hooks)
        outcome = trainer.run()
        if lease is not None:
            if not lease.is_held():
                raise LeaseLostError(plan.run.path)
            plan.run.mark(outcome, trainer.steps_done)
        if outcome is Outcome.SAVED:
            _agree_on_signal(mesh, stop)
    return outcome


def _with_profiler(hooks: Hooks, profiler: StepProfiler) -> Hooks:
    def on_step(step: int) -> None:
        profiler(step)
        hooks.on_step(step)

    return replace(hooks, on_step=on_step)


def _agree_on_signal(mesh: Mesh, stop: StopRequest) -> None:
    """Have all ranks end alike, whichever of them a signal has come to."""
    came = any_of(mesh, [stop.number == number for number in SIGNALS])
    stop.number = next((n for n, has_come in zip(SIGNALS, came, strict=True) if has_come), None)


def make_trainer(
    plan: Plan,
    mesh: Mesh,
    stop: StopRequest,
    lease: Lease | None,
    warnings: Warnings,
    *,
    watchdog: Watchdog | None = None,
    hooks: Hooks | None = None,
) -> Trainer:
    """Put the parts of a run together, up to its first step; all ranks call it.

    `lease` is the main rank's. `watchdog` has begun to watch.
    """
    settings, hooks = plan.configuration.settings, hooks or Hooks()
    note = watchdog.load if watchdog is not None else _ignore
    note("verifying what it starts from")
    start = verify(plan.start, mesh)
    note("preparing the run folder")
    if mesh.is_main:
        plan.run.open(plan.configuration, plan.layout, str(mesh.device))
        _introduce(plan, start, mesh)
    note("building the network")
    clock = AttentionClock(mesh.device)
    engine = Engine(settings, plan.dataset.shape, mesh, instrument=clock.attach)
    note("loading the weights")
    skipped_steps, report = restore(start, engine)
    note("preparing the first step")
    if report is not None and mesh.is_main:
        log.info(report.sentence())
        plan.run.record(init_from=asdict(report))
    saver = Saver(
        plan.run.store,
        mesh,
        settings.checkpoint,
        engine.shapes,
        lease.is_held if lease is not None else lambda: False,
        on_phase=hooks.on_phase,
        storage=hooks.storage,
    )
    if watchdog is not None:
        watchdog.is_excused = lambda: saver.is_waiting
        watchdog.watch(engine.network)
    stragglers = None
    if mesh.layout.world > 1:
        stragglers = Stragglers(mesh, settings.faults.slow_factor, settings.logging.every)
    return Trainer(
        plan,
        mesh,
        engine,
        saver,
        skipped_steps,
        start.steps_done,
        stop=stop,
        clock=clock,
        warnings=warnings,
        control_files=ControlFiles(plan.run, lease) if lease is not None else None,
        watchdog=watchdog,
        stragglers=stragglers,
        on_step=hooks.on_step,
    )


def _meet(plan: Plan, rank: int, device: torch.device, address: Address | None) -> Rendezvous:
    """Meet the other ranks, all about to do the same."""
    start = plan.start
    claims = {
        "the step to go on from": start.steps_done,
        "the weights to start from": str(start.weights and start.weights.path.resolve()),
        "the run folder": str(plan.run.path.resolve()),
        "the data": plan.dataset.digest,
        "the kind of device": device.type,
        **versions(),
        "forescale's commit": commit(),
        **flat(plan.configuration.settings.model_dump()),
    }
    world = plan.layout.world
    address = address or Address.from_environment()
    rendezvous = meet(address, rank, world, claims, device_name(device))
    if rank == 0 and world > 1:
        table = _ranks_by_machine(rendezvous.hosts, plan.layout)
        log.info("the ranks have met at %s\n%s", rendezvous.address, table)
    return rendezvous


def _ranks_by_machine(hosts: dict[str, list[int]], layout: Layout) -> str:
    """Return a table of which ranks and stages each machine has."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for title in ("machine", "ranks", "stages"):
        table.add_column(title)
    for host, ranks in hosts.items():
        stages = sorted({layout.coordinates(rank).pipeline for rank in ranks})
        table.add_row(host, ranges(ranks), ranges(stages))
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def _introduce(plan: Plan, start: Start, mesh: Mesh) -> None:
    """Say what will be done, and what will not."""
    train = plan.configuration.settings.train
    for warning in plan.warnings():
        log.warning(warning)
    first = start.steps_done + 1
    what = f"steps {first} to {train.steps} of {train.global_batch_size} windows each"
    if start.steps_done >= train.steps:
        what = "all steps are made, the test windows are left"
    where = f"{mesh.device.type} over {dist.get_backend()}"
    log.info("%s: %s on %s, %s", plan.run.path, plan.layout, where, what)
    plan.run.record(backend=dist.get_backend())


def _watchdog(plan: Plan, mesh: Mesh, rendezvous: Rendezvous | None) -> Watchdog | None:
    """Return a watchdog, where there are several ranks and a store to watch over."""
    seconds = plan.configuration.settings.faults.hang_seconds
    if not seconds or rendezvous is None or plan.layout.world == 1:
        return None
    purpose = f"watchdog {plan.run.path}"
    return Watchdog(mesh, seconds, plan.run.hang_folder, lambda: rendezvous.connect(purpose))
