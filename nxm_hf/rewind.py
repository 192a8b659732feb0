"""Rewinding: the mask of a training that is over, on the weights of its beginning: a lottery ticket."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nxm_hf.config.config import NxMConfig
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.plan import Plan, Target, resolve
from nxm_hf.methods import keep
from nxm_hf.storage.model_files import layer_weights, load_model, skeleton
from nxm_hf.storage.model_record import put_stamp
from nxm_hf.storage.same_model import check_same_model
from nxm_hf.storage.saving import check_written, copy_beside, write_record
from nxm_hf.storage.state_file import STATE_FILE, by_layer, read_state
from nxm_hf.storage.verify import Verification, verify, verify_targets
from nxm_hf.text import shortened


def rewind(
    trained: str | Path, checkpoint: str | Path, output_dir: str | Path, pattern: str | dict[str, str] | None = None
) -> Verification:
    """Write the model of an early checkpoint with the mask of the trained one: a lottery ticket.

    Training what was written with `NxMTrainer(model=...)` and no `sparsity` keeps its mask, with an optimizer and a
    schedule that begin anew.

    Args:
        trained: a directory with the model that says what is kept: a sparse one's mask, or of a dense one the largest
            weights.
        checkpoint: a checkpoint of the same training, or the model that it began from. Of a training that was making
            a model sparse, the weights are those that its optimizer trained.
        output_dir: a new directory.
        pattern: for a trained model that is dense.
    """
    if Path(output_dir).exists() and (not Path(output_dir).is_dir() or any(Path(output_dir).iterdir())):
        raise FileExistsError(f"{output_dir} is there already, and not empty. Name a new directory.")
    config, model = _config_of(trained, pattern), load_model(checkpoint)
    _restore_dense(checkpoint, model)
    plan = resolve(model, config)
    if config.layers not in (None, plan.layers):
        raise ValueError(f"{checkpoint} is not of the model in {trained}: other layers are sparse there. Name its own.")
    for target, mask in zip(plan.targets, _masks(trained, plan), strict=True):
        _apply(target, mask, checkpoint)
    report = verify_targets(plan.targets)
    report.raise_for_problems()
    config.layers, config.density = plan.layers, report.density
    put_stamp(model, config)
    model.save_pretrained(output_dir)
    copy_beside(checkpoint, output_dir)
    write_record(output_dir, config, plan)
    check_written(output_dir, model, plan)
    return report


def _config_of(trained: str | Path, pattern: str | dict[str, str] | None) -> NxMConfig:
    """What the mask is of: as the trained model's record says, or, of a dense model, as we are told."""
    try:
        record = NxMConfig.from_pretrained(trained)
    except FileNotFoundError:
        if pattern is None:
            raise ValueError(
                f"{trained} has no record of being sparse. Say what to keep of it: --pattern 2:4."
            ) from None
        return NxMConfig("asp", pattern)
    if pattern is not None:
        raise ValueError(
            f"{trained} is sparse already, with {record.pattern}, and its mask is taken. Leave pattern out."
        )
    verify(trained).raise_for_problems()
    config = record.for_finetuning()
    config.layers = record.layers
    return config


@torch.no_grad()
def _restore_dense(checkpoint: str | Path, model: PreTrainedModel) -> None:
    """Put in what the optimizer trained, where the checkpoint of a sparse training holds what could be shipped."""
    if not (Path(checkpoint) / STATE_FILE).is_file():
        return
    header, tensors = read_state(checkpoint)
    config = NxMConfig.from_dict(header["config"])
    check_same_model(checkpoint, header, model, config)
    states = by_layer(tensors)
    for target in resolve(model, config).targets:
        state = states[target.name]
        target.matrix().copy_(state.get("dense", state["weight"]))


def _masks(trained: str | Path, plan: Plan) -> Iterator[Tensor]:
    """What the trained model keeps of each target: the largest of its weights, and of a sparse one all it has."""
    model = skeleton(trained)
    layers = {layer.name: layer for layer in find_layers(model)}
    if missing := [target.name for target in plan.targets if target.name not in layers]:
        raise ValueError(
            f"{trained} has no {shortened(missing)}; it must be the same model at the end of its training."
        )
    chosen = [layers[target.name] for target in plan.targets]
    for target, layer, weight in zip(plan.targets, chosen, layer_weights(trained, model, chosen), strict=True):
        if layer.shape != target.layer.shape:
            raise ValueError(f"{layer.name} is {layer.shape} in {trained} and {target.layer.shape} in the checkpoint.")
        yield target.pattern.mask(layer.matrix(weight).abs())


@torch.no_grad()
def _apply(target: Target, mask: Tensor, checkpoint: str | Path) -> None:
    weight = target.matrix()
    if target.pattern.violations(weight) == 0 and bool((weight[mask] == 0).any()):
        raise ValueError(
            f"{target.name} is pruned in {checkpoint} already, and its dense weights are not there. Name a checkpoint "
            "of a dense training, or of a recipe that keeps dense weights, such as ste or admm."
        )
    keep(weight, mask)
