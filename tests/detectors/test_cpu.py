"""What a CPU computes in where nobody says."""

import pytest

from ray_app.detectors import cpu, load_card
from ray_app.detectors.precision import resolve_precision
from ray_app.errors import ConfigError
from ray_app.inference.spec import choose_precision

KINDS = {
    "a Xeon of 2021": ("avx512f avx512_vnni", "fp32"),
    "a Xeon of 2023": ("avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),
    "a Graviton 3": ("fp asimd bf16 sve svebf16", "bf16"),
}


@pytest.fixture
def processor(tmp_path, monkeypatch):
    def has(flags):
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
        monkeypatch.setattr(cpu, "_CPUINFO", file)
        cpu._multiplies_bf16.cache_clear()

    monkeypatch.delenv(cpu.CPU_PRECISION_VARIABLE, raising=False)
    yield has
    cpu._multiplies_bf16.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_processor_computes_in_what_it_multiplies(processor, kind):
    flags, expected = KINDS[kind]
    processor(flags)
    assert cpu.cpu_precision() == expected


@pytest.mark.parametrize(
    ("kind", "stated"), [("a Xeon of 2021", "bf16"), ("a Xeon of 2023", "fp32")]
)
def test_environment_decides_unless_card_or_user_does(processor, monkeypatch, stated, kind):
    processor(KINDS[kind][0])
    monkeypatch.setenv("TOUCHSTONE_CPU_PRECISION", stated)
    card = load_card("touchstone-tiny")
    assert resolve_precision("auto", "cpu") == choose_precision("cpu", card, "auto") == stated
    assert resolve_precision("auto", "cpu", preferred="fp32") == "fp32"
    assert choose_precision("cpu", card.model_copy(update={"precision": "fp32"}), "auto") == "fp32"
    for asked in ("bf16", "fp32"):
        assert resolve_precision(asked, "cpu") == choose_precision("cpu", card, asked) == asked


def test_another_word_is_refused(monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CPU_PRECISION", "fp16")
    with pytest.raises(
        ConfigError, match="TOUCHSTONE_CPU_PRECISION must be bf16 or fp32, got 'fp16'"
    ) as caught:
        cpu.cpu_precision()
    assert "bf16 or fp32" in caught.value.hint
