"""Names of forms: ours are those that are made, and an engine's is one of ours or refused with the nearest of ours."""

import pytest

from kvmerger.cache.forms import registry
from kvmerger.form_names import NAMES, OF_TABLES, UNDERSTOOD, Split, is_form, split_parts, understood
from kvmerger.names import VariantError, nearest


def test_the_names_that_are_read_without_torch_are_those_that_are_made() -> None:
    assert sorted(NAMES) == registry.names() and sorted(OF_TABLES) == registry.names_of_tables()
    assert all(understood(name) == name for name in (*NAMES, *OF_TABLES))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("fp8_e4m3", "fp8"),
        ("fp8_per_token_head", "fp8_scaled"),
        ("int8_per_token_head", "int8"),
        ("turboquant_k8v4", "turboquant_k8v4"),
        ("nvfp4", "nvfp4"),
    ],
)
def test_an_engines_name_for_the_same_arithmetic_is_understood(theirs: str, ours: str) -> None:
    assert understood(theirs) == ours


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        # vLLM, SGLang
        ("auto", "model's own dtype.*leave the form out"),
        ("fp8_e5m2", "two bits of mantissa.*'fp8'"),
        ("fp8_inc", "Gaudi.*'fp8_scaled'"),
        ("int4_per_token_head", "random signs.*'int4_rotated'"),
        ("fp4_e2m1", "powers of two.*'nvfp4'"),
        # llama.cpp
        ("q8_0", "32 channels.*'int8'"),
        ("Q4_0", "32 channels.*'int4'"),
        ("q4_1", "smallest.*'int4'"),
        ("q5_0", "5 bits.*'int8'"),
        ("q5_1", "5 bits.*'int8'"),
        ("iq4_nl", "uneven.*'int4'"),
        ("f16", "leave the form out"),
        ("bf16", "leave the form out"),
        # transformers
        ("quanto", "newest tokens unpacked.*'kivi4'"),
        ("hqq", "zero points.*'kivi4'"),
        ("quantized", "'kivi4'"),
        # TensorRT-LLM writes its own in capitals
        ("FP8", "did you mean 'fp8'"),
        ("NVFP4", "did you mean 'nvfp4'"),
        ("INT8", "did you mean 'int8'"),
    ],
)
def test_another_engines_form_is_refused_by_name_with_the_nearest_of_ours(theirs: str, message: str) -> None:
    with pytest.raises(VariantError, match=f"^'{theirs}' is no form.*{message}"):
        understood(theirs)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("int5", "has 5 bits; there is int4, int4_rotated, int8$"),
        ("kivi7", "has 7 bits; there is kivi2, kivi3, kivi4$"),
        ("fp16", "has 16 bits; there is fp8, fp8_scaled$"),
        ("k8v9", "8, 4 or 2 bits"),
        ("k3v4", "8, 4 or 2 bits"),
        ("k8v8", "write 'int8'"),
        ("k4v4", "write 'int4'"),
        ("k3v3", "8, 4 or 2 bits"),
    ],
)
def test_bits_that_are_none_are_refused_with_those_there_are(part: str, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        understood(part)


def test_what_is_no_form_passes() -> None:
    for part in ("snapkv", "h2o_decode", "my.module:Int5", "k_norm", "", "full"):
        assert understood(part) == part and (part == "" or not is_form(part, is_first=True))


def test_a_name_is_cut_at_its_form() -> None:
    assert split_parts(["h2o", "int4", "cam"]) == Split(("h2o",), "int4", ("cam",))
    assert split_parts(["snapkv", "adakv"]) == Split(("snapkv", "adakv"), None, ())
    assert split_parts(["my:Policy", "my:Form"]) == Split(("my:Policy",), "my:Form", ())
    for two in (["fp8", "int4"], ["snapkv", "kivi4", "my:Form"]):
        with pytest.raises(VariantError, match="a cache has one form"):
            split_parts(two)


def test_understood_names_are_no_names_of_ours() -> None:
    assert not set(UNDERSTOOD) & set(NAMES) and set(UNDERSTOOD.values()) <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("KIVI4", ["kivi4", "int4"], "kivi4"),
        ("snapkV", ["SnapKV", "snapkv"], "snapkv"),
        ("SnapK", ["SnapKV", "snapkv"], "SnapKV"),
        ("snapvk", ["snapkv", "knorm"], "snapkv"),
    ],
)
def test_capitals_do_not_hide_what_is_meant(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == f" (did you mean {hint!r}?)"
    assert nearest("zzz", known) == ""
