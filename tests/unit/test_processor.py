"""The CPU computes in bf16 only where it can."""

import pytest

from adapterops.cpu_number_format import cpu_dtype


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu fma avx avx2", "float32"),
        ("fpu avx2 avx512f avx512vl avx512bw", "float32"),
        ("fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "bfloat16"),
    ],
)
def test_bf16_needs_instructions_for_it(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: a bf16 lookalike\nflags\t\t: {flags}\n")
    assert cpu_dtype(cpuinfo) == expected


def test_an_unknown_processor_computes_in_float32(tmp_path):
    assert cpu_dtype(tmp_path / "none") == "float32"
