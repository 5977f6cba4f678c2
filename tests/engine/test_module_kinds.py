import pytest

from engine.module_kinds import ModuleKinds, read_module_kinds
from jobs.problems import Problem

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}


def test_a_models_own_code_tells_kinds_ties_and_head():
    kinds = read_module_kinds(BERT)

    assert kinds.kinds["bert.encoder.layer.0.attention.self.query"] == "Linear"
    assert kinds.kinds["bert.embeddings.word_embeddings"] == "Embedding"
    assert kinds.head == "cls.predictions.decoder"
    assert [
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ] in kinds.tied


@pytest.mark.parametrize("stored", ["bert.pooler", "pooler"])
@pytest.mark.parametrize("known", ["bert.pooler", "pooler"])
def test_names_are_found_with_and_without_the_base_models_prefix(stored, known):
    assert ModuleKinds({known: "Linear"}, prefix="bert").find(stored) == known


def test_a_module_that_the_model_lacks_is_not_found():
    assert ModuleKinds({"a": "Linear"}, prefix="bert").find("b") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            {"architectures": ["RemoteModel"]},
            "no model class 'RemoteModel'",
            marks=pytest.mark.slow,
        ),
        pytest.param({"architectures": ["logging"]}, "no model class", marks=pytest.mark.slow),
        pytest.param({"architectures": None}, "no model class ''", marks=pytest.mark.slow),
        pytest.param({"model_type": "remote"}, "does not know", marks=pytest.mark.slow),
        pytest.param({"hidden_size": -3}, "cannot be built", marks=pytest.mark.slow),
    ],
)
def test_a_config_that_names_no_known_model_is_refused(change, words):
    with pytest.raises(Problem, match=words) as caught:
        read_module_kinds(BERT | change)

    assert caught.value.code == "unknown_architecture"


@pytest.mark.parametrize(
    "config", [{"num_hidden_layers": 10**6}, {"text_config": {"n_layer": 9999}}]
)
def test_an_absurd_number_of_layers_is_refused_before_anything_is_built(config):
    with pytest.raises(Problem, match="at most 2048") as caught:
        read_module_kinds(BERT | config)

    assert caught.value.code == "invalid_config"
