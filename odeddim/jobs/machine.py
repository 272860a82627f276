"""Where a job runs: the device, the network's dtype, and the number of images in work at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch

from odeddim.jobs.naming import Subject
from odeddim.jobs.work import log, warn
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import MADE_OF_OTHERS
from odeddim.ode.devices import DTYPES, Numbers, dtype_of, place_of
from odeddim.ode.field import VectorField
from odeddim.runs.engines import Gather, Given, Made, Span, Work, cores, over
from odeddim.runs.memory import keep_memory
from odeddim.runs.on_ray import actors
from odeddim.runs.parallel import Parallel
from odeddim.runs.processes import processes
from odeddim.storage.workers import rank
from odeddim.types import InputError, Solver, State, pick

BATCH = 32  # images in work at once by default, unless the network takes more at once
QUEUE = 8  # batches in work at once if images leave a run one by one, to keep the network's batches full
NETWORK_BATCH = {"cpu": 8}  # images that the network takes at once: fewer cost more per image, more gain nothing here
NETWORK_BATCH_ELSEWHERE = 64
ENGINES = ("processes", "torchrun", "ray")
PATIENCE = 20.0  # seconds until a run counts as long


@dataclass(frozen=True)
class Machine:
    """Where and how a job runs. What is not given is as the latents were encoded, or suits the device.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one. Under torchrun each process takes its
            own.
        dtype: The dtype of the network: "float32", "tf32", "float64", "bfloat16", "float16", "autocast-bfloat16" or
            "autocast-float16". The state is float64 with a float64 network, otherwise float32.
        batch_size: The number of images in work at once. It changes memory and speed, not the result.
        network_batch: The number of images in each evaluation of the network, the last batch being filled up; by
            default 8 on a CPU, 64 on a GPU, and of videos 1. The last digits of a result depend on it.
        threads: The number of threads on a CPU; by default 1. The last digits of a result depend on it.
        channels_last: Whether images lie in memory with their channels side by side, see `VectorField.to`; by default
            not. The last digits of a result depend on it.
        compile: Whether torch compiles the network, see `VectorField.to`; by default not. The last digits of a result
            depend on it.
        workers: The number of processes that share the work; "auto" for one on each core, or on each GPU. Each takes
            the threads above and has the model in its memory. By default 1: the result is the same, a small job is
            done before others have started, and how many copies of a model fit into memory is not known here.
            Of a cluster of Ray, by default all of it.
        engine: Who shares the work: "processes" of this machine, those of "torchrun", which is found by itself where
            torchrun has started this process, or actors of "ray". See docs/scaling.md.
        address: The cluster of Ray, as of `ray.init`; by default one of this machine.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Machine("cpu", dtype="float64", batch_size=64)
        Machine(device='cpu', dtype='float64', batch_size=64, ...)
    """

    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    network_batch: int | None = None
    threads: int | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    workers: int | Literal["auto"] | None = None
    engine: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        count = self.workers
        if count not in (None, "auto") and not (isinstance(count, int) and count >= 1):
            raise InputError(f"workers={count!r}: give a whole number of processes, 1 or more, or 'auto'")
        if self.engine is not None:
            pick(self.engine, ENGINES, "engine")
        if self.address is not None and self.engine != "ray":
            raise InputError("address=... is that of a cluster of Ray: give engine='ray' too, or leave it out")

    @property
    def shares(self) -> bool:
        """Whether others than this process are to share the work."""
        return (self.workers or 1) != 1 or self.engine is not None

    @property
    def count(self) -> int:
        """The number of processes that share the work on this machine."""
        if self.workers != "auto":
            return self.workers or 1
        if str(self.device or "cuda").startswith("cuda") and torch.cuda.is_available():
            return torch.cuda.device_count()
        return cores(self.threads or 1)

    def portable(self, portable: bool | None, plan: object = None) -> Machine:
        """The machine of a run that may be portable, as asked or as its plan says: the network is then in float64."""
        made = portable or bool(getattr(plan, "portable", False))
        return replace(self, dtype="float64") if made and self.dtype is None else self

    def at(self, encoded: LatentFile | None = None, model: object = None, *, shared: bool = False) -> Place:
        """Find the device and set it up.

        Args:
            encoded: The latent file that the job reads, if it reads one: what is not given is as it was encoded.
            model: What the job runs. A VectorField, or an object of diffusers, is taken as it is: what is not given is
                its device and its dtype.
            shared: Whether others can share the work of this job.

        Returns:
            The place where the job runs.

        Raises:
            InputError: If this machine has no such device, the dtype is unknown, or nobody can share the work.
        """
        if self.shares:
            self._check_shares(shared)
        its_own: Any = model.name if isinstance(model, Subject) else model
        place = place_of(self.device or getattr(its_own, "device", None))
        dtype = self.dtype
        if dtype is None and isinstance(getattr(its_own, "dtype", None), torch.dtype):
            numbers = its_own.form.numbers if isinstance(its_own, VectorField) else Numbers(its_own.dtype)
            dtype = numbers.name
        if dtype is None:
            kept = str(encoded.provenance.details.get("dtype", "float32") if encoded else "float32")
            dtype = pick(kept, DTYPES, "dtype")
            if dtype == "tf32" and place.type != "cuda":
                dtype = "float32"
        return Place(self, place, dtype_of(dtype), encoded)

    def _check_shares(self, shared: bool) -> None:
        """Raise an InputError if the work of a job cannot be shared in this way."""
        ranks = rank()[1]
        if not shared:
            raise InputError("the work of this job is not shared: leave out workers=... and engine=...")
        if self.engine == "torchrun" and ranks == 1:
            raise InputError("engine='torchrun' needs torchrun: start this with it, or leave out engine=...")
        if self.engine not in (None, "torchrun") and ranks > 1:
            raise InputError(f"torchrun shares the work already: leave out engine={self.engine!r}")


@dataclass(frozen=True)
class Place:
    """A machine that was found and set up for a job.

    Attributes:
        machine: What the user gave.
        device: The device.
        numbers: What the network computes in.
        encoded: The latent file that the job reads, if it reads one.
    """

    machine: Machine
    device: torch.device
    numbers: Numbers
    encoded: LatentFile | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network."""
        assert self.numbers.dtype is not None
        return self.numbers.dtype

    @property
    def tf32(self) -> bool:
        """Whether a GPU multiplies the network's float32 numbers in TF32."""
        return self.numbers.tf32

    @property
    def form(self) -> dict[str, Any]:
        """The form of the network, as `VectorField.to` takes it: as given, else as encoded."""
        kept = self.encoded.provenance.details if self.encoded else {}
        given = {"channels_last": self.machine.channels_last, "compile": self.machine.compile}
        return {name: bool(kept.get(name)) or None if said is None else said for name, said in given.items()}

    @property
    def asked(self) -> bool:
        """Whether the user named the dtype."""
        return self.machine.dtype is not None

    @property
    def state(self) -> torch.dtype:
        """The state's dtype: float64 with a float64 network, otherwise float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def dtype_name(self) -> str:
        """The network's dtype by its name, as in `Machine.dtype`."""
        return self.numbers.name

    def cast(self, state: State) -> State:
        """A State in the dtype that states have here."""
        return state.to(dtype=self.state)

    @cached_property
    def usual_network_batch(self) -> int:
        """The default of `Machine.network_batch` on this device."""
        return NETWORK_BATCH.get(self.device.type, NETWORK_BATCH_ELSEWHERE)

    def fit(self, field: VectorField, row: Solver) -> VectorField:
        """Fix the batch and the threads of a network: as given, as encoded, or as suits the device and the solver.

        Warns if latents that were encoded will not come back exactly.

        Args:
            field: The model.
            row: The solver.

        Returns:
            The field itself.
        """
        kept = self.encoded.provenance.details if self.encoded else {}
        network_batch = self.machine.network_batch or _positive(kept.get("network_batch"))
        if self.device.type == "cpu":
            keep_memory()
            torch.set_num_threads(self.machine.threads or _positive(kept.get("threads")) or 1)
        if network_batch is None and row.one_by_one:
            network_batch = 1
        field.network_batch = network_batch or (1 if _of_videos(field) else self.usual_network_batch)
        threads = f", threads {torch.get_num_threads()}" if self.device.type == "cpu" else ""
        log.debug("device %s, dtype %s, network batch %d%s", self.device, self.dtype_name, field.network_batch, threads)
        if inexact := self.inexact(field, row):
            warn(inexact)
        return field

    def at_once(
        self, field: VectorField, row: Solver, *, queued: bool = False, parallel: Parallel | None = None
    ) -> int:
        """The number of images to work on together. The result depends on it only if the solver shares its steps.

        It is a multiple of the network's batch, so that only the last batch is filled up.

        Args:
            field: The model.
            row: The solver.
            queued: Whether images leave the run one by one.
            parallel: How nodes are found together: an image takes as much memory as its window has nodes.

        Returns:
            The number.
        """
        size = self.machine.batch_size
        if size is None and self.encoded is not None and row.shares_steps:
            size = _positive(self.encoded.provenance.details.get("batch_size"))
        window = 1 if parallel is None else parallel.window
        batch = field.network_batch or 1
        if _of_videos(field):
            return size or batch
        size = (size or max(1, in_work(batch) // window)) * (QUEUE if queued or row.queued else 1)
        log.debug("%d images in work at once", size)
        return size

    def over(
        self, work: Work[Given, Made], batches: Iterable[tuple[Span, Given]]
    ) -> Generator[tuple[Span, Made], None, None]:
        """Have work done on batches by those who share it, as `odeddim.runs.engines.over`.

        A run that takes long tells once that more cores could share it, unless somebody has chosen.
        """
        machine, due = self.machine, time.monotonic() + PATIENCE
        alone = machine.workers is None and machine.engine is None and rank()[1] == 1 and self.device.type == "cpu"
        room = cores(machine.threads or 1) if alone else 1
        with contextlib.closing(over(work, batches, self._gather())) as found:
            for made in found:
                if room > 1 and time.monotonic() >= due:
                    log.info(
                        "one process is at work, and there are cores for %d: stop it, and the same call with "
                        "workers='auto' goes on with all of them, and gives the same bits",
                        room,
                    )
                    room = 1
                yield made

    def _gather(self) -> Gather | None:
        """Who shares the work; None for nobody."""
        machine = self.machine
        if machine.engine == "ray":
            count = None if machine.workers in (None, "auto") else machine.count
            return actors(count, address=machine.address, gpu=self.device.type == "cuda")
        return processes(machine.count) if machine.count > 1 else None

    def details(self, field: VectorField, row: Solver, size: int, parallel: Parallel | None = None) -> dict[str, Any]:
        """What the provenance says of the machine: everything on which the digits of the result depend."""
        details: dict[str, Any] = {"dtype": self.dtype_name, "device": self.device.type}
        details["network_batch"] = field.network_batch
        form = {"channels_last": field.form.channels_last, "compile": field.form.compiled}
        details |= {name: True for name, whether in form.items() if whether}
        if self.device.type == "cpu":
            details["threads"] = torch.get_num_threads()
            details["cpu"] = torch.backends.cpu.get_cpu_capability()
            available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            details["onednn"] = available and bool(torch.backends.mkldnn.enabled)
        if self.device.type == "cuda":
            cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            details |= {"gpu": torch.cuda.get_device_name(self.device), "cudnn": cudnn}
        if row.shares_steps:
            details["batch_size"] = size
        if parallel is not None:
            details["parallel"] = parallel.to_dict()
        return details

    def inexact(self, field: VectorField, row: Solver) -> str:
        """Why the way back of a reversible solver is not exact here, and by how much; "" if it is exact.

        The run itself warns of another solver, other nodes, other settings and another dtype of the state.
        """
        file = self.encoded
        if file is None or not row.reversible:
            return ""
        made = file.provenance
        if row.name != made.solver or made.made_by in MADE_OF_OTHERS or made.details.get("portable"):
            return ""
        plain = {"channels_last": False, "compile": False}  # a form that is not noted
        then = {**plain, **made.details, "PyTorch": made.versions.get("torch")}
        now = {**plain, **self.details(field, row, 0), "PyTorch": str(torch.__version__)}
        differ = [key for key, value in now.items() if then.get(key, value) != value]
        if not differ:
            return ""
        told = ", ".join(f"{key.replace('_', ' ')} {now[key]} where it was {then[key]}" for key in differ)
        return (
            f"{file.path} does not come back exactly by {row.name}, because the network runs otherwise than when it "
            f"was encoded ({told}){_off(row, file.nodes, str(then.get('dtype')), self.dtype_name)}"
        )


def in_work(network_batch: int) -> int:
    """The number of images to work on together, given the network's batch: a multiple of it, about BATCH."""
    return network_batch * max(1, BATCH // network_batch)


def _off(row: Solver, nodes: torch.Tensor, *dtypes: str) -> str:
    """The expected error of images in words, from the rounding of the coarser dtype and the growth of the solver."""
    levels = [sigma for sigma in nodes.tolist() if sigma > 0]
    if row.growth is None or len(levels) < 2:
        return ""
    known = [name.removeprefix("autocast-") for name in dtypes if name in DTYPES]
    unit = max(2**-10 if name == "tf32" else torch.finfo(DTYPES[name]).eps for name in known)
    off = row.growth(levels, True).image * unit / torch.finfo(torch.float32).eps
    return f": expect images to be {off:.0e} off (rms, in [-1, 1]), and single pixels ten times that"


def _of_videos(field: VectorField) -> bool:
    """Whether a model is one of videos (C, F, H, W), each of which takes as much memory as many images."""
    return len(field.shape or ()) == 4


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 100_000 else None
