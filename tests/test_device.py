"""Settings that make training fast on a device."""

import pytest
import torch

from train.device import configure_backend


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_without_an_index_stays_the_current_one(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    selected = list[torch.device]()

    def set_device(device: torch.device) -> None:
        if device.index is None:  # like PyTorch's set_device
            raise ValueError("Expected a torch.device with a specified index")
        selected.append(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    for setting in ("allow_tf32", "benchmark"):  # so that they are restored after the test
        monkeypatch.setattr(torch.backends.cudnn, setting, getattr(torch.backends.cudnn, setting))
    configure_backend(torch.device(device))
    assert [str(one) for one in selected] == ([device] if ":" in device else [])
