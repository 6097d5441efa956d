"""Published segmenters: the table, and files of every origin that load by name."""

import dataclasses
import functools
from urllib.parse import urlsplit

import pytest
import timm
import torch

import published_server
from segnext_timm import SegNeXt, create_segmenter, list_segmenters, load_segmenter
from segnext_timm._cli_info import list_models
from segnext_timm.checkpoints import catalog
from segnext_timm.checkpoints.catalog import BACKBONES, ORIGINS, find_backbone, get_segmenter_cfg, published_name
from segnext_timm.checkpoints.dialects import segmenter_to_native
from segnext_timm.label_sets import LABEL_SETS
from segnext_timm.variants import VARIANTS

TENSORS = {  # with the batch norms' counters, and without
    "t": (550, 519),
    "s": (436, 411),
    "b": (854, 807),
    "l": (1500, 1419),
}
PADDLESEG = {"t": 4_229_747, "s": 13_899_219, "b": 26_726_867, "l": 45_085_907}
ADE20K = {"t": 4_263_414, "s": 13_932_886, "b": 27_636_310, "l": 48_926_550}
RANKS = {"mmseg": (16, 16, 16, 16), "paddleseg": (16, 16, 16, 16)}
HERE = [
    "segnext_t.mmseg_ade20k",
    "segnext_t.jseg_isaid",
    "segnext_t.authors_cityscapes",
    "segnext_t.paddleseg_cityscapes",
]

# One name for each origin and size: files for other data sets differ only in the number of classes
ONE_OF_EACH = {(c.origin, c.variant.key): c.name for c in map(get_segmenter_cfg, list_segmenters())}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with published_server.serve() as files:
        yield files


def test_every_published_segmenter_has_a_name():
    names = list_segmenters()
    assert len(names) == len(set(names)) == 29
    for variant in "tsbl":
        for tag in ("mmseg_ade20k", "authors_ade20k", "authors_cityscapes", "paddleseg_cityscapes"):
            assert f"segnext_{variant}.{tag}" in names
        for labels in ("ade20k", "cityscapes", "isaid"):
            assert f"segnext_{variant}.jseg_{labels}" in names
        assert get_segmenter_cfg(f"segnext_{variant}").name == f"segnext_{variant}.mmseg_ade20k"
    assert "segnext_l.authors_coco_stuff164k" in names


SINGLE, MULTI = "single scale", "multi-scale + flip"
CITY = {"mode": "slide", "window": (1024, 1024), "stride": (768, 768)}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "segnext_b.mmseg_ade20k",
            {
                "url": "https://download.openmmlab.com/mmsegmentation/v0.5/segnext/"
                "segnext_mscan-b_1x16_512x512_adamw_160k_ade20k/"
                "segnext_mscan-b_1x16_512x512_adamw_160k_ade20k_20230209_172053-b6f6c70c.pth",
                "cached_name": "segnext_mscan-b_1x16_512x512_adamw_160k_ade20k_20230209_172053-b6f6c70c.pth",
                "sha256": "647a0cda7678a35396689a4f8e9fddc33a088d8b539195d0dc97485ab8640ef1",
                "size": 110_977_141,
                "miou": {SINGLE: 48.03, MULTI: 49.68},
                "input_size": (3, 512, 512),
                "evaluation": {"mode": "whole", "fit_in": (2048, 512), "divisor": 32},
            },
        ),
        (
            "segnext_s.jseg_isaid",
            {
                "url": "https://cg.cs.tsinghua.edu.cn/jittor/assets/build/checkpoints/segnext_small_896x896_isaid_160k.pkl",
                "cached_name": "segnext_small_896x896_isaid_160k.pkl",
                "sha256": None,
                "miou": {SINGLE: 68.8},
                "input_size": (3, 896, 896),
                "evaluation": {"mode": "whole", "fit_in": (896, 896)},
            },
        ),
        ("segnext_t.jseg_ade20k", {"evaluation": {"mode": "whole", "fit_in": (2048, 512)}, "decoder_rank": 16}),
        (
            "segnext_l.authors_cityscapes",
            {
                "url": "https://cloud.tsinghua.edu.cn/f/b5308d092b034f81aac0/?dl=1",
                "cached_name": "segnext_l.authors_cityscapes.pth",
                "miou": {SINGLE: 83.2, MULTI: 83.9},
                "input_size": (3, 1024, 1024),
                "evaluation": CITY,
                "decoder_channels": 1024,
                "decoder_rank": 64,
            },
        ),
        ("segnext_l.authors_coco_stuff164k", {"miou": {}, "input_size": (3, 512, 512), "num_classes": 171}),
        (
            "segnext_b.paddleseg_cityscapes",
            {
                "url": "https://paddleseg.bj.bcebos.com/dygraph/cityscapes/"
                "segnext_mscan_b_cityscapes_1024x1024_160k/model.pdparams",
                "cached_name": "segnext_b.paddleseg_cityscapes.pdparams",
                "miou": {SINGLE: 82.74, "flip": 82.84, MULTI: 83.01},
                "evaluation": {"mode": "whole"},
                "decoder_channels": 256,
                "decoder_rank": 16,
            },
        ),
    ],
)
def test_facts_of_a_segmenter_are_those_that_its_publisher_states(name, facts):
    cfg = get_segmenter_cfg(name)
    assert {key: getattr(cfg, key) for key in facts} == facts


