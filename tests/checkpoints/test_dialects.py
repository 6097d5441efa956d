import re
import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import segnext_timm  # noqa: F401
from random_checkpoints import (
    VARIANTS,
    backbone_shapes,
    paddle_spelling,
    paper_spelling,
    random_state_dict,
    segmenter_shapes,
    write,
    zero_state_dict,
)
from segnext_timm.checkpoints.dialects import load_checkpoint, recognize, segmenter_to_native
from segnext_timm.errors import CheckpointError
from segnext_timm.models.mscan import backbone_to_native
from segnext_timm.models.state_dicts import check_parameters, take_network, take_state_dict

NARROW = {"encoder_name": "tu-test_mscan", "encoder_weights": None, "classes": 3, "decoder_channels": 32}


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
    assert paper.keys() == paper_spelling(mmseg).keys()
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
        assert take_state_dict(nested).keys() == flat.keys()


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


# Recognizing


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spell", [paper_spelling, dict])
def test_variants_are_recognized_by_their_tensors(variant, spell):
    channels, paper_rank = VARIANTS[variant][3:]
    found = recognize({"state_dict": spell(zero_state_dict(segmenter_shapes(variant, 19)))})
    assert (found.kind, found.architecture) == ("segmenter", f"mscan_{variant}")
    assert (found.num_classes, found.in_chans, found.decoder_channels) == (19, 3, channels)
    assert (found.rank, found.rank_source) == (paper_rank, "from the paper's code, since the file does not contain it")
    for classifier, classes in ((True, 1000), (False, 0)):
        found = recognize(spell(zero_state_dict(backbone_shapes(variant, classifier=classifier))))
        assert (found.kind, found.architecture) == ("backbone", f"mscan_{variant}")
        assert (found.num_classes, found.rank, found.decoder_channels) == (classes, None, None)


def test_native_models_are_recognized():
    backbone = timm.create_model("mscan_t", num_classes=10, in_chans=6).state_dict()
    found = recognize(backbone)
    assert (found.kind, found.architecture) == ("backbone", "mscan_t")
    assert (found.num_classes, found.in_chans) == (10, 6)
    segmenter = smp.create_model(
        "segnext", "tu-mscan_t", encoder_weights=None, classes=4, decoder_rank=24, decoder_channels=64
    )
    found = recognize({"model": segmenter.state_dict()})
    assert (found.kind, found.num_classes) == ("segmenter", 4)
    assert (found.decoder_channels, found.rank, found.rank_source) == (64, 24, "that of its bases")
    assert found.state_dict.keys() == segmenter.state_dict().keys()


def test_the_rank_is_as_specified_or_that_of_the_configuration_or_the_paper_s():
    tensors = zero_state_dict(segmenter_shapes("b", 2))
    assert recognize(tensors).rank == 64
    told = recognize(tensors, rank=16)
    assert (told.rank, told.rank_source) == (16, "as specified")
    for config in ("ham_kwargs=dict(MD_R=16)", "'ham_kwargs': {'MD_S': 1, 'MD_R': 16}"):
        declared = recognize({"state_dict": tensors, "meta": {"cfg": config}})
        assert (declared.rank, declared.rank_source) == (16, "from the configuration in the file")
    assert recognize({"state_dict": tensors, "meta": {"cfg": "MD_R=16"}}, rank=8).rank == 8
    bases = {"decode_head.hamburger.ham.bases": torch.ones(1, 512, 32)}  # mmsegmentation's, if they are not drawn
    assert recognize(tensors | bases).rank == 32
    with pytest.raises(CheckpointError, match="its bases are of rank 32, not 16: leave the rank out"):
        recognize(tensors | bases, rank=16)


def test_class_names_and_palette_come_from_meta():
    tensors = zero_state_dict(segmenter_shapes("t", 2))
    palette = [[0, 0, 0], [255, 0, 0]]
    for meta in (
        {"CLASSES": ("wall", "door"), "PALETTE": palette},
        {"dataset_meta": {"classes": ["wall", "door"], "palette": torch.tensor(palette).numpy()}},
    ):
        found = recognize({"state_dict": tensors, "meta": meta})
        assert (found.label_names, found.palette) == (("wall", "door"), ((0, 0, 0), (255, 0, 0)))
    for meta in ({"CLASSES": ("wall",)}, {"CLASSES": None}, {}, None):  # of another number of classes, or none
        assert recognize({"state_dict": tensors, "meta": meta}).label_names is None


def two_states():
    """Parameters of a backbone, and their averages."""
    names = ("stem.conv1.weight", "head.fc.bias")
    return {name: torch.zeros(2) for name in names}, {name: torch.ones(2) for name in names}


