"""The training steps that are compared, on one OLMoE-shaped model with random weights.

Every step is forward, backward and one AdamW step on 4 x 128 random tokens, all of which count in the loss.
Both sides of a comparison share the weights' dtype, the tokens, the threads, the stock `grouped_mm` experts
of transformers where they run stock experts, and the optimizer's class and settings.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from steermoe.moe.masking import masked_experts
from steermoe.moe.slices import ExpertSlices

Step = Callable[[], object]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

NUM_EXPERTS = 64
BATCH, LENGTH = 4, 128
LEARNING_RATE = 1e-5


def olmoe(num_layers: int, seed: int = 0) -> PreTrainedModel:
    """A model of OLMoE-1B-7B's shape, in bfloat16, with as many layers as asked for."""
    config = OlmoeConfig(
        num_hidden_layers=num_layers,
        intermediate_size=1024,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=8,
        router_aux_loss_coef=0.0,
    )
    with no_init_weights():
        model = OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    block = torch.empty(1 << 22, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            # Blocks of one sample, each from another place: drawing 7 billion numbers takes minutes.
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                shift = int(torch.randint(len(block), (), generator=generator))
                part.copy_(block.roll(shift)[: len(part)])
    model.set_experts_implementation("grouped_mm")
    return model.train()


def tokens(model: PreTrainedModel, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (BATCH, LENGTH), generator=generator)


def some_experts(num_layers: int, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Experts drawn from all layers; the first layer is always among them, the worst case."""
    everywhere = [(i, e) for i in range(num_layers) for e in range(NUM_EXPERTS)]
    chosen = random.Random(seed).sample(everywhere[NUM_EXPERTS:], count - 1)
    return sorted([(0, 20), *chosen])


def fused_adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as transformers' trainer makes it: one pass over the parameters."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)


def default_adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW as torch makes it without being asked: on a CPU one operation after the other."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def frozen_forward(model: nn.Module, ids: Tensor, slices: ExpertSlices | None = None) -> Step:
    """The stock model's forward pass and loss, without gradients."""

    @torch.no_grad()
    def step() -> None:
        if slices is None:
            loss_of(model, ids)
            return
        with slices.switched_off():
            loss_of(model, ids)

    return step


def slices_step(
    model: nn.Module, ids: Tensor, slices: ExpertSlices, adamw: MakeOptimizer = fused_adamw
) -> Step:
    """The selected experts, fp32 masters and moments; each master is stepped as its gradient is done."""
    slices.step_during_backward(adamw)

    def step() -> None:
        loss_of(model, ids).backward()

    return step


def masked_step(step: Step, model: nn.Module, slices: ExpertSlices) -> Step:
    """The same step, routed over the selected experts only, where a layer has any."""
    allowed = np.zeros((model.config.num_hidden_layers, NUM_EXPERTS), dtype=bool)
    for layer, expert in slices.experts:
        allowed[layer, expert] = True

    def masked() -> None:
        with masked_experts(model, allowed):
            step()

    return masked


def full_gradient_step(
    model: nn.Module,
    ids: Tensor,
    experts: list[tuple[int, int]],
    adamw: MakeOptimizer = fused_adamw,
) -> tuple[Step, list[nn.Parameter]]:
    """Full gradients of the affected layers' fused tensors, zeroed but for the selected experts.

    Weights, gradients and moments are bfloat16. Returns the parameters that train beside the step.
    """
    trained: list[nn.Parameter] = []
    for layer in sorted({layer for layer, _ in experts}):
        module = model.get_submodule(f"model.layers.{layer}.mlp.experts")
        frozen = torch.ones(NUM_EXPERTS, dtype=torch.bool)
        frozen[[expert for i, expert in experts if i == layer]] = False
        for parameter in module.parameters():

            def zero_frozen(fused: Tensor, frozen: Tensor = frozen) -> None:
                assert fused.grad is not None
                fused.grad[frozen] = 0

            parameter.register_post_accumulate_grad_hook(zero_frozen)
            trained.append(parameter)
    optimizer = adamw(trained)

    def step() -> None:
        loss_of(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, trained


def lora_step(model: PreTrainedModel, ids: Tensor, experts: list[tuple[int, int]]) -> Step:
    """PEFT's LoRA of rank 8 on all experts of the affected layers."""
    from peft import LoraConfig, get_peft_model

    layers = sorted({layer for layer, _ in experts})
    names = [
        f"layers.{layer}.mlp.experts.{name}"
        for layer in layers
        for name in ("gate_up_proj", "down_proj")
    ]
    config = LoraConfig(r=8, lora_alpha=8, target_modules=[], target_parameters=names)
    wrapped = get_peft_model(model, config)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = fused_adamw(trained)

    def step() -> None:
        loss_of(wrapped, ids).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
