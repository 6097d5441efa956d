import hashlib
import http.server
import logging
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from timm.models import adapt_input_conv, group_parameters
from timm.optim import param_groups_layer_decay
from torch.utils.flop_counter import FlopCounterMode

import segnext_timm.models.mscan
from random_checkpoints import FILES, accept_cached, backbone_shapes, random_state_dict
from segnext_timm.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"

# name: parameters without and with the 1000-class classifier, GMACs at 224², from the paper's table and its code
PUBLISHED = {
    "mscan_t": (3_903_584, 4_160_584, 0.887),
    "mscan_s": (13_450_176, 13_963_176, 2.560),
    "mscan_b": (26_277_824, 26_790_824, 5.082),
    "mscan_l": (44_636_864, 45_149_864, 9.047),
}


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def tiny(**kwargs):
    """A narrow MSCAN with batch statistics that are not trivial, in evaluation mode."""
    torch.manual_seed(0)
    model = timm.create_model("test_mscan", **kwargs)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.1, 1.0)
    return model.eval()


def test_the_models_are_registered_with_their_weights():
    assert timm.list_models("mscan*") == ["mscan_b", "mscan_l", "mscan_s", "mscan_t"]
    tags = ("in1k",)
    assert timm.list_pretrained("*mscan*") == [f"mscan_{v}.{tag}" for v in "blst" for tag in tags]
    for variant, file in FILES.items():
        cfg = timm.get_pretrained_cfg(f"mscan_{variant}")
        assert cfg.tag == "in1k"
        assert cfg.url == f"https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segnext/{file}"
        assert (cfg.mean, cfg.std, cfg.crop_pct, cfg.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")


@pytest.mark.slow
def test_overwriting_a_model_of_another_package_still_warns():
    code = (
        "import timm\n"
        "def mscan_t(pretrained=False, **kwargs): ...\n"
        "timm.models.register_model(mscan_t)\n"
        "import segnext_timm\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Overwriting mscan_t in registry with segnext_timm.models.mscan.mscan_t" in run.stderr


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    backbone, classifier, gmacs = PUBLISHED[name]
    with torch.device("meta"):
        model, x = timm.create_model(name).eval(), torch.empty(1, 3, 224, 224)
    assert count(model) == classifier
    model.reset_classifier(0)
    assert count(model) == backbone
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert round(counter.get_total_flops() / 2e9, 3) == gmacs


def test_native_names_are_frozen():
    names = (GOLDEN / "test_mscan.txt").read_text().split()
    assert list(timm.create_model("test_mscan").state_dict()) == names


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_dropped_unless_asked_and_rates_rise_linearly(name):
    def rates(model):
        return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]

    with torch.device("meta"):
        assert rates(timm.create_model(name)) == []
        depth = sum(len(stage.blocks) for stage in timm.create_model(name).stages)
        dropped = rates(timm.create_model(name, drop_path_rate=0.1))
    # the first block's rate is 0, which is no module
    expected = torch.linspace(0, 0.1, depth)[1:].repeat_interleave(2)
    torch.testing.assert_close(torch.tensor(dropped), expected)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_features_are_the_strided_ones_more_densely_sampled(output_stride):
    strided, dilated = tiny(features_only=True), tiny(features_only=True, output_stride=output_stride)
    dilated.load_state_dict(strided.state_dict())
    assert dilated.feature_info.reduction() == [min(r, output_stride) for r in (4, 8, 16, 32)]
    x = images(1, 3, 71, 99)
    for expected, output, reduction in zip(strided(x), dilated(x), (4, 8, 16, 32)):
        step = reduction // min(reduction, output_stride)
        torch.testing.assert_close(output[..., ::step, ::step], expected, rtol=1e-4, atol=1e-5)


def test_other_output_strides_are_refused():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        timm.create_model("test_mscan", output_stride=4)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2, 3), (3,), (0, 2), (-2, -1), 2])
@pytest.mark.parametrize("feature_cls", ["list", "getter"])
def test_features_only_gives_the_features_asked_for(out_indices, feature_cls):
    model = timm.create_model("test_mscan", features_only=True, out_indices=out_indices, feature_cls=feature_cls)
    indices = (2, 3) if out_indices == 2 else [i % 4 for i in out_indices]
    features = model.eval()(images(1, 3, 64, 96))
    expected = [((16, 24, 32, 48)[i], 64 // 2 ** (i + 2), 96 // 2 ** (i + 2)) for i in indices]
    assert [tuple(f.shape[1:]) for f in features] == expected
    assert model.feature_info.channels() == [shape[0] for shape in expected]


def test_the_public_example_of_a_feature_extractor():
    model = timm.create_model("mscan_t", features_only=True, out_indices=(1, 2, 3), output_stride=16, in_chans=4)
    features = model.eval()(images(1, 4, 64, 64))
    assert [tuple(f.shape) for f in features] == [(1, 64, 8, 8), (1, 160, 4, 4), (1, 256, 4, 4)]


def test_strided_convolutions_round_up():
    features = tiny(features_only=True)(images(1, 3, 33, 65))
    assert [tuple(f.shape[-2:]) for f in features] == [(9, 17), (5, 9), (3, 5), (2, 3)]


def test_channels_last_images_stay_channels_last():
    model = tiny(features_only=True).to(memory_format=torch.channels_last)
    layouts = {}

    def watch(name):
        def hook(module, inputs, output):
            layouts[name] = output.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    model(images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert layouts
    assert [name for name, channels_last in layouts.items() if not channels_last] == []


@pytest.mark.parametrize(
    "kwargs",
    [{"act_layer": "relu"}, {"act_layer": torch.nn.SiLU}, {"norm_layer": "groupnorm1"}, {"norm_layer": "layernorm2d"}],
)
def test_activation_and_norm_can_be_exchanged(kwargs):
    model = timm.create_model("test_mscan", **kwargs)
    model(images(2, 3, 64, 64)).sum().backward()
    if "norm_layer" in kwargs:
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert all(isinstance(stage.norm, torch.nn.LayerNorm) for stage in model.stages)


@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_changes_no_gradient(features_only):
    gradients = []
    for enable in (False, True):
        model = tiny(features_only=features_only)
        if not features_only:
            model.train()
        model.set_grad_checkpointing(enable)
        outputs = model(images(2, 3, 64, 64))
        sum(o.square().mean() for o in (outputs if features_only else [outputs])).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for without, with_checkpointing in zip(*gradients):
        torch.testing.assert_close(with_checkpointing, without)


def test_layer_decay_lowers_the_rate_towards_the_stem():
    model = timm.create_model("mscan_t")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert len(set(layers.values())) == 1 + sum((3, 3, 5, 2)) + 1  # stem, blocks, head
    assert layers["stem.conv1.weight"] == 0
    assert layers["stages.1.downsample.conv.weight"] == layers["stages.1.blocks.0.norm1.weight"]
    assert layers["stages.1.norm.weight"] == layers["stages.1.blocks.2.norm1.weight"]
    assert len(set(group_parameters(model, model.group_matcher(coarse=True), reverse=True).values())) == 6

    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    order = [model.stem.conv1, model.stages[0].blocks[0].mlp.fc1, model.stages[2].blocks[4].mlp.fc1, model.head.fc]
    scales = [scale[id(module.weight)] for module in order]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0


def test_dropout_acts_before_the_classifier():
    assert timm.create_model("test_mscan", drop_rate=0.3).head.drop.p == 0.3


def test_script_export_and_compile_give_the_eager_result():
    model, x = tiny(), images(2, 3, 70, 90)
    expected = model(x)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    size = {i: torch.export.Dim(name, min=33, max=1024) for i, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64), **size},))
    for other in (x, images(1, 3, 64, 64), images(3, 3, 33, 128)):
        torch.testing.assert_close(program.module()(other), model(other))