@pytest.mark.parametrize(
    "nest",
    [
        lambda plain, average: {"state_dict": plain, "state_dict_ema": average},
        lambda plain, average: {"state_dict": plain, "ema_state_dict": average},
        lambda plain, average: {
            "state_dict": plain,
            "ema_state_dict": {"steps": torch.ones(1), **under("module.", average)},
        },
        lambda plain, average: {"model": plain, "model_ema": average},
        lambda plain, average: {"model": plain, "ema": {"model": average}},
        lambda plain, average: {"state_dict": under("model.", plain) | under("model_ema.module.", average)},
        lambda plain, average: {"state_dict": under("model.", plain) | under("ema_model.", average)},
    ],
)
def test_averages_are_taken_when_asked(nest):
    plain, average = two_states()
    checkpoint = nest(plain, average)
    for ema, expected in ((False, plain), (True, average)):
        taken = take_network(checkpoint, ema)
        assert taken.keys() == expected.keys()
        assert all(torch.equal(taken[name], expected[name]) for name in expected)
    with pytest.raises(CheckpointError, match="no moving average"):
        take_network({"state_dict": plain}, ema=True)


def test_mmcv_s_averages_beside_the_weights_stay_behind():
    plain, average = two_states()
    beside = {f"ema_{name.replace('.', '_')}": value for name, value in average.items()}
    assert take_network({"state_dict": plain | beside}).keys() == plain.keys()
    with pytest.raises(CheckpointError, match="no moving average"):
        take_network({"state_dict": plain | beside}, ema=True)


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("part", ["encoder.", "encoder.model.stem.", "decoder.hamburger.", ""])
def test_networks_that_were_compiled_in_parts_have_their_own_names(part):
    state_dict = smp.SegNeXt(**NARROW).state_dict()
    compiled = {
        f"{part}_orig_mod.{name.removeprefix(part)}" if name.startswith(part) else name: value
        for name, value in state_dict.items()
    }
    assert take_network({"state_dict": compiled}).keys() == state_dict.keys()


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "a.b."]
)
def test_the_names_of_a_network_begin_with_nothing(prefix):
    for state_dict in (random_state_dict(segmenter_shapes("t", 2)), smp.SegNeXt(**NARROW).state_dict()):
        wrapped = {prefix + name: value for name, value in state_dict.items()}
        assert take_network(wrapped).keys() == state_dict.keys()


def test_wrappers_of_parts_are_taken_off_too():
    state_dict = smp.SegNeXt(**NARROW).state_dict()
    wrapped = {name.replace("encoder.model.", "encoder.model._orig_mod."): value for name, value in state_dict.items()}
    assert take_network(wrapped).keys() == state_dict.keys()


def test_averages_of_mmengine_lie_beside_a_counter():
    state_dict = smp.SegNeXt(**NARROW).state_dict()
    averages = {"steps": torch.tensor(3), **{f"module.{name}": value + 1 for name, value in state_dict.items()}}
    found = recognize({"state_dict": state_dict, "ema_state_dict": averages}, ema=True)
    name = "segmentation_head.0.bias"
    assert torch.equal(found.state_dict[name], state_dict[name] + 1)


@pytest.mark.parametrize("prefix", ["model.", "module.", "net.", "module.model._orig_mod."])
def test_losses_and_metrics_beside_the_network_stay_behind(prefix):
    beside = {"criterion.weight": torch.ones(3), "train_iou.confmat": torch.ones(3, 3), "n_averaged": torch.ones(())}
    for own in (smp.SegNeXt(**NARROW).state_dict(), random_state_dict(segmenter_shapes("t", 2))):
        assert take_network({"state_dict": beside | under(prefix, own)}).keys() == own.keys()


def test_two_networks_are_named_with_the_way_to_go_on():
    state_dict = smp.SegNeXt(**NARROW).state_dict()
    both = {f"{prefix}.{name}": value for prefix in ("student", "teacher") for name, value in state_dict.items()}
    with pytest.raises(CheckpointError, match=r"has 2 networks, .*'student\..*'teacher\..* Save one alone") as error:
        recognize({"state_dict": both})
    assert "\n" not in str(error.value)


def test_batches_that_jittor_does_not_count_are_added(tmp_path, names):
    path = write(tmp_path / "mscan_t", random_state_dict(backbone_shapes("t", classifier=True)), "jittor")
    assert load_checkpoint(path).state_dict.keys() == names


def inside_itself():
    checkpoint = {}
    checkpoint["state_dict"] = {"model": checkpoint}
    return checkpoint