def test_the_authors_cityscapes_results_are_jseg_s():
    for key in "tsbl":
        assert (
            get_segmenter_cfg(f"segnext_{key}.authors_cityscapes").miou
            == get_segmenter_cfg(f"segnext_{key}.jseg_cityscapes").miou
        )


def test_backbones_have_the_paper_s_accuracy():
    cfgs = BACKBONES.values()
    assert [cfg.top1 for cfg in cfgs] == [75.9, 81.2, 83.0, 83.9]


def test_the_catalog_has_the_types_that_it_states():
    for cfg in map(get_segmenter_cfg, list_segmenters()):
        assert cfg.labels in LABEL_SETS and cfg.origin in ORIGINS
        assert all(isinstance(value, float) and 30 < value < 100 for value in cfg.miou.values())
        assert cfg.sha256 is None or len(cfg.sha256) == 64
        for value in (cfg.input_size, *(cfg.evaluation.get(key) for key in ("fit_in", "window", "stride"))):
            assert value is None or (isinstance(value, tuple) and all(isinstance(side, int) for side in value))
        assert cfg.hf_hub_id is None or cfg.hf_hub_id.count("/") == 1


@pytest.mark.parametrize("name", [*BACKBONES, *list_segmenters()])
def test_terms_of_every_data_set_have_a_source(name):
    cfg = find_backbone(name) or get_segmenter_cfg(name)
    assert cfg.terms
    for term in cfg.terms:
        assert term["dataset"] == cfg.dataset
        assert term["says"] and urlsplit(term["source"]).scheme == "https"


def test_sources_that_differ_are_both_named_and_what_was_not_read_is_not_stated():
    says = {cfg.labels: [t["says"] for t in cfg.terms] for cfg in map(get_segmenter_cfg, list_segmenters())}
    assert says["ade20k"] == ["bsd-3-clause", "non-commercial research and education (not checked)"]
    assert "any commercial use prohibited" in says["isaid"][0]
    assert says["coco_stuff164k"] == ["not checked"]
    assert [t["says"] for t in find_backbone("mscan_t").terms] == ["not checked"]


def test_a_new_size_advertises_no_weights(monkeypatch):
    monkeypatch.setitem(VARIANTS, "x", dataclasses.replace(VARIANTS["l"], key="x", backbone="mscan_x"))
    models = list_models()
    assert [model["name"] for model in models["backbones"]] == [f"mscan_{key}.in1k" for key in "tsbl"]
    assert not [model["name"] for model in models["segmenters"] if model["name"].startswith("segnext_x")]


def test_terms_travel_with_the_weights():
    info = get_segmenter_cfg("segnext_t.jseg_isaid").pretrained_cfg
    assert info["dataset_terms"] == get_segmenter_cfg("segnext_t.jseg_isaid").terms
    assert "dataset_terms" not in create_segmenter("segnext_t.jseg_isaid").pretrained_cfg  # random weights


@pytest.mark.parametrize("name", list_segmenters())
def test_counts_are_those_of_the_published_files(name):
    cfg = get_segmenter_cfg(name)
    variant = cfg.variant.key
    counted, uncounted = TENSORS[variant]
    names = list(published_server.segmenter_shapes(variant, 2))
    assert len(names) == counted
    assert len([name for name in names if not name.endswith("num_batches_tracked")]) == uncounted
    if cfg.origin == "paddleseg":
        assert cfg.parameters == PADDLESEG[variant]
    elif cfg.labels == "ade20k":
        assert cfg.parameters == ADE20K[variant]
    paper_ranks = dict(zip("tsbl", RANKS.get(cfg.origin, (16, 16, 64, 64))))
    assert cfg.decoder_rank == paper_ranks[variant]


@functools.cache
def count_parameters(create, name, **arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in create(name, **arguments).parameters())


def test_the_catalog_counts_the_parameters_that_the_models_have():
    for cfg in BACKBONES.values():
        assert cfg.parameters == count_parameters(timm.create_model, cfg.name), cfg.name
    for cfg in map(get_segmenter_cfg, list_segmenters()):
        arguments = {"decoder_channels": cfg.decoder_channels, "classes": cfg.num_classes}
        counted = count_parameters(SegNeXt, cfg.encoder_name, encoder_weights=None, **arguments)
        assert cfg.parameters == counted, cfg.name


