"""The default config of every family of transformers: measured exactly, or refused with a true reason in one line."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.counting.via_transformers.family_sweep import REASONS, Outcome, causes, examine_all, families

ROOT = Path(__file__).resolve().parents[3]
README = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (measured|refused: [^|]+?) \| (\d+) \|", PAGE, flags=re.MULTILINE)
LONGEST = 500  # characters of a message
IMPORT = "import time, torch, transformers.models.auto.modeling_auto; print(time.process_time())"


# The kinds of refusals whose cause no table of transformers tells, with their families.
PINNED = {
    "an encoder": """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta
        roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod
    """,
    "code that fails": """
        cohere_compass_text dbrx deepseek_ocr2_text dots1 glm4v_moe_text glm4v_text granite4_vision_text
        hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl_text lfm2_moe ministral musicgen_decoder musicgen_melody_decoder
        qwen3_omni_moe_text qwen4_exp_text xlstm
    """,
    "parts that are not understood": "hrm_text inkling2_text inkling_text unlimited_ocr_text zaya",
    "experts beyond the model's": "longcat_flash",
    "a field": "bailing_hybrid deepseek_v2 gemma4_unified_assistant glm4_moe jev",
    "parts that a pass over tokens leaves out": "blip_text_model ernie4_5_vl_moe_text mllama_text_model trocr",
    "code that reads numbers": "csm_depth_decoder_model glm5_next_text jetmoe step3p5",
}
# Of several models for transformers, but of one with parts that it lacks by default or that are of the decoder itself.
REFUSED_FOR_ANOTHER_REASON = {"jev", "gemma4_unified_assistant"}


@pytest.mark.sweep
def test_every_family_is_measured_exactly_or_refused_for_a_true_reason() -> None:
    """No refusal takes longer than the import of transformers, so that with the import it takes at most twice that."""
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    import_seconds = float(run.stdout)
    outcomes = examine_all(families())
    refused: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.reason is None:
            assert outcome.measured == outcome.expected, outcome
            assert min(outcome.measured) > 0, outcome
            assert not causes(outcome.model_type), outcome
            continue
        assert outcome.reason in REASONS, outcome
        assert "\n" not in outcome.message, outcome
        assert len(outcome.message) <= LONGEST, outcome
        assert outcome.seconds <= import_seconds, outcome
        refused.setdefault(outcome.reason, set()).add(outcome.model_type)
        check_cause(outcome)
    assert {kind: refused[kind] for kind in PINNED} == {kind: set(names.split()) for kind, names in PINNED.items()}
    counts = Counter(f"refused: {outcome.reason}" if outcome.reason else "measured" for outcome in outcomes)
    assert counts == {kind: int(number) for kind, number in ROWS}
    check_totals(len(outcomes), counts["measured"])


def check_totals(families: int, measured: int) -> None:
    """README and the page on families say that of so many families so many are measured."""
    assert f"of its {families} families {measured} are counted" in README
    assert f"Transformers 5.23 has {families} families" in PAGE
    assert f"both of all {measured} families" in " ".join(PAGE.split())


def test_readme_and_the_page_say_the_same_totals() -> None:
    """What they say is held to the sweep there; here its parts to its sums."""
    numbers = {outcome: int(number) for outcome, number in ROWS}
    assert len(numbers) > 10
    check_totals(sum(numbers.values()), numbers["measured"])
    pinned = {f"refused: {kind}": len(names.split()) for kind, names in PINNED.items()}
    assert {kind: numbers[kind] for kind in pinned} == pinned


def check_cause(outcome: Outcome) -> None:
    """A cause that transformers' tables tell is the reason, and a reason that they would tell is true."""
    told = causes(outcome.model_type)
    if outcome.reason in PINNED:
        assert not told or outcome.model_type in REFUSED_FOR_ANOTHER_REASON, outcome
    else:
        assert outcome.reason in told, outcome
