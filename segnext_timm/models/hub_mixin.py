"""SegNeXt's facts about its weights, and how it is saved and pushed with them and a model card."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn as nn
from huggingface_hub import CommitInfo, ModelCard
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.modules import Activation

from .._atomic import fill_when_complete
from ..errors import OptionError
from ..label_sets import name_list
from .facts import check_facts, plain_values, update_facts
from .fusion import check_not_fused
from .model_info import ModelInfo

_logger = logging.getLogger(__name__)


class SegNeXtHubMixin(SegmentationModel):
    """smp's base class, with facts about the weights in the configuration, and this package's model card."""

    __jit_unused_properties__ = ["pretrained_cfg"]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Facts about the weights, saved with the configuration, as in timm.

        `label_names` and `palette` (red, green, blue) of each class; `mean` and `std` of images scaled to 0..1;
        `fit_in`, the long and the short side that :func:`.predict` resizes images to fit; `dataset`, `license`,
        `description` and `results` for the model card. Results belong to what is saved: a loaded model, which may be
        trained on, has none, so that a folder or repository that it replaces loses them unless they are stated again.

        Raises:
            OptionError: If an entry has another form, or is for another number of classes or channels.
        """
        return self.config["pretrained_cfg"]

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: Mapping[str, Any] | None) -> None:
        self.config["pretrained_cfg"] = self._fitting_facts(cfg or {}, ModelInfo(self).num_classes, strict=True)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        branch: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Save weights, configuration and a model card, and push them with `push_to_hub=True`. Takes smp's arguments.

        A card that was edited by hand stays as it is.

        Args:
            save_directory: Folder to write.
            config: Configuration to save in place of the model's.
            repo_id: "user/repo" to push to. Default: the name of the folder.
            push_to_hub: Push the folder, as :func:`segnext_timm.push_to_hub` does.
            model_card_kwargs: Facts, as in the `card` of that function; :attr:`pretrained_cfg` keeps all but results.
            branch: Branch to push to.
            kwargs: `dataset` and `metrics` are facts too; others are arguments of that function.

        Raises:
            OptionError: If the model is fused, its segmentation head was replaced by one that is not smp's, or a fact
                does not fit the model.
            OSError: If the Hub refuses the request or cannot be reached.
        """
        from ..hub import cards, push  # above the models: smp asks a model for its card

        stated: dict[str, Any] = {name: kwargs.pop(name) for name in ("dataset", "metrics") if name in kwargs}
        info = self._update_config({**(model_card_kwargs or {}), **stated})  # before anything is written, or removed
        folder = Path(save_directory)
        with fill_when_complete(folder, last="config.json") as new:
            if (folder / "README.md").is_file():
                shutil.copyfile(folder / "README.md", new / "README.md")
            # a copy: smp adds its name of the class to what it saves and takes it away, which other threads would see
            config = config or {**self.config, "pretrained_cfg": info}
            super().save_pretrained(new, config={**config, "_model_class": type(self).__name__})
            cards.write_card(new)
        return push.push_to_hub(folder, repo_id or folder.name, revision=branch, **kwargs) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo | None:
        """Push weights, configuration and a model card to "user/repo" on the Hub: see :meth:`save_pretrained`."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    def _update_config(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Make the configuration that of the model as it is, whose head and facts may have been changed in place.

        Returns all facts to save. The model keeps them, too, but for results among `facts`: it may be trained on.
        """
        check_not_fused(self)
        head = _describe_head(self.segmentation_head, self.config.get("activation"))
        fitting = self._fitting_facts(self.pretrained_cfg, head["classes"])
        info = update_facts(fitting, facts)  # raises an error before anything is changed
        self.pretrained_cfg = update_facts(fitting, {**facts, "results": None, "metrics": None})
        self.config.update(head)
        return info

    def _fitting_facts(self, cfg: Mapping[str, Any], classes: int, strict: bool = False) -> dict[str, Any]:
        """Leave out the entries of a `pretrained_cfg` for another number of classes or channels, with a warning.

        Raises an OptionError instead if `strict`.
        """
        fitting = plain_values(cfg)
        if misfits := check_facts(fitting, classes, self.in_channels):
            if strict:
                raise OptionError(f"pretrained_cfg does not fit the model: {', '.join(misfits.values())}.")
            _logger.warning(f"pretrained_cfg: left out {', '.join(misfits.values())}.")
        # results belong to the classes
        untrue = {*misfits, *(("dataset", "results") if "label_names" in misfits else ())}
        fitting = {name: value for name, value in fitting.items() if name not in untrue}
        if names := fitting.get("label_names"):
            fitting["label_names"] = name_list(names)
        if input_size := fitting.get("input_size"):
            fitting["input_size"] = [self.in_channels, *input_size[1:]]
        return fitting

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> Any:
        # the file contains the encoder's weights, so pretrained ones need not be downloaded
        started_from, kwargs["encoder_weights"] = kwargs.get("encoder_weights"), None
        model = super()._from_pretrained(**kwargs)
        model.config["encoder_weights"] = started_from  # for the card when the model is saved again
        model.pretrained_cfg.pop("results", None)  # see `pretrained_cfg`
        return model.eval()  # documented by the Hub's mixin, but some versions do not do it for safetensors

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the model card from `config` and `pretrained_cfg`.

        Args:
            args: Ignored, as by smp.
            kwargs: Facts, as in the `card` of :func:`segnext_timm.push_to_hub`; `repo_id`, the Hub repository in the
                card's code (default: the folder of the card).
        """
        from ..hub.cards import model_card

        repo = kwargs.pop("repo_id", None) or "."
        info = update_facts(self.pretrained_cfg, kwargs)
        return model_card({**self.config, "_model_class": type(self).__name__, "pretrained_cfg": info}, repo)


def _describe_head(head: Any, activation: str | None) -> dict[str, Any]:
    """Describe SegNeXt's own segmentation head by arguments, without an activation other than `activation`."""
    if not (hasattr(head, "takes_size") and type(head[0]) is nn.Conv2d and head[0].kernel_size == (1, 1)):
        raise OptionError(
            f"The configuration cannot describe this segmentation head, a {type(head).__name__}, so the saved model "
            f"would not load. Create the model with `classes` and `activation` instead, or save its state_dict."
        )
    if repr(head[2]) != repr(Activation(activation)):
        _logger.warning(f"activation: left out {head[2]}, which is not the configuration's: a saved model has none.")
        activation = None
    return {"classes": head[0].out_channels, "activation": activation}
