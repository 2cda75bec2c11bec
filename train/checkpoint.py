"""The epochs of a training, and its state after each, so that it can be continued."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.bundle import replace_file
from engine.errors import ConfigurationError, TrainingError

CHECKPOINT: Final = "checkpoint.safetensors"
UNFINISHED: Final = (CHECKPOINT, f"{CHECKPOINT}.partial")
FORM: Final = b"3"  # another one is another training's


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What one epoch came to.

    `learning_rate` is that of its last step. `separation` is the AUROC of held-out good against
    known defective images, measured half-way and at the end; NaN otherwise, and without images of
    either kind. It is there to watch, nothing is decided by it.
    """

    number: int
    of: int
    loss: float
    learning_rate: float
    separation: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class EpochInProgress:
    """One epoch in progress, counted from 0: its random numbers, and what each step came to."""

    number: int
    rng: np.random.Generator
    losses: list[float] = field(default_factory=list)
    learning_rate: float = math.nan

    def descend(
        self,
        loss: Tensor,
        optimiser: torch.optim.Optimizer,
        *,
        learning_rate: float,
        clip_norm: float,
        noted: bool = True,
    ) -> None:
        """One step of `optimiser` down the gradient of `loss`.

        Args:
            loss: A scalar.
            optimiser: Holds the parameters that learn.
            learning_rate: Of this step.
            clip_norm: The greatest norm of the gradient of all parameters together.
            noted: Whether the epoch's loss is of this; a discriminator's is not.

        Raises:
            TrainingError: The loss is not a number any more.
        """
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.number + 1}, "
                f"step {len(self.losses) + 1}; try another --seed, and look for blank or damaged "
                "training images"
            )
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimiser.step()
        if noted:
            self.losses.append(loss.item())
            self.learning_rate = learning_rate


class Checkpoint:
    """The state of a training after its last whole epoch, in one safetensors file.

    Args:
        path: The file.
        identity: Names the training; another one does not continue from this file.
        seed: Of the training.
        parts: Whose state it is: networks, and optimisers of them, by name.
        on_epoch: Hears of every epoch; of those before an interruption first.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: str,
        seed: int,
        parts: dict[str, nn.Module | torch.optim.Optimizer],
        on_epoch: Callable[[Epoch], None],
    ) -> None:
        self._path = path
        self._identity = identity
        self._seed = seed
        self._parts = parts
        self._on_epoch = on_epoch
        self.history: list[Epoch] = []

    def epochs(
        self, count: int, *, probe: Callable[[], float] = lambda: math.nan
    ) -> Iterator[EpochInProgress]:
        """The epochs that are still to do, up to `count`; after each the state is saved.

        Random numbers are seeded by epoch, so that an interruption changes nothing. `probe`
        measures the separation, half-way and at the end.
        """
        for number in range(len(self.history), count):
            started = time.perf_counter()
            torch.manual_seed(self._seed + number)
            steps = EpochInProgress(number=number, rng=np.random.default_rng([self._seed, number]))
            yield steps
            before = self.history[-1].seconds if self.history else 0.0
            seconds = before + time.perf_counter() - started
            epoch = Epoch(
                number=number + 1,
                of=count,
                loss=float(np.mean(steps.losses or [0.0])),
                learning_rate=steps.learning_rate,
                separation=probe() if number + 1 in (count // 2, count) else math.nan,
                seconds=seconds,
            )
            self.history.append(epoch)
            self.save()
            self._on_epoch(epoch)

    def save(self) -> None:
        """Write the state; raises `TrainingError` where there is no room."""
        tensors: dict[str, Tensor] = {}
        for name, part in self._parts.items():
            if isinstance(part, nn.Module):
                tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
            else:
                for index, state in part.state_dict()["state"].items():
                    tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
        data = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            {
                "identity": self._identity,
                "history": json.dumps([asdict(epoch) for epoch in self.history]),
            },
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, data)
        except OSError as error:
            raise TrainingError(
                f"epoch {len(self.history)} cannot be saved ({error.strerror}: {self._path}); "
                "make room, then continue with --resume"
            ) from error

    def load(self) -> None:
        """Restore all parts and the history; without a file nothing changes.

        Raises `ConfigurationError` where the file belongs to another training.
        """
        try:
            with safetensors.safe_open(self._path, "pt") as file:
                metadata = file.metadata()
            tensors = safetensors.torch.load_file(self._path)
        except FileNotFoundError:
            return  # interrupted before the first epoch ended
        except (OSError, safetensors.SafetensorError) as error:
            raise TrainingError(
                f"{self._path} is damaged ({error}); start again without --resume"
            ) from error
        if metadata["identity"] != self._identity:
            raise ConfigurationError(
                "--resume",
                str(self._path),
                "was left by a training with other images, other weights, another recipe or "
                "another seed; repeat its options, or start again without --resume",
            )
        for name, part in self._parts.items():
            prefix = f"{name}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if isinstance(part, nn.Module):
                part.load_state_dict(own)
                continue
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in own.items():
                index, _, value = key.partition(".")
                state.setdefault(int(index), {})[value] = tensor
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )
        self.history = [Epoch(**epoch) for epoch in json.loads(metadata["history"])]
        for past in self.history:
            self._on_epoch(past)


def deterministic(seed: int) -> torch.device:
    """Seed torch, make its results repeatable on this machine, and choose the device."""
    torch.manual_seed(seed)
    cuda = torch.cuda.is_available()
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A few CUDA gradients have no repeatable form; there a warning is better than no training.
    torch.use_deterministic_algorithms(mode=True, warn_only=cuda)
    # Nothing here reads memory that nobody wrote, so it need not be filled. Torch gives no type.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    return torch.device("cuda" if cuda else "cpu")