def with_palette(palette):
    published = zero_state_dict(segmenter_shapes("t", 3))
    return {"state_dict": published, "meta": {"CLASSES": ["a", "b", "c"], "PALETTE": palette}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "a Tensor instead of parameters by name"),
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64)},
            "not a checkpoint of MSCAN",
        ),
        ({"state_dict": {}}, "not a checkpoint of MSCAN or SegNeXt.*found no tensors"),
        ({0: torch.zeros(3)}, "not a checkpoint of MSCAN or SegNeXt.*found 0"),
        (
            {
                **{f"stages.{i}.norm.weight": torch.zeros(8) for i in range(4)},
                "stem.conv1.weight": torch.zeros(4, 3, 3, 3),
            },
            r"an MSCAN of channels \(8, 8, 8, 8\) and depths \(0, 0, 0, 0\), which is not one of mscan_t",
        ),
        (inside_itself(), "contains itself instead of parameters by name"),
        (with_palette([0, 1, 2]), r"its palette has entries that are not \[red, green, blue\]: \[0, 1, 2\]"),
        (with_palette([[0, 0, 0], None, [1, 1, 1]]), r"its palette has entries that are not .*None"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_the_file(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: {message}") as error:
        load_checkpoint(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


def test_differing_parameters_are_counted():
    expected = {name: torch.zeros(2) for name in "abcdef"}
    check_parameters(expected, expected)
    with pytest.raises(CheckpointError, match=r"lacks d, e and 1 more; has the unknown x; has the wrong shape in a"):
        check_parameters({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(2), "x": torch.zeros(2)}, expected)


def test_values_that_are_not_finite_are_named():
    with pytest.raises(CheckpointError, match=r"^NaN or infinity in 'b': the training diverged"):
        check_parameters({"a": torch.zeros(1), "b": torch.tensor([float("nan")])}, dict.fromkeys("ab", torch.zeros(1)))


# PaddleSeg, OTX, and files with more outputs than classes


@pytest.mark.parametrize("variant", VARIANTS)
def test_paddleseg_s_names_and_shapes_are_translated(variant):
    published = zero_state_dict(segmenter_shapes(variant, 19, channels=256))
    found = recognize({name: value.numpy() for name, value in paddle_spelling(published).items()}, rank=16)
    assert (found.kind, found.architecture) == ("segmenter", f"mscan_{variant}")
    assert (found.decoder_channels, found.rank, found.num_classes) == (256, 16, 19)
    expected = segmenter_to_native(published)
    assert {n: v.shape for n, v in found.state_dict.items()} == {n: v.shape for n, v in expected.items()}


@pytest.mark.parametrize("dialect", ["paddle", "paddle zip"])
def test_paddleseg_s_values_are_kept(tmp_path, backbone, segmenter, dialect):
    for state_dict, to_native in ((backbone, backbone_to_native), (segmenter, segmenter_to_native)):
        found = load_checkpoint(write(tmp_path / "x", state_dict, dialect))
        for name, value in to_native(state_dict).items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(found.state_dict[name], value), name


def test_a_checkpoint_of_geti_keeps_its_bases(tmp_path, segmenter):
    """Intel's Geti (OTX) saves the bases with mmsegmentation's names, in Lightning's `model.`"""
    bases = torch.rand(1, 256, 16)
    content = {f"model.{name}": value for name, value in segmenter.items()}
    content["model.decode_head.hamburger.ham.bases"] = bases
    torch.save({"state_dict": content}, tmp_path / "x.ckpt")
    found = load_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(found.state_dict["decoder.hamburger.nmf.bases"], bases)
    assert (found.rank, found.rank_source) == (16, "that of its bases")


def test_only_the_first_outputs_are_kept_on_request():
    state_dict = segmenter_to_native(random_state_dict(segmenter_shapes("t", 150)))
    published = random_state_dict(segmenter_shapes("t", 150))
    found = recognize(published, num_classes=19)
    assert found.num_classes == 19
    for part in ("weight", "bias"):
        name = f"segmentation_head.0.{part}"
        assert torch.equal(found.state_dict[name], state_dict[name][:19])
    with pytest.raises(CheckpointError, match="has 150 classes, so the first 151 cannot be kept"):
        recognize(published, num_classes=151)


@pytest.mark.slow
def test_the_command_of_the_issue_template_lists_names_and_shapes(tmp_path):
    template = Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE" / "checkpoint.yml"
    text = " ".join(template.read_text(encoding="utf-8").split())
    code = re.search(r'`python -c "(.*?)" FILE`', text)[1]
    path = write(tmp_path / "x", {"norm1.weight": torch.zeros(8)}, "jittor")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "norm1.weight (8,)\n"
