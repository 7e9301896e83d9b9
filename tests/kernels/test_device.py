"""The description of the devices, with and without any."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import torch

from fusedrnn.kernels import device

H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=232448,
    regs_per_multiprocessor=65536, L2_cache_size=52428800, total_memory=84935770112,
)  # fmt: skip


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: H100)
    found = device.devices()
    assert found[1] == device.Device(1, "NVIDIA H100", (9, 0), 132, 232448, 65536, 52428800, 84935770112)
    assert [one.index for one in found] == [0, 1]


def test_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.devices() == []


def test_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.9.0"))
    assert device.triton() == ("3.9.0", None)


def test_triton_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    found = device.triton()
    assert found.version is None
    assert found.reason.startswith("ModuleNotFoundError: ")

    def broken(name):
        raise OSError("libtriton.so: cannot open\nmore lines")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert device.triton() == (None, "OSError: libtriton.so: cannot open")


def test_imports_neither_triton_nor_the_front_end():
    code = "import sys; sys.modules['triton'] = None; import kernels.device as d; assert d.triton().version is None"
    code += "; assert 'fusedrnn' not in sys.modules"
    root = device.__file__.rsplit("/fusedrnn/", 1)[0] if "/fusedrnn/" in device.__file__ else device.__file__.rsplit("/kernels/", 1)[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
