"""Forms and budgets in bytes that cannot work are a sentence before any weights are loaded; what can is told in bytes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.planning.preparation import prepare
from jobs.results.store import ResultStore
from jobs.settings.schema import load_settings
from jobs.sweep import main
from kvmerger.models import loading
from tests.fakes.own_policy import OWN_POLICY
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

MODULE = "forms_to_be_told_apart"
FORM = """
from dataclasses import dataclass

from kvmerger import CodedForm, CodeLayout, FormError, Grid, Per


@dataclass(frozen=True)
class Mine(CodedForm):
    width: int = 8

    def layouts(self):
        return (CodeLayout(Grid.SIGNED, 8, Per.SLOT),) * 2

    def check(self, head_dim):
        if head_dim != self.width:
            raise FormError(f"for heads of {self.width} alone, the model's have {head_dim}")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load_model(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loading, "load_model", load_model)
    return save_settings(tmp_path, model, save_data(tmp_path / "data", 3))


@pytest.fixture
def own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / f"{MODULE}.py"
    path.write_text(FORM)
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(MODULE, None)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (
            "snapkv@0.5+int5",
            "'int5' is no form: none of its kind has 5 bits; there is int4, int4_rotated, int8",
        ),
        ("kivi7", "none of its kind has 7 bits; there is kivi2, kivi3, kivi4"),
        ("k8v9", "keys and values each have 8, 4 or 2 bits"),
        ("{name: kivi4, bits_k: 5}", "bits_k is one of (2, 3, 4, 8), got 5"),
        ("fp8+int4", "a cache has one form"),
        ("knorm@0.5+fp8+keepkv", "write 'knorm+keepkv@0.5+fp8'"),
        ("knorm@0.5+h2o_decode+fp8", "write 'knorm@0.5+fp8+h2o_decode'"),
        ("h2o_decode+int4@0.25", "write 'h2o@0.25+int4+h2o_decode'"),
        (
            "{name: knorm+h2o_decode+fp8, budget: {bytes: {like: full}}}",
            "write 'knorm+fp8+h2o_decode@bytes:like:full'",
        ),
        ("knorm@0.5+q8_0", "nearest of ours is 'int8'"),
        # Heads of the model have 8 numbers.
        ("nvfp4", "nvfp4 needs heads of a multiple of 16 numbers, the model's have 8"),
        ("knorm@0.5+nvfp4", "nvfp4 needs heads of a multiple of 16 numbers, the model's have 8"),
        ("knorm@0.5+nvfp4+h2o_decode", "nvfp4 needs heads of a multiple of 16 numbers, the model's have 8"),
        ("{name: fp8, budget: 0.5}", "takes no budget"),
        ("{name: fp8, budget: {bytes: 0.5}}", "takes no budget"),
        (
            "{name: knorm+int8, budget: {bytes: 0.0001}}",
            "one slot in each of 2 heads takes 48, scales included; give",
        ),
        ("{name: knorm, budget: {bytes: 20000}}", "such as {bytes: 0.2}"),
        ("{name: knorm, budget: {bytes: {like: int8}}}", "add int8 to the policies"),
        ("{name: snapkv+int8, budget: {bytes: 0.03}}", "window_size=64"),
        # Of no module.
        ("':X@0.5'", "':X' names no class: write the file's name before it"),
        ("'.mine:X@0.5'", "'.mine:X' names no class"),
        ("'knorm@0.5+:X'", "':X' names no class"),
        ("'knorm@0.5+mine:'", "'mine:' names no class"),
    ],
)
@pytest.mark.parametrize("command", [[], ["validate"]])
def test_what_cannot_work_is_one_sentence_before_weights_are_loaded(
    config: Path,
    tmp_path: Path,
    command: list[str],
    policy: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, str(config), "--set", f"policies=[{policy}]"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and told in err and "Traceback" not in err and err.count("\n") == 1
    assert not ResultStore(tmp_path / "results").root.exists()


def test_what_a_users_form_refuses_is_told_in_its_own_words(
    config: Path, own_form: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = f"{{name: full+{MODULE}:Mine, width: 64}}"
    assert main(["validate", str(config), "--set", f"policies=[{policy}]"]) == 2
    assert "for heads of 64 alone, the model's have 8" in capsys.readouterr().err


BROKEN = """
from dataclasses import dataclass

from kvmerger import Form


@dataclass(frozen=True)
class Mine(Form):
    def num_bytes(self, num_slots_H, head_dim):
        return 2 * sum(num_slots_H) * head_dim

    def encode(self, k_SD, v_SD, num_slots_H):
        return {{"keys": k_SD.half().view(k_SD.dtype)}}

    def decode(self, parts, num_slots_H, head_dim):
        return parts["keys"], parts["keys"]

    def {method}
"""


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("num_bytes(self, n_H, d): raise KeyError('no table')", "raised KeyError: 'no table'"),
        ("num_bytes(self, n_H, d): return 1 // (max(n_H) < 40)", "raised ZeroDivisionError"),
        (
            "num_bytes(self, n_H, d): return sum(n_H) * d / 2",
            "must give a whole number of bytes, an int, got",
        ),
        ("num_bytes(self, n_H, d): return None", "must give a whole number of bytes, an int, got None"),
        ("most_bytes(self, n, h, d): raise OSError('gone')", "its most_bytes(1, 1, 8) raised OSError: gone"),
        ("check(self, d): raise ValueError('odd')", "its check(8) raised ValueError: odd"),
        ("bits(self, d): raise RuntimeError('none')", "its bits(8) raised RuntimeError: none"),
        (
            "bits(self, d): return 4",
            "bits(8) must give two numbers up to 32, of a key's and a value's numbers, got 4",
        ),
        ("layouts(self): raise RuntimeError('none')", "its layouts() raised RuntimeError: none"),
        ("layouts(self): return ('a', 'b')", "layouts() must give two of CodeLayout"),
    ],
)
@pytest.mark.parametrize(
    "policy", [f"full+{MODULE}:Mine", f"{{name: 'knorm+{MODULE}:Mine', budget: {{bytes: 0.5}}}}"]
)
def test_a_users_form_that_raises_or_answers_nonsense_is_one_sentence_that_names_it(
    config: Path, own_form: Path, policy: str, method: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own_form.write_text(BROKEN.format(method=method))
    assert main(["validate", str(config), "--set", f"policies=[{policy}]"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err and err.count("\n") == 1
    assert f"{MODULE}:Mine" in err and told in err


@pytest.mark.parametrize("said", ["heads_differ", "budget_is_outcome", "adds_log_mass", "version"])
def test_a_users_policy_that_raises_where_it_tells_of_itself_is_one_sentence(
    config: Path, own_form: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own_form.write_text(
        OWN_POLICY.format(body="pass")
        + f"""
    @property
    def {said}(self):
        raise LookupError("no table")
"""
    )
    assert main(["validate", str(config), "--set", f"policies=[{MODULE}:Mine@0.5]"]) == 2
    err = capsys.readouterr().err
    assert (
        "Mine@0.5': what its policy says of itself raised LookupError: no table" in err
        and err.count("\n") == 1
    )


def test_a_bare_form_that_no_prompt_can_be_stored_in_is_refused_though_it_has_no_budget(
    config: Path, own_form: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting = ["policies=[fp8]", f"policies=[full+{MODULE}:Mine]"]
    for override in fitting:
        assert main(["validate", str(config), "--set", override, "--set", "check_policies=false"]) == 0
    assert "Mine" in capsys.readouterr().out


def test_validate_tells_slots_and_bytes_of_every_variant(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policies = "[knorm@0.5, knorm@0.5+int8, fp8, {name: knorm+int8, budget: {bytes: 0.25}, label: quarter}]"
    assert main(["validate", str(config), "--set", f"policies={policies}"]) == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    (tokens,) = (int(it) for it in re.findall(r"median context \((\d+) tokens\)", out))
    assert "degenerate slots bytes of full" in out
    # fp32, 2 layers of 2 heads of 8 numbers: a slot takes 64 bytes a head, 24 as int8 and 16 as fp8.
    half = tokens // 2
    at_a_quarter = tokens * 64 // 4 // 24
    for label, num_slots, of_slot in (
        ("full", tokens, 64),
        ("knorm@0.5", half, 64),
        ("knorm@0.5+int8", half, 24),
        ("fp8", tokens, 16),
        ("quarter", at_a_quarter, 24),
    ):
        share = num_slots * of_slot / (tokens * 64)
        assert re.search(rf"{re.escape(label)} 3 0 0 0 {num_slots} [\d.]+ \w+ {share:.1%}", out), (label, out)


def test_a_users_form_counts_in_the_version_of_its_variant(config: Path, own_form: Path) -> None:
    def versions() -> dict[str, str]:
        name = f"knorm@0.5+{MODULE}:Mine"
        settings = load_settings(config, [f"policies=[{name}, knorm@0.5+int8]", "check_policies=false"])
        return dict(prepare(settings, (), lambda: "cpu").policy_versions)

    before = versions()
    assert before["knorm@0.5+int8"] == "1+1"
    sys.modules.pop(MODULE)
    own_form.write_text(f"{FORM}\n# another number\n")
    after = versions()
    assert after["knorm@0.5+int8"] == before["knorm@0.5+int8"]
    assert after["knorm@0.5+Mine"] != before["knorm@0.5+Mine"]
    assert after["knorm@0.5+Mine"].startswith("1+1+")
