"""Which device computes."""

import torch


def choose_device(name: str | None) -> torch.device:
    """Take the named device, or CUDA where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"-device must be cpu or cuda, but it is '{name}'.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("-device cuda was asked for, but PyTorch finds no CUDA device here. Use -device cpu.")
    return torch.device(name)


def device_for(training_device: torch.device) -> torch.device:
    """Choose where synthesis and the second half run: with the network, but on the CPU where that is Apple's MPS."""
    return torch.device("cpu") if training_device.type == "mps" else training_device