# Published weights. Downloads are not possible in a test: files of the published names stand in the cache.


@pytest.fixture
def seeded(tmp_path, monkeypatch):
    """Put a checkpoint under the name of mscan_t's published weights in an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def seed(checkpoint):
        path = tmp_path / "hub" / "checkpoints" / FILES["t"]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        accept_cached(monkeypatch.setitem)

    return seed


@pytest.mark.parametrize("nest", [lambda s: s, lambda s: {"state_dict": s, "meta": {"epoch": 300}}])
@pytest.mark.parametrize("dialect", ["paper", "mmseg"])
def test_published_weights_load_by_name(seeded, caplog, dialect, nest):
    published = random_state_dict(backbone_shapes("t", dialect, classifier=True))
    seeded(nest(published))
    model = timm.create_model("mscan_t", pretrained=True)
    assert torch.equal(model.stages[2].blocks[4].attn.proj_in.weight, published["block3.4.attn.proj_1.weight"])
    assert torch.equal(model.head.fc.weight, published["head.weight"])
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_file_without_a_classifier_loads_and_warns_once(seeded, caplog):
    published = random_state_dict(backbone_shapes("t"))
    seeded(published)
    model = timm.create_model("mscan_t", pretrained=True)
    assert torch.equal(model.stages[3].norm.weight, published["norm4.weight"])
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "no classifier" in record.message

    caplog.clear()
    for kwargs in ({"features_only": True}, {"num_classes": 0}, {"num_classes": 10}):
        timm.create_model("mscan_t", pretrained=True, **kwargs)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_native_weights_load_too(seeded):
    source = timm.create_model("mscan_t")
    seeded(source.state_dict())
    model = timm.create_model("mscan_t", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("in_chans", [1, 4, 6])
def test_the_pretrained_stem_adapts_to_other_channels(seeded, in_chans):
    published = random_state_dict(backbone_shapes("t", classifier=True))
    seeded(published)
    model = timm.create_model("mscan_t", pretrained=True, in_chans=in_chans)
    expected = adapt_input_conv(in_chans, published["patch_embed1.proj.0.weight"])
    assert torch.equal(model.stem.conv1.weight, expected)


def test_features_only_and_full_model_load_the_same_weights(seeded):
    seeded(random_state_dict(backbone_shapes("t", classifier=True)))
    x = images(1, 3, 64, 64)
    features = timm.create_model("mscan_t", pretrained=True, features_only=True).eval()(x)
    full = timm.create_model("mscan_t", pretrained=True).eval().forward_intermediates(x, intermediates_only=True)
    for one, other in zip(features, full):
        torch.testing.assert_close(one, other)


@pytest.fixture
def server(tmp_path):
    """A web server on loopback that serves a folder: (folder, address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()  # it ends within 10 ms
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def serve_weights(folder, name):
    """Write random weights of mscan_t to a served folder; their sha256."""
    torch.save(random_state_dict(backbone_shapes("t", classifier=True)), folder / name)
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_published_file_is_checked_when_it_arrives(server, tmp_path, monkeypatch):
    folder, address = server
    cache = tmp_path / "home" / "hub" / "checkpoints"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    name = FILES["t"]
    overlay = {"url": f"{address}/{name}"}
    digest = serve_weights(folder, name)

    with pytest.raises(
        CheckpointError, match=rf"{name}: the download failed \(.*its sha256 is {digest}, but .* begins with 119e8c9f"
    ):
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay=overlay)
    assert list(cache.iterdir()) == []
    monkeypatch.setitem(segnext_timm.models.mscan.PUBLISHED_SHA256, name, digest)
    timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay=overlay)
    assert [f.name for f in cache.iterdir()] == [name]


