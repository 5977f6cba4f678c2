import pytest

from engine.inspection import read_module_kinds
from jobs.problems import Problem
from planning.module_kinds import ModuleKinds

BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}


@pytest.mark.slow
def test_a_models_own_code_tells_kinds_ties_and_head():
    kinds = read_module_kinds(BERT)

    assert kinds.kinds["bert.encoder.layer.0.attention.self.query"] == "Linear"
    assert kinds.kinds["bert.embeddings.word_embeddings"] == "Embedding"
    assert kinds.head == "cls.predictions.decoder"
    assert [
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ] in kinds.tied


@pytest.mark.slow
def test_the_names_that_transformers_gives_to_tensors_while_loading_are_known():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    old = "vit.encoder.layer.0.attention.attention.query"
    vit = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **sizes}
    expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    mixtral = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **sizes}

    renaming = read_module_kinds(
        vit | {"num_attention_heads": 4}, [f"{old}.weight", "classifier.weight"]
    )
    merging = read_module_kinds(mixtral, [expert, "lm_head.weight"])

    assert renaming.renamed == {f"{old}.weight": "vit.layers.0.attention.q_proj.weight"}
    assert renaming.find(old) == "vit.layers.0.attention.q_proj"
    assert renaming.find("classifier") == "classifier"
    assert renaming.merged == frozenset()
    assert merging.renamed == {expert: "model.layers.0.mlp.experts.gate_up_proj"}
    assert merging.merged == {expert}
    assert merging.find(expert.removesuffix(".weight")) is None


@pytest.mark.slow
def test_linears_that_the_initialization_takes_by_their_weight_are_known():
    mamba = {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 60,
    }

    kinds = read_module_kinds(mamba)

    mixer = "backbone.layers.0.mixer"
    assert kinds.named_weights == {f"{mixer}.dt_proj", f"{mixer}.out_proj"}
    assert kinds.kinds[f"{mixer}.in_proj"] == "Linear"


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
