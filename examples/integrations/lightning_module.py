"""SegNeXt in a LightningModule: training, validation by torchmetrics, a checkpoint, and safetensors at the end.

    python examples/integrations/lightning_module.py

The model is trained with `upsampling=1` and `UpsampledCrossEntropyLoss`, which need no maps of all classes at the
images' size, and validated by `predict_labels`. The learning rates are the paper's: ten times higher for the head.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import generated
import lightning as L
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

import segnext_timm


class Segmenter(L.LightningModule):
    """SegNeXt, trained on images (B, 3, H, W) and labels (B, H, W)."""

    def __init__(self, encoder_name: str, classes: int, lr: float, ignore_index: int = 255) -> None:
        super().__init__()
        self.save_hyperparameters()
        # encoder_weights="imagenet" begins with the published weights
        self.model = smp.create_model("segnext", encoder_name, encoder_weights=None, classes=classes)
        self.model.upsampling = 1  # what is saved loads as a model of full size
        self.loss = segnext_timm.UpsampledCrossEntropyLoss(ignore_index=ignore_index)
        self.miou = MulticlassJaccardIndex(classes, ignore_index=ignore_index)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = self.loss(self.model(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        self.miou(self.model.predict_labels(images), labels)
        self.log("miou", self.miou, prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(segnext_timm.parameter_groups(self.model, self.hparams.lr))
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    generated.show_versions("lightning", "torchmetrics")
    warnings.filterwarnings("ignore", module="lightning")  # advice on workers and log steps
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(0)
    images, labels = generated.street_scenes(40)
    data = TensorDataset(generated.normalize(images), labels)
    train, val = torch.utils.data.random_split(data, [32, 8])
    segmenter = Segmenter("tu-mscan_t", len(generated.CLASSES), lr=5e-4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",  # or "auto", devices=4, strategy="ddp", precision="bf16-mixed", sync_batchnorm=True
            max_epochs=3,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        before = trainer.validate(segmenter, DataLoader(val, batch_size=4), verbose=False)[0]["miou"]
        trainer.fit(segmenter, DataLoader(train, batch_size=4, shuffle=True), DataLoader(val, batch_size=4))
        after = trainer.validate(segmenter, DataLoader(val, batch_size=4), verbose=False)[0]["miou"]
        print(f"mIoU on held-out scenes {before:.3f} -> {after:.3f}")
        assert after > before

        again = Segmenter.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=True)
        model = again.model.eval()
        model.pretrained_cfg.update(mean=generated.MEAN, std=generated.STD, label_names=list(generated.CLASSES))
        model.save_pretrained(Path(folder) / "segnext")
        loaded = smp.from_pretrained(Path(folder) / "segnext").eval()
        assert torch.equal(loaded.predict_labels(data[0][0][None]), model.predict_labels(data[0][0][None]))
        found = segnext_timm.predict(loaded, images[0])  # not normalized: the model knows how
    print(f"checkpoint -> safetensors -> predict: labels {found.shape}")


if __name__ == "__main__":
    main()
