import json

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import miniatures
import validate_imagenet
from segmentation.recipe import UserError


@pytest.fixture
def folders(tmp_path):
    """Images of seven classes, and a model for them; gives (images, model)."""
    for label in range(7):
        for i in range(3):
            miniatures.picture(tmp_path / "images" / f"n{label}" / f"{i}.JPEG", (50 + i, 60), seed=10 * label + i)
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_mscan", num_classes=7), tmp_path / "model", safe_serialization=True)
    return tmp_path / "images", tmp_path / "model"


def test_the_accuracy_is_that_of_the_labels(folders, tmp_path):
    images, folder = folders
    arguments = [f"local-dir:{folder}", str(images), "--batch_size", "4", "--workers", "0"]
    result = validate_imagenet.main([*arguments, "--json", str(tmp_path / "x.json")])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    ranks = []
    for label in range(7):
        for file in sorted((images / f"n{label}").iterdir()):
            with torch.inference_mode():
                logits = model(transform(Image.open(file).convert("RGB"))[None])[0]
            ranks.append(logits.argsort(descending=True).tolist().index(label))
    assert result["images"] == 21
    assert result["top1"] == pytest.approx(100 * sum(r == 0 for r in ranks) / 21)
    assert result["top5"] == pytest.approx(100 * sum(r < 5 for r in ranks) / 21)
    assert json.loads((tmp_path / "x.json").read_text())["top1"] == result["top1"]


def test_mistakes_are_named(folders, tmp_path):
    images, folder = folders
    with pytest.raises(UserError, match="none does not exist"):
        validate_imagenet.main([f"local-dir:{folder}", str(tmp_path / "none")])
    (images / "n8").mkdir()
    miniatures.picture(images / "n8" / "x.JPEG", (40, 40))
    with pytest.raises(UserError, match="holds 8 classes, the model has 7"):
        validate_imagenet.main([f"local-dir:{folder}", str(images)])
