import pytest

from jobs.blobs import BlobStore
from jobs.kept_sensitivities import NAME, keep_sensitivities, read_sensitivities
from jobs.problems import Problem
from jobs.recipe import ENGINE_VERSION
from jobs.sensitivities import Rounding, Sensitivities, Variant

MODEL = "mdl_" + "a" * 64


@pytest.fixture
def blobs(tmp_path):
    blobs = BlobStore(tmp_path, "default")
    with blobs.stage() as staged:
        blobs.publish("models", "a" * 64, staged, {})
    return blobs


@pytest.fixture
def found():
    weights = {"fc.weight": Rounding(relative_rmse=1 / 3, energy=7.0)}
    return Sensitivities(
        engine_version=ENGINE_VERSION,
        variants=(Variant(width=None, group_size=None, weights=weights),),
        seconds=0.5,
        predicted_peak_bytes=1,
        measured_peak_bytes=2,
    )


def test_what_was_measured_is_read_as_it_was_and_goes_with_its_model(blobs, found):
    assert read_sensitivities(blobs, MODEL) is None
    keep_sensitivities(blobs, MODEL, found)
    assert read_sensitivities(blobs, MODEL) == found

    blobs.remove("models", "a" * 64)

    assert read_sensitivities(blobs, MODEL) is None
    with pytest.raises(Problem, match="model_not_found"):
        keep_sensitivities(blobs, MODEL, found)


def test_what_another_engine_measured_or_a_disk_damaged_counts_as_not_measured(blobs, found):
    keep_sensitivities(blobs, MODEL, found.model_copy(update={"engine_version": 0}))
    assert read_sensitivities(blobs, MODEL) is None

    path = blobs.files("models", "a" * 64).with_name(NAME)
    for text in ("{", "[]", '{"variants": []}'):
        path.write_text(text)
        assert read_sensitivities(blobs, MODEL) is None
