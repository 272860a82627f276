"""Where a job runs: the device, the network's dtype, and the number of images in work at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from odeddim.jobs.naming import Subject
from odeddim.jobs.work import log, warn
from odeddim.latents.latent_file import LatentFile
from odeddim.latents.provenance import MADE_OF_OTHERS
from odeddim.ode.devices import DTYPES, dtype_of, place_of
from odeddim.ode.field import VectorField
from odeddim.runs.parallel import Parallel
from odeddim.types import Solver, State, pick

BATCH = 32  # images in work at once by default, unless the network takes more at once
QUEUE = 8  # batches in work at once if images leave a run one by one, to keep the network's batches full
NETWORK_BATCH = {"cpu": 8}  # images that the network takes at once: fewer cost more per image, more gain nothing here
NETWORK_BATCH_ELSEWHERE = 64


@dataclass(frozen=True)
class Machine:
    """Where and how a job runs. What is not given is as the latents were encoded, or suits the device.

    Attributes:
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one. Under torchrun each process takes its
            own.
        dtype: The dtype of the network: "float32", "tf32", "float64", "bfloat16" or "float16". The state is float64
            with a float64 network, otherwise float32.
        batch_size: The number of images in work at once. It changes memory and speed, not the result.
        network_batch: The number of images in each evaluation of the network, the last batch being filled up; by
            default 8 on a CPU, 64 on a GPU. The last digits of a result depend on it.
        threads: The number of threads on a CPU; by default 1. The last digits of a result depend on it.

    Example:
        >>> import odeddim
        >>> odeddim.jobs.Machine("cpu", dtype="float64", batch_size=64)
        Machine(device='cpu', dtype='float64', batch_size=64, network_batch=None, threads=None)
    """

    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    network_batch: int | None = None
    threads: int | None = None

    def portable(self, portable: bool | None, plan: object = None) -> Machine:
        """The machine of a run that may be portable, as asked or as its plan says: the network is then in float64."""
        made = portable or bool(getattr(plan, "portable", False))
        return replace(self, dtype="float64") if made and self.dtype is None else self

    def at(self, encoded: LatentFile | None = None, model: object = None) -> Place:
        """Find the device and set it up.

        Args:
            encoded: The latent file that the job reads, if it reads one: what is not given is as it was encoded.
            model: What the job runs. A VectorField, or an object of diffusers, is taken as it is: what is not given is
                its device and its dtype.

        Returns:
            The place where the job runs.

        Raises:
            InputError: If this machine has no such device, or the dtype is unknown.
        """
        its_own: Any = model.name if isinstance(model, Subject) else model
        place = place_of(self.device or getattr(its_own, "device", None))
        dtype = self.dtype
        if dtype is None and isinstance(getattr(its_own, "dtype", None), torch.dtype):
            tf32 = isinstance(its_own, VectorField) and its_own.tf32
            dtype = "tf32" if tf32 else str(its_own.dtype).removeprefix("torch.")
        if dtype is None:
            kept = str(encoded.provenance.details.get("dtype", "float32") if encoded else "float32")
            dtype = pick(kept, DTYPES, "dtype")
            if dtype == "tf32" and place.type != "cuda":
                dtype = "float32"
        kind, tf32 = dtype_of(dtype)
        return Place(self, place, kind, tf32, encoded)


@dataclass(frozen=True)
class Place:
    """A machine that was found and set up for a job.

    Attributes:
        machine: What the user gave.
        device: The device.
        dtype: The dtype of the network.
        tf32: Whether a GPU multiplies the network's float32 numbers in TF32.
        encoded: The latent file that the job reads, if it reads one.
    """

    machine: Machine
    device: torch.device
    dtype: torch.dtype
    tf32: bool = False
    encoded: LatentFile | None = None

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
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

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
            torch.set_num_threads(self.machine.threads or _positive(kept.get("threads")) or 1)
        if network_batch is None and row.one_by_one:
            network_batch = 1
        field.network_batch = network_batch or self.usual_network_batch
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
        size = (size or max(1, in_work(field.network_batch or 1) // window)) * (QUEUE if queued or row.queued else 1)
        log.debug("%d images in work at once", size)
        return size

    def details(self, field: VectorField, row: Solver, size: int, parallel: Parallel | None = None) -> dict[str, Any]:
        """What the provenance says of the machine: everything on which the digits of the result depend."""
        details: dict[str, Any] = {"dtype": self.dtype_name, "device": self.device.type}
        details["network_batch"] = field.network_batch
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
        then = {**made.details, "PyTorch": made.versions.get("torch")}
        now = {**self.details(field, row, 0), "PyTorch": str(torch.__version__)}
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
    unit = max(2**-10 if name == "tf32" else torch.finfo(DTYPES[name]).eps for name in dtypes if name in DTYPES)
    off = row.growth(levels, True).image * unit / torch.finfo(torch.float32).eps
    return f": expect images to be {off:.0e} off (rms, in [-1, 1]), and single pixels ten times that"


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 100_000 else None
