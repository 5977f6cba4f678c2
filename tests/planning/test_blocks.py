import pytest

from planning.blocks import block_of


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3"),
        ("encoder.layer.11", "encoder.layer.11"),
        ("model.layers.0.mlp.experts.5.w1", "model.layers.0"),
        ("0.weight", "0"),
        ("model.embed_tokens.weight", None),
        ("lm_head", None),
        ("conv2d.weight", None),
    ],
)
def test_a_block_is_what_has_a_number_of_its_own(name, block):
    assert block_of(name) == block
