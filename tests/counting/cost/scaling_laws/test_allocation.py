"""Laws that say only N or D: each paper's figures, and their conversion to our count of N and C."""

import pytest

from counting.analysis import Analysis, analyze
from counting.cost.scaling_laws.allocation import AllocationLaw, allocate, allocation_laws
from counting.cost.scaling_laws.shapes import LawShape, allocate_in_shape, designed_shape, shape_of
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields

KAPLAN, DEEPSEEK, LLAMA_3 = allocation_laws()
every_law = pytest.mark.parametrize("law", allocation_laws(), ids=lambda law: law.name)


def paper_shape(layers: int, width: int, vocabulary: int = 102_400, length: int = 4096) -> LawShape:
    """A model as DeepSeek LLM 2024 counts it: 12 width^2 weights a layer, one matrix of the vocabulary."""
    inner = 12 * layers * width**2
    return LawShape(
        model="paper",
        designed=False,
        parameters=inner + vocabulary * width,
        non_embedding_parameters=inner,
        attention_flops_per_token=12 * layers * width * length,
        sequence_length=length,
    )


def test_the_names() -> None:
    assert [law.name for law in allocation_laws()] == ["kaplan-2020", "deepseek-2024", "llama-3-2024"]


def test_kaplan_at_one_pf_day() -> None:
    """Kaplan et al. 2020, table 6: N = 1.3 x 10^9 (C / PF-day)^0.73, without embeddings; a PF-day: 8.64 x 10^19 FLOPs.

    If half of N are embeddings, half of 6 N D is the law's C: 1.3 x 10^9 x 0.5^0.73 = 0.783775 x 10^9, and twice that
    with embeddings. D = 8.64 x 10^19 / (6 x 1.3 x 10^9) = 1.10769 x 10^10.
    """
    found = allocate(KAPLAN, 8.64e19, 1.0)
    assert (found.quantity, found.parameters) == (1.3e9, 1_300_000_000)
    assert found.tokens == pytest.approx(1.10769e10, rel=1e-5)
    half = allocate(KAPLAN, 8.64e19, 0.5)
    assert half.quantity == pytest.approx(0.783775e9, rel=1e-5)
    assert half.parameters == pytest.approx(1.56755e9, rel=1e-5)
    assert not half.extrapolated
    assert allocate(KAPLAN, 1e23, 1.0).extrapolated


def test_deepseek_in_its_own_count() -> None:
    """DeepSeek LLM 2024, eq. 4: at C = 10^20, M = 0.1715 x 10^10.486 = 5.2513 x 10^9, D = 5.8316 x 10^9.514.

    10^10.486 = 3.06196 x 10^10; D = 1.90453 x 10^10. C = M D holds to the digits printed: 0.1715 x 5.8316 = 1.00012.
    """
    found = allocate(DEEPSEEK, 1e20, 1.0)
    assert found.quantity == pytest.approx(5.25126e9, rel=1e-5)
    assert found.parameters == pytest.approx(5.25126e9 / 6, rel=1e-5)
    assert found.tokens == pytest.approx(1.90453e10, rel=2e-4)
    assert not found.extrapolated


@pytest.mark.parametrize(
    ("layers", "width", "printed"),
    [
        (8, 512, ("25.2M", "77.6M", "352M")),
        (12, 768, ("84.9M", "164M", "963M")),
        (24, 1024, ("302M", "407M", "3.02B")),
        (24, 2048, ("1.21B", "1.42B", "9.66B")),
        (32, 4096, ("6.44B", "6.86B", "45.1B")),
        (40, 5120, ("12.6B", "13.1B", "85.6B")),
        (80, 8192, ("64.4B", "65.3B", "419B")),
    ],
)
def test_deepseeks_flops_a_token(layers: int, width: int, printed: tuple[str, ...]) -> None:
    """DeepSeek LLM 2024, table 3: N1 without and N2 with the vocabulary of 102,400, and M at a length of 4,096.

    8 layers of 512: 12 x 8 x 512^2 = 25.2 M; M = 6 x 25.2 M + 12 x 8 x 512 x 4,096 = 352.3 M.
    """
    shape = paper_shape(layers, width)
    own = shape.non_embedding_flops_per_token
    counts = (shape.non_embedding_parameters, shape.parameters, own)
    units = {"M": 1e6, "B": 1e9}
    assert (
        tuple(f"{count / units[text[-1]]:.3g}{text[-1]}" for count, text in zip(counts, printed, strict=True))
        == printed
    )
    assert shape.share(DEEPSEEK) == own / (6 * shape.parameters)
    assert shape.share(KAPLAN) == shape.non_embedding_parameters / shape.parameters


