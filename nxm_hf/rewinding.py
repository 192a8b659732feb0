"""Lottery tickets: the mask at the end of a training on the weights of its beginning."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm_hf.config import NxMConfig, SparsityRecord
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.methods import Slot, keep
from nxm_hf.storage.card_facts import CardFacts
from nxm_hf.storage.model_files import layer_weights, load_model, skeleton
from nxm_hf.storage.model_record import set_record
from nxm_hf.storage.same_model import check_same_model
from nxm_hf.storage.saving import bytes_of, check_written, copy_beside, write_record, written_whole
from nxm_hf.storage.state_file import STATE_FILE, by_layer, read_state
from nxm_hf.storage.verify import Verification, verify, verify_targets
from nxm_hf.text import shortened


def rewind(
    trained: str | Path, checkpoint: str | Path, output_dir: str | Path, pattern: str | dict[str, str] | None = None
) -> Verification:
    """Write the model of an early checkpoint with the mask of the trained one: a lottery ticket.

    To train the ticket, load it and write `NxMTrainer(model=...)` without `sparsity`. That keeps the mask, and starts
    with a new optimizer and schedule.

    Args:
        trained: Directory of the model that gives the mask. A sparse model gives its own mask, a dense one the mask of
            its largest weights.
        checkpoint: A checkpoint of the same training, or the model that it began from. If that training was making the
            model sparse, the weights are those that its optimizer trained.
        output_dir: A new directory.
        pattern: The pattern of the mask, if the trained model is dense.

    Returns:
        The verification of the written weights.

    Raises:
        TypeError: If a model stands where a directory should.
        FileExistsError: If `output_dir` is not empty.
        ValueError: If the two models do not belong together, or the checkpoint holds no dense weights.
    """
    if isinstance(trained, nn.Module) or isinstance(checkpoint, nn.Module):
        raise TypeError("rewind takes directories, and got a model. Write rewind(TRAINED_DIR, CHECKPOINT_DIR, OUT).")
    if Path(output_dir).exists() and (not Path(output_dir).is_dir() or any(Path(output_dir).iterdir())):
        raise FileExistsError(f"{output_dir} exists and is not empty. Name a new directory.")
    config, layers = _config_of(trained, pattern)
    model = load_model(checkpoint)
    _restore_dense(checkpoint, model)
    plan = Plan.of(model, config)
    if layers not in (None, plan.layers):
        raise ValueError(f"{checkpoint} is not of the model in {trained}: other layers are sparse there. Name its own.")
    for target, mask in zip(plan.targets, _masks(trained, plan), strict=True):
        _apply(target, mask, checkpoint)
    verification = verify_targets(plan.targets)
    verification.raise_for_problems()
    record = SparsityRecord(config, plan.layers, verification.density)
    set_record(model, record)
    with written_whole(output_dir, bytes_of(model)) as folder:
        model.save_pretrained(folder)
        copy_beside(checkpoint, folder)
        write_record(folder, record, verification, CardFacts(new_weights=True))
        check_written(folder, plan)
    return verification


def _config_of(trained: str | Path, pattern: str | dict[str, str] | None) -> tuple[NxMConfig, dict[str, str] | None]:
    """Return the config of the ticket, and the sparse layers of the trained model if it has a record of them."""
    try:
        record = SparsityRecord.from_pretrained(trained)
    except FileNotFoundError:
        if pattern is None:
            raise ValueError(
                f"{trained} has no record of being sparse. Name the pattern of the mask: --pattern 2:4."
            ) from None
        return NxMConfig("asp", pattern), None  # type: ignore[arg-type]  # the field is a string for HfArgumentParser
    if pattern is not None:
        raise ValueError(
            f"{trained} is sparse already, with {record.config.pattern}, and rewind takes its mask. "
            f"Got pattern={pattern!r}. Leave pattern out."
        )
    verify(trained).raise_for_problems()
    return record.config.for_finetuning(), record.layers


@torch.no_grad()
def _restore_dense(checkpoint: str | Path, model: PreTrainedModel) -> None:
    """Load the weights that the optimizer trained, if the checkpoint of a sparse training holds them."""
    if not (Path(checkpoint) / STATE_FILE).is_file():
        return
    header, tensors = read_state(checkpoint)
    plan = Plan.of(model, NxMConfig.from_dict(header["config"]))
    check_same_model(checkpoint, header, plan)
    states = by_layer(tensors)
    for target in plan.targets:
        state = states[target.name]
        target.matrix().copy_(state.get(Slot.DENSE, state["weight"]))


def _masks(trained: str | Path, plan: Plan) -> Iterator[Tensor]:
    """Yield the mask of each target: the largest weights of the trained model, which are all that a sparse one has."""
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
    """Prune a weight of the checkpoint, unless it is pruned already and its dense values are lost."""
    weight = target.matrix()
    if target.pattern.violations(weight) == 0 and bool((weight[mask] == 0).any()):
        raise ValueError(
            f"{target.name} is pruned in {checkpoint} already, and its dense weights are not there. Name a checkpoint "
            "of a dense training, or of a recipe that keeps dense weights, such as ste or admm."
        )
    keep(weight, mask)
