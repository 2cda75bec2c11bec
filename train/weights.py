"""A checkpoint of pretrained weights, read from a file; what it means is its backbone's to say."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from engine.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by name, fp32, as they were read from `source`, and what the file says of itself."""

    source: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """A hash of the tensors by name, whatever file format held them."""
        seen = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            seen.update(f"{name} {tuple(tensor.shape)} ".encode())
            seen.update(tensor.contiguous().numpy().tobytes())
        return seen.hexdigest()


def read_weights(path: Path, *, option: str = "--backbone-weights") -> Weights:
    """Read a checkpoint, `.pth`/`.pt` or `.safetensors`; nothing in it is executed.

    Raises `ConfigurationError` in the name of the `option` that gave the path.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        why = error.strerror or "there is no such file"  # safetensors gives no number
        raise ConfigurationError(option, str(path), f"cannot be read ({why})") from error
    except Exception as error:  # the two readers share no base class
        # torch's own text advises to execute what is in the file.
        raise ConfigurationError(
            option,
            str(path),
            "is damaged, or holds more than tensors; give a .pth or .safetensors file of a model's "
            "state_dict",
        ) from error
    if not (isinstance(tensors, dict) and all(isinstance(t, Tensor) for t in tensors.values())):
        raise ConfigurationError(
            option, str(path), "holds no plain dictionary of tensors (a state_dict)"
        )
    return Weights(
        source=path.name,
        tensors={
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
        metadata=metadata,
    )
