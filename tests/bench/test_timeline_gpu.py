"""The timeline of a GPU: what a profiler's events become, how it is drawn, and the same on the CPU."""

from types import SimpleNamespace

import pytest
import torch

from bench import parts, plot_gpu
from bench.parts import Where, timeline

from .test_tables_gpu import MACHINE, written

KIND = torch.autograd.DeviceType


def event(name, start, took, kind=KIND.CUDA):
    return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, elapsed_us=lambda: took))


def test_kernels_in_their_order_from_the_first():
    events = [
        event("void at::native::sum<float>(int)", 1009.0, 2.0),
        event("cudaLaunchKernel", 990.0, 9.0, KIND.CPU),
        event("loop", 1000.0, 5.0),
    ]
    assert timeline.placed(events) == [["the persistent kernel", 0.0, 5.0], ["sum", 9.0, 2.0]]
    assert timeline.placed(events[1:2]) == []


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("void at::native::(anonymous namespace)::indexSelect<c10::Half, long>(int)", "indexSelect"),
        ("void cutlass::Kernel2<cutlass_80_wmma>(Params)", "Kernel2"), ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64", "sm90_xmma_gemm_bf16bf16_bf16f32_"), ("loop", timeline.FUSED),
    ],
)  # fmt: skip
def test_names_as_a_legend_has_them(kernel, name):
    assert timeline.name_of(kernel) == name


def test_a_dry_decode_has_a_row_for_each():
    pytest.importorskip("triton")
    where = Where(True)
    rows = parts.measured("timeline", parts.cases("timeline", where)[0], where, 60.0)
    assert [row["who"] for row in rows] == ["eager loop", "graphed by hand", "fusedrnn"]
    assert [name for name, _, _ in rows[0]["operators"]].count("aten::lstm_cell") == 3
    for row in rows:
        assert row["launches"] == len(row["operators"]) > 0
        assert all(start >= 0 and start + took <= row["us"] + 1 for _, start, took in row["operators"])


def test_it_is_drawn_with_its_launches(tmp_path):
    pytest.importorskip("matplotlib")
    case = {"part": "timeline", "model": "lstm", "H": 512, "V": 1000, "B": 1, "T": 8, "dtype": "bfloat16"}
    many = [["gemm", 10.0 * place, 4.0] for place in range(9)]
    rows = [
        case | {"who": "eager loop", "us": 84.0, "operators": many, "launches": 9},
        case | {"who": "fusedrnn", "us": 30.0, "operators": [[timeline.FUSED, 0.0, 30.0]], "launches": 1},
        case | {"who": "graphed by hand", "skipped": "the profiler saw no kernel"},
    ]
    figure, _ = plot_gpu.plots(written(tmp_path / "gpu.jsonl", MACHINE, *rows))["gpu-timeline"]()
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fusedrnn, 1 launch", "eager loop, 9 launches"]
    assert len(axis.patches) == 2 + 9 + 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [timeline.FUSED, "gemm"]
