import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import segnext_timm  # noqa: F401
from segnext_timm.checkpoints import backbone_to_native, segmenter_to_native, unnest

from published import backbone_shapes, random_state_dict, segmenter_shapes


@pytest.fixture(scope="module")
def names():
    return set(timm.create_model("mscan_t").state_dict())


@pytest.mark.parametrize("dialect", ["paper", "mmseg"])
def test_every_published_name_becomes_a_native_one(dialect, names):
    native = backbone_to_native(random_state_dict(backbone_shapes("t", dialect, classifier=True)))
    assert set(native) == names


def test_both_spellings_hold_the_same_weights():
    paper = random_state_dict(backbone_shapes("t", "paper"))
    mmseg = {name.replace("dwconv.dwconv", "dwconv"): value for name, value in paper.items()}
    one, other = backbone_to_native(paper), backbone_to_native(mmseg)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_strip_convolutions_find_their_place():
    published = random_state_dict(backbone_shapes("t"))
    native = backbone_to_native(published)
    for branch in range(3):
        for strip in range(2):
            old = f"block2.1.attn.spatial_gating_unit.conv{branch}_{strip + 1}.weight"
            assert torch.equal(native[f"stages.1.blocks.1.attn.msca.branches.{branch}.{strip}.weight"], published[old])


def test_nested_checkpoints_are_unnested():
    flat = random_state_dict({"head.bias": (4,)})
    for nested in (
        flat,
        {"state_dict": flat, "meta": {}},
        {"model": flat, "optimizer": {}},
        {"model": {"model": flat}},
    ):
        assert unnest(nested).keys() == flat.keys()


def test_native_parameters_pass_unchanged(names):
    state_dict = timm.create_model("mscan_t").state_dict()
    assert backbone_to_native(state_dict).keys() == names


def test_a_backbone_is_taken_out_of_a_segmenter():
    segmenter = random_state_dict(segmenter_shapes("t", 5))
    native = backbone_to_native({"state_dict": segmenter})
    assert set(native) == set(timm.create_model("mscan_t", num_classes=0).state_dict())


def test_unknown_names_are_kept_for_load_state_dict_to_report():
    native = backbone_to_native(random_state_dict(backbone_shapes("t") | {"foo.bar": (1,)}))
    assert "foo.bar" in native


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"not a checkpoint of MSCAN.*found conv1\.weight"):
        backbone_to_native({"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no tensors"):
        backbone_to_native({})
    with pytest.raises(ValueError, match="not a published SegNeXt segmenter"):
        segmenter_to_native(random_state_dict(backbone_shapes("t")))


def test_a_published_segmenter_has_all_parameters_but_the_bases():
    model = smp.create_model("segnext", "tu-mscan_t", encoder_weights=None, classes=5)
    native = segmenter_to_native({"state_dict": random_state_dict(segmenter_shapes("t", 5))})
    assert set(model.state_dict()) - set(native) == {"decoder.hamburger.nmf.bases"}
    assert set(native) <= set(model.state_dict())