@pytest.mark.parametrize("failure", ["no such file", "no server"])
def test_a_failed_download_says_where_to_put_the_file_and_leaves_nothing(server, tmp_path, monkeypatch, failure):
    address = server[1] if failure == "no such file" else "http://127.0.0.1:9"
    overlay = {"url": f"{address}/{FILES['t']}"}
    expected = r"the download failed \(.*\)\. .* try again, or put the file at .*119e8c9f\.pth yourself"
    with pytest.raises(CheckpointError, match=expected):
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_hashes_of_the_published_backbones_are_the_recorded_ones():
    hashes = segnext_timm.models.mscan.PUBLISHED_SHA256
    assert list(hashes) == list(FILES.values())
    assert [len(hashes[FILES[v]]) for v in "tsbl"] == [64, 64, 64, 8]  # of L, only the digits of its name are known
    assert all(FILES[v].endswith(f"-{hashes[FILES[v]][:8]}.pth") for v in FILES)


def test_a_file_in_the_cache_is_checked_as_one_that_arrives(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / FILES["t"]
    path.parent.mkdir(parents=True)
    torch.save(random_state_dict(backbone_shapes("t", classifier=True)), path)
    expected = r"119e8c9f\.pth: its sha256 is \w+, but .* begins with 119e8c9f\w+\. Remove .*119e8c9f\.pth to download"
    with pytest.raises(CheckpointError, match=expected):
        timm.create_model("mscan_t", pretrained=True)
    assert path.is_file()


def test_a_query_behind_the_published_name_does_not_evade_the_check(seeded, monkeypatch):
    seeded(random_state_dict(backbone_shapes("t", classifier=True)))
    monkeypatch.setitem(segnext_timm.models.mscan.PUBLISHED_SHA256, FILES["t"], "0" * 64)
    overlay = {"url": f"https://example.org/{FILES['t']}?download=1"}
    with pytest.raises(CheckpointError, match=r"its sha256 is \w+, but the published file's begins with 0{64}"):
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay=overlay)