def test_files_have_names_of_their_own_in_the_cache():
    names = [get_segmenter_cfg(name).cached_name for name in list_segmenters()]
    assert len(set(names)) == len(names)
    assert all(name.endswith((".pth", ".pkl", ".pdparams")) for name in names)


def test_each_origin_states_license_and_source():
    for name in list_segmenters():
        cfg = get_segmenter_cfg(name)
        origin = ORIGINS[cfg.origin]
        assert cfg.pretrained_cfg["license"] == "apache-2.0"
        assert "contact" in origin.license_note
        assert all(result["source"] == origin.url for result in cfg.results)
        assert urlsplit(cfg.url).scheme == "https"


def test_the_table_of_backbones_is_timm_s():
    assert sorted(timm.list_pretrained("mscan*")) == sorted(BACKBONES)
    assert len(BACKBONES) == 4
    assert timm.get_pretrained_cfg("mscan_b").tag == "in1k"


def test_names_are_completed_and_unknown_ones_suggest_the_nearest():
    assert published_name("mscan_b") == "mscan_b.in1k"
    assert published_name("mscan_b.in1k") == "mscan_b.in1k"
    assert published_name("segnext_s") == "segnext_s.mmseg_ade20k"
    with pytest.raises(ValueError, match=r"Unknown checkpoint 'mscan_b\.in1'\. Did you mean 'mscan_b\.in1k'"):
        published_name("mscan_b.in1")


def load_from_server(server, name, tmp_path, monkeypatch):
    weights = published_server.weights_of(name)
    path = published_server.offer(server, name, published_server.file_of(name, weights, tmp_path), monkeypatch.setitem)
    model = create_segmenter(name, pretrained=True)
    assert (tmp_path / "home" / "hub" / "checkpoints" / get_segmenter_cfg(name).cached_name).is_file()
    assert server.requests == {path: 1}
    return model.eval(), weights


@pytest.mark.parametrize("name", HERE)
def test_a_file_of_each_origin_loads_by_name(server, tmp_path, monkeypatch, name):
    model, weights = load_from_server(server, name, tmp_path, monkeypatch)
    state_dict, native = model.state_dict(), segmenter_to_native(weights)
    for key, value in native.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(state_dict[key], value), key
    assert len(model.pretrained_cfg["label_names"]) == model.segmentation_head[0].out_channels


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_every_published_file_gives_mmsegmentation_s_logits(server, tmp_path, monkeypatch, name):
    import reference

    model, weights = load_from_server(server, name, tmp_path, monkeypatch)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    variant, bases = get_segmenter_cfg(name).variant.key, model.decoder.hamburger.nmf.bases
    weights |= {"head.weight": torch.zeros(1, model.encoder.out_channels[-1]), "head.bias": torch.zeros(1)}
    expected = reference.run(variant, weights, bases, images)["masks"]
    with torch.inference_mode():
        logits = model(images)
    assert ((logits - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_classes_and_channels_are_adapted_for_every_origin(server, tmp_path, monkeypatch):
    name = "segnext_t.paddleseg_cityscapes"
    load_from_server(server, name, tmp_path, monkeypatch)
    model = create_segmenter(name, pretrained=True, classes=3, in_channels=4)
    assert model(torch.randn(1, 4, 64, 64)).shape == (1, 3, 64, 64)
    assert (model.decoder.align.out_channels, model.decoder.hamburger.nmf.rank) == (256, 16)
    loaded = load_segmenter(name)
    assert not loaded.training
    assert torch.equal(loaded.decoder.align.weight, model.decoder.align.weight)


def test_a_published_model_on_the_hub_is_loaded_from_there(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model = create_segmenter("segnext_t.jseg_isaid")
    model.save_pretrained(folder)
    cfg = get_segmenter_cfg("segnext_t.jseg_isaid")
    monkeypatch.setitem(catalog._CFGS, cfg.name, dataclasses.replace(cfg, hf_hub_id="user/segnext_t.jseg_isaid"))
    asked = []

    def download(repo, name, **options):
        asked.append((repo, name))
        return str(folder / name)

    monkeypatch.setattr("segnext_timm.checkpoints.loading.hf_hub_download", download)
    loaded = create_segmenter("segnext_t.jseg_isaid", pretrained=True)
    assert asked == [("user/segnext_t.jseg_isaid", "model.safetensors")]
    assert torch.equal(loaded.segmentation_head[0].weight, model.segmentation_head[0].weight)


def test_the_cfg_of_a_name_is_not_changed_by_a_model():
    before = dataclasses.asdict(get_segmenter_cfg("segnext_t"))
    create_segmenter("segnext_t").pretrained_cfg["label_names"].clear()
    assert dataclasses.asdict(get_segmenter_cfg("segnext_t")) == before