def test_llama_3_at_its_budget() -> None:
    """3.8 x 10^25 FLOPs: 0.299 x 10^(0.537 x 25.579784) = 0.299 x 5.44936 x 10^13 = 1.62936 x 10^13 tokens.

    The paper says 16.55 T and 402 B parameters, from constants with more digits, and 402 B x 16.55 T x 6 is 3.99 x
    10^25. From the text's 0.29 and 0.53, D would be 0.29 x 3.60815 x 10^13 = 10.5 T.
    """
    found = allocate(LLAMA_3, 3.8e25, 1.0)
    assert found.quantity == pytest.approx(1.62936e13, rel=1e-5)
    assert found.quantity == pytest.approx(16.55e12, rel=0.02)
    assert found.parameters == pytest.approx(3.8e25 / 6 / 1.62936e13, rel=1e-5)
    assert found.parameters == pytest.approx(402e9, rel=0.04)
    assert found.extrapolated


@every_law
@pytest.mark.parametrize("training_flops", [1e18, 5.616e23, 1e27])
@pytest.mark.parametrize("share", [0.3, 0.97, 1.4])
def test_the_budget_is_met(law: AllocationLaw, training_flops: float, share: float) -> None:
    found = allocate(law, training_flops, share)
    spent = 6 * found.parameters * found.tokens
    assert spent <= training_flops < spent + 6 * found.parameters


@every_law
def test_the_law_s_own_count_of_what_it_says_is_its_compute(law: AllocationLaw) -> None:
    """Back from N and D: the law's own FLOPs a token times D is its C, and the quantity follows from that C again."""
    shape = paper_shape(30, 4096)
    found = allocate(law, 1e22, shape.share(law))
    scaled = found.parameters / shape.parameters  # the same shares at another size
    per_token = {
        "non_embedding_parameters": 6 * scaled * shape.non_embedding_parameters,
        "non_embedding_flops_per_token": scaled * shape.non_embedding_flops_per_token,
        "tokens": 6 * found.parameters,
    }[law.gives]
    compute = per_token * found.tokens / law.flops_per_unit_of_compute
    assert law.coefficient * compute**law.exponent == pytest.approx(found.quantity, rel=1e-6)


@every_law
def test_too_little_compute(law: AllocationLaw) -> None:
    with pytest.raises(UserError, match=f"^5 training FLOPs are too few for any model by the law {law.name}$"):
        allocate(law, 5.0, 1.0)


@pytest.fixture(scope="module")
def llama() -> Analysis:
    return analyze("llama_7b", step=False)


def test_the_shape_of_llama_7b(llama: Analysis) -> None:
    """6,738,415,616 weights, embedding and head 32,000 x 4,096 each; 32 layers of width 4,096, 2,048 tokens."""
    shape = shape_of(llama)
    assert shape is not None
    assert (shape.model, shape.parameters, shape.designed) == ("llama_7b", 6_738_415_616, False)
    assert shape.non_embedding_parameters == 6_738_415_616 - 2 * 32_000 * 4096
    assert shape.attention_flops_per_token == 12 * 32 * 4096 * 2048


def test_a_mixture_of_experts_has_no_shape_for_laws_of_dense_models() -> None:
    assert shape_of(analyze("mixtral_8x7b", Setup(sequence_length=2048), step=False)) is None


@pytest.mark.parametrize("parameters", [1e9, 8e9])
def test_a_designed_shape_is_that_of_the_design_as_measured(parameters: float) -> None:
    """Of a head that is tied to the embedding, and of one that is not."""
    from counting.cost.design import design_model

    shape = designed_shape(parameters)
    analysis = analyze(spec_from_fields(design_model(int(parameters)).config, "design"), step=False)
    measured = shape_of(analysis)
    assert measured is not None
    assert measured.non_embedding_parameters == shape.non_embedding_parameters
    assert measured.attention_flops_per_token == shape.attention_flops_per_token
    assert measured.share(DEEPSEEK) == shape.share(DEEPSEEK)


@pytest.mark.parametrize("law", [KAPLAN, DEEPSEEK], ids=lambda law: law.name)
def test_a_model_is_designed_for_the_law_s_own_n(law: AllocationLaw) -> None:
    found, shape = allocate_in_shape(law, 5.616e23, 47 * 10**9, None)
    assert shape is not None
    assert shape.designed
    assert shape.parameters == pytest.approx(found.parameters, rel=0.006)
    assert found == allocate(law, 5.616e23, shape.share(law))


@pytest.mark.parametrize("training_flops", [1e13, 1e29])
def test_beyond_designs_the_nearest_one_lends_its_shape(training_flops: float) -> None:
    _, shape = allocate_in_shape(KAPLAN, training_flops, 10**9, None)
    assert shape is not None
    assert shape.parameters == pytest.approx(250e6 if training_flops < 1e20 else 1e13, rel=0.006)


def test_a_given_shape_is_kept_and_a_law_of_tokens_needs_none(llama: Analysis) -> None:
    given = shape_of(llama)
    found, shape = allocate_in_shape(KAPLAN, 5.616e23, 47 * 10**9, given)
    assert shape is given
    assert given is not None
    assert found == allocate(KAPLAN, 5.616e23, given.non_embedding_parameters / given.parameters)
    assert allocate_in_shape(LLAMA_3, 5.616e23, 47 * 10**9, given)[1] is None