def test_a_name_of_another_file_that_lies_about_its_hash_refuses_nothing(server, tmp_path, monkeypatch):
    folder, address = server
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    name = "mscan_t_finetuned-00000000.pth"
    serve_weights(folder, name)
    for _ in range(2):
        timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay={"url": f"{address}/{name}"})


@pytest.mark.parametrize(
    ("arguments", "error"), [({"drop_pth_rate": 0.1}, TypeError), ({"output_stride": 4}, ValueError)]
)
def test_wrong_arguments_fail_before_any_download(tmp_path, monkeypatch, arguments, error):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(error, match=next(iter(arguments))):
        timm.create_model("mscan_t", pretrained=True, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_filter_changes_nothing_and_adds_nothing():
    model = timm.create_model("mscan_t", num_classes=10)
    published = random_state_dict(backbone_shapes("t"))
    model_before = {name: value.clone() for name, value in model.state_dict().items()}
    names = list(published)
    native = segnext_timm.models.mscan.checkpoint_filter_fn(published, model)
    assert list(published) == names
    assert all(torch.equal(value, model_before[name]) for name, value in model.state_dict().items())
    assert model_before.keys() - native.keys() == {"head.fc.weight", "head.fc.bias"}


def test_a_checkpoint_that_lacks_or_adds_a_parameter_is_refused(seeded):
    published = random_state_dict(backbone_shapes("t", classifier=True))
    for change in (lambda s: s.pop("norm2.bias"), lambda s: s.update(surplus=torch.zeros(1))):
        changed = dict(published)
        change(changed)
        seeded(changed)
        with pytest.raises(CheckpointError, match=r"lacks stages\.1\.norm\.bias|has the unknown surplus"):
            timm.create_model("mscan_t", pretrained=True)


def test_averages_beside_a_backbone_and_nested_files_load_by_timm(tmp_path):
    model = timm.create_model("test_mscan")
    averages = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in model.state_dict().items()}
    torch.save({"module": {"state_dict": {**model.state_dict(), **averages}}}, tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    loaded = timm.create_model("test_mscan", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_of_ones_own_keeps_a_classifier_that_fits(tmp_path, kept):
    model = timm.create_model("test_mscan", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    loaded = timm.create_model(
        "test_mscan", num_classes=3 if kept else 5, pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert torch.equal(loaded.stages[0].blocks[0].norm1.weight, model.stages[0].blocks[0].norm1.weight)
    assert torch.equal(loaded.head.fc.weight[:3], model.head.fc.weight) == kept


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.model.", "encoder.model."])
def test_a_backbone_is_taken_out_of_what_is_around_it(prefix):
    own = timm.create_model("test_mscan", num_classes=0).state_dict()
    around = {"decode_head.conv_seg.weight": torch.ones(1), "loss.weight": torch.ones(2)} if prefix else {}
    checkpoint = {"state_dict": {**{prefix + name: value for name, value in own.items()}, **around}, "epoch": 3}
    native = segnext_timm.models.mscan.checkpoint_filter_fn(checkpoint, timm.create_model("test_mscan", num_classes=0))
    assert native.keys() == own.keys()
    assert all(torch.equal(native[name], own[name]) for name in own)


def test_a_checkpoint_of_two_networks_and_weights_of_another_variant_are_told(seeded):
    own = timm.create_model("test_mscan").state_dict()
    two = {f"{prefix}.{name}": value for prefix in ("student", "teacher") for name, value in own.items()}
    with pytest.raises(CheckpointError, match=r"has 2 networks, .*student.*teacher"):
        segnext_timm.models.mscan.checkpoint_filter_fn(two, timm.create_model("test_mscan"))
    seeded(random_state_dict(backbone_shapes("s", classifier=True)))
    for kwargs in ({}, {"features_only": True}, {"num_classes": 7}):
        with pytest.raises(
            CheckpointError, match=r"lacks stages\.0\.blocks\.2\..*wrong shape in stages.* of another network or size"
        ):
            timm.create_model("mscan_t", pretrained=True, **kwargs)


def test_loading_strictly_is_strict():
    model, features = timm.create_model("mscan_t"), timm.create_model("mscan_t", num_classes=0).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"head\.fc\.weight\", \"head\.fc\.bias\""):
        model.load_state_dict(features)
    assert model.load_state_dict(features, strict=False).missing_keys == ["head.fc.weight", "head.fc.bias"]


def test_scripted_models_load_weights():
    source, scripted = tiny(), torch.jit.script(timm.create_model("test_mscan").eval())
    scripted.load_state_dict(source.state_dict())
    x = images(1, 3, 64, 64)
    torch.testing.assert_close(scripted(x), source(x))


def test_fusing_a_block_leaves_it_as_it_is_and_can_be_repeated():
    block = tiny().stages[1].blocks[0]
    x = images(2, 24, 20, 20)
    before, names = block(x), list(block.state_dict())
    first, second = block.fuse(), block.fuse()
    assert torch.equal(block(x), before)
    assert list(block.state_dict()) == names
    torch.testing.assert_close(first(x), before)
    assert torch.equal(second(x), first(x))
    assert not {p.data_ptr() for p in block.parameters()} & {p.data_ptr() for p in first.parameters()}


def test_strips_and_layer_scales_are_the_paper_s_and_the_latter_can_be_changed():
    block = timm.create_model("test_mscan").stages[0].blocks[0]
    assert torch.equal(block.ls1.gamma, torch.full((16,), 1e-2))
    assert [branch[0].kernel_size for branch in block.attn.msca.branches] == [(1, 7), (1, 11), (1, 21)]
    block = timm.create_model("test_mscan", ls_init_value=0.5).stages[0].blocks[0]
    assert torch.equal(block.ls2.gamma, torch.full((16,), 0.5))


def test_what_timm_does_itself_is_left_to_it():
    assert segnext_timm.models.mscan.register_model is timm.models.register_model
    assert "load_state_dict" not in vars(segnext_timm.MSCAN)
    assert not hasattr(segnext_timm.MSCAN, "no_weight_decay")


@pytest.mark.parametrize(("classes", "kept"), [(3, True), (1000, False)])
def test_a_file_of_ones_own_keeps_its_classifier_if_its_number_of_classes_is_stated_as_in_timm(tmp_path, classes, kept):
    model = timm.create_model("test_mscan", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth"), "num_classes": classes}
    loaded = timm.create_model("test_mscan", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight) == kept
    assert torch.equal(loaded.stem.conv1.weight, model.stem.conv1.weight)


def test_a_local_file_takes_the_place_of_the_published_weights(tmp_path):
    published = random_state_dict(backbone_shapes("t", classifier=True))
    torch.save(published, tmp_path / "mine.pth")
    overlay = {"file": str(tmp_path / "mine.pth")}
    model = timm.create_model("mscan_t", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.bias, published["head.bias"])


def test_a_state_dict_goes_before_a_file_as_in_timm():
    model = timm.create_model("test_mscan")
    overlay = {"state_dict": model.state_dict(), "file": "none.pth"}
    loaded = timm.create_model("test_mscan", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
