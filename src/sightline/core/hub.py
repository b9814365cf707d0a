"""Models in folders as the Hugging Face Hub has them: ``config.json``, ``model.safetensors`` and a card, README.md."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import safe_open

from sightline.core.errors import UserError
from sightline.core.files import write_json


class HubModel(ModelHubMixin, ABC, library_name="sightline", tags=["sightline", "robotics"]):
    """A model with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    ``model.safetensors`` is the file of weights that the stages write, which is enough by itself; ``config.json``
    repeats its header. A README.md that is there already (the model's card) is kept.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        del args, kwargs  # the mixin would make a configuration of them; ours is in the header
        return object.__new__(cls)

    @abstractmethod
    def write_weights(self, path: Path) -> None:
        """Write the model's own file."""

    @classmethod
    @abstractmethod
    def read_weights(cls, path: Path) -> Any:
        """Read the model's own file, in evaluation mode."""

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = save_directory / SAFETENSORS_SINGLE_FILE
        self.write_weights(weights)
        with safe_open(weights, framework="np") as file:
            (header,) = file.metadata().values()
        write_json(save_directory / CONFIG_NAME, json.loads(header))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The model in a folder, or of the Hub; ``options`` as those of `ModelHubMixin.from_pretrained`.

        Raises:
            UserError: neither a folder nor a model of the Hub that can be reached, or another kind of model.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            return cls.read_weights(Path(name) / SAFETENSORS_SINGLE_FILE)
        try:
            return super().from_pretrained(name, **options)
        except UserError:
            raise
        except (OSError, ValueError) as error:  # of the Hub: no such name, no network
            raise UserError(
                f"{name}: neither a folder nor a model of the Hub ({' '.join(str(error).split())})"
            ) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision: str | None = None, **options: Any) -> Self:
        known = {name: options[name] for name in ("cache_dir", "force_download", "token", "local_files_only")}
        return cls.read_weights(Path(hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, revision=revision, **known)))
