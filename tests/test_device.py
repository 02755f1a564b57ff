"""What a process does to compute fast on its device."""

import pytest
import torch

from train.device import make_fast


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    chosen = list[torch.device]()

    def set_device(device: torch.device) -> None:
        if device.index is None:  # as PyTorch's own does
            raise ValueError("Expected a torch.device with a specified index")
        chosen.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for setting in ("allow_tf32", "benchmark"):  # put back after the test
        monkeypatch.setattr(torch.backends.cudnn, setting, getattr(torch.backends.cudnn, setting))
    make_fast(torch.device(device))
    assert [str(made) for made in chosen] == ([device] if ":" in device else [])
