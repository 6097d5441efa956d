"""Six-band imagery with torchgeo: its segmentation trainer on MSCAN, and on SegNeXt.

    python examples/integrations/torchgeo_six_bands.py

torchgeo's `SemanticSegmentationTask` builds smp's models, and takes `backbone="tu-mscan_t"` as it is. Its list of
architectures is closed, so SegNeXt comes in by the one method that builds the model. `pretrained_cfg` keeps the mean
and standard deviation of the bands, so that `predict` takes raw six-band arrays.
"""

import logging
import tempfile
import warnings

import generated
import lightning as L
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

import segnext_timm

warnings.simplefilter("ignore")
from torchgeo.trainers import SemanticSegmentationTask


class Bands(Dataset):
    """Scenes with three bands more, made of the visible ones with noise, in torchgeo's form; from 0 to 1."""

    def __init__(self, count: int, seed: int) -> None:
        visible, self.labels = generated.street_scenes(count, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        invisible = visible.flip(1) * 0.7 + 0.3 * torch.rand(visible.shape, generator=generator)
        self.raw = torch.cat([visible, invisible], 1)
        self.mean, self.std = self.raw.mean((0, 2, 3)), self.raw.std((0, 2, 3))

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = (self.raw[index] - self.mean[:, None, None]) / self.std[:, None, None]
        return {"image": image, "mask": self.labels[index]}


class SegNeXtTask(SemanticSegmentationTask):
    """torchgeo's task on SegNeXt, whatever `model` says: losses, metrics and optimizer stay torchgeo's."""

    def configure_models(self) -> None:
        self.model = smp.create_model(
            "segnext",
            self.hparams["backbone"],
            encoder_weights="imagenet" if self.weights is True else None,  # the stem is adapted to the bands
            in_channels=self.hparams["in_channels"],
            classes=self.hparams["num_classes"],
        )


def main() -> None:
    generated.show_versions("torchgeo", "lightning", "segmentation-models-pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data, held_out = Bands(24, seed=0), Bands(4, seed=1)
    for make in (SemanticSegmentationTask, SegNeXtTask):
        L.seed_everything(0, verbose=False)
        task = make(model="unet", backbone="tu-mscan_t", in_channels=6, num_classes=len(generated.CLASSES), lr=1e-3)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="cpu", max_epochs=2, logger=False, default_root_dir=folder,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            loader, val_loader = DataLoader(data, batch_size=4, shuffle=True), DataLoader(held_out, batch_size=4)
            before = trainer.validate(task, val_loader, verbose=False)[0]["val_loss"]
            trainer.fit(task, loader, val_loader)
            after = trainer.validate(task, val_loader, verbose=False)[0]["val_loss"]
        name = type(task.model).__name__
        print(f"{name}: loss on held-out scenes {before:.2f} -> {after:.2f} in {trainer.global_step} steps", flush=True)
        assert after < before

    model = task.model.eval()
    model.pretrained_cfg.update(mean=data.mean.tolist(), std=data.std.tolist(), label_names=list(generated.CLASSES))
    labels = segnext_timm.predict(model, data.raw[0])
    print(f"predict on a raw tensor {tuple(data.raw[0].shape)}: labels {labels.shape}")
    assert labels.shape == (96, 96)


if __name__ == "__main__":
    main()
