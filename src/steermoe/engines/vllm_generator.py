"""Text and routed experts from a `vllm.LLM` of this process.

vLLM itself returns the routed experts of a request (`enable_return_routed_experts`, from 0.32 on), one row for each
token that was fed: P + G - 1 of them. Its build for processors cannot: there, each router hands what it chose to a
function of ours, and the rows are given to their requests in the order in which the model runner fed them.

Shape legend: P prompt tokens, G generated tokens, H decoder layers (dense ones too), K top-k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from steermoe.engines.chat_engine import Reply, smallest_type
from steermoe.errors import ModelError, RoutingError
from steermoe.records import IntArray, Sampling

NOT_FED = -1


class VLLMGenerator:
    """Replies of a `vllm.LLM`, with the routes of all its decoder layers.

    Args:
        llm: It must have been made so that it can tell its routes.
        record: False asks for text only.

    Raises:
        ModelError: It cannot tell its routes, with what to do.
    """

    def __init__(self, llm: Any, record: bool = True) -> None:
        self._llm = llm
        self._capture: _Capture | None = None
        if not record:
            return
        if _returns_routes(llm):
            return
        if not on_processor():
            raise ModelError(
                "this vllm.LLM does not return routed experts: make it with enable_return_routed_experts=True"
            )
        self._capture = _Capture(llm)

    def replies(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_token_ids: Sequence[int]
    ) -> list[Reply]:
        """Reply to prompts, given as token ids.

        Returns:
            One reply each, in order, its routes `(P + G - 1, H, K)`; without rows where only text is asked for.
        """
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            [self._parameters(sampling, stop_token_ids, place) for place, _ in enumerate(prompts)],
            use_tqdm=False,
        )
        rows = self._capture.take() if self._capture is not None else {}
        replies = []
        for prompt, output in zip(prompts, outputs, strict=True):
            ids = list(output.outputs[0].token_ids)
            routes = output.outputs[0].routed_experts
            if self._capture is not None:
                routes = self._capture.assembled(
                    rows.get(output.request_id, []), len(prompt) + len(ids) - 1
                )
            replies.append(Reply(ids, np.zeros((0, 0, 0), np.uint8) if routes is None else routes))
        return replies

    def _parameters(self, sampling: Sampling, stop_token_ids: Sequence[int], place: int) -> Any:
        """Settings for the prompt at a place of its group: sampled replies of a group differ by their seeds."""
        from vllm import SamplingParams

        greedy = sampling.temperature == 0
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=None if greedy else (sampling.seed * 1_000_003 + place) % 2**63,
            stop_token_ids=list(stop_token_ids),
            detokenize=False,
            # Tokens that another request has been fed already would not be fed, and so not be seen.
            skip_reading_prefix_cache=True if self._capture is not None else None,
        )


class _Capture:
    """Keeps what the routers of a model of this process choose, by request.

    Args:
        llm: A `vllm.LLM` whose engine runs in this process.
    """

    def __init__(self, llm: Any) -> None:
        if getattr(llm.llm_engine, "model_executor", None) is None:
            raise ModelError(
                "on a processor, vLLM's routes can only be seen in its own process: set the environment variable "
                "VLLM_ENABLE_V1_MULTIPROCESSING=0 before vllm is imported"
            )
        config = llm.llm_engine.vllm_config.model_config
        self._num_layers = int(config.get_total_num_hidden_layers())
        self._type = smallest_type(int(config.get_num_experts()))
        self._chosen: dict[int, IntArray] = {}
        self._rows: defaultdict[str, list[tuple[int, IntArray]]] = defaultdict(list)
        llm.collective_rpc(self._attach)

    def take(self) -> dict[str, list[tuple[int, IntArray]]]:
        """Of every request since the last call the rows it was fed, each run with its first position."""
        # vLLM appends eight random characters to the name that it returns.
        taken = {name.rpartition("-")[0] or name: rows for name, rows in self._rows.items()}
        self._rows.clear()
        return taken

    def assembled(self, rows: Sequence[tuple[int, IntArray]], length: int) -> IntArray:
        """The rows of one request in order of their position.

        Raises:
            RoutingError: One is missing.
        """
        if not rows:
            raise RoutingError(
                "vLLM's routers were not seen for a request: no routes were recorded"
            )
        routes = np.full((length, *rows[0][1].shape[1:]), NOT_FED, dtype=np.int32)
        for start, part in rows:
            routes[start : start + len(part)] = part[: max(0, length - start)]
        if (missing := int((routes == NOT_FED).any(axis=(1, 2)).sum())) > 0:
            raise RoutingError(f"vLLM's routers were not seen for {missing} of {length} tokens")
        return routes.astype(self._type)

    def _attach(self, worker: Any) -> None:
        """Listen to every router of a worker, and to what its model runner feeds."""
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        runner = worker.model_runner
        for name, module in runner.model.named_modules():
            if isinstance(module, MoERunner):
                listen = getattr(module.router, "set_capture_fn", None)
                if listen is None:
                    raise ModelError(f"vLLM's router {name} cannot be listened to")
                listen(self._listener(int(module.layer_id)))
        runner.execute_model = self._following(runner, runner.execute_model)

    def _listener(self, layer: int) -> Callable[[Any], None]:
        def chosen(ids: Any) -> None:
            self._chosen[layer] = ids.to("cpu", copy=True).numpy()

        return chosen

    def _following(self, runner: Any, execute: Callable[..., Any]) -> Callable[..., Any]:
        """A step of the model runner, after which the rows are given to the requests they belong to."""

        def execute_model(scheduled: Any, *others: Any, **more: Any) -> Any:
            self._chosen.clear()
            result = execute(scheduled, *others, **more)
            if scheduled.total_num_scheduled_tokens and self._chosen:
                self._deal(runner, scheduled.num_scheduled_tokens)
            return result

        return execute_model

    def _deal(self, runner: Any, num_scheduled: dict[str, int]) -> None:
        first = next(iter(self._chosen.values()))
        step = np.zeros((len(first), self._num_layers, first.shape[1]), dtype=self._type)
        for layer, ids in self._chosen.items():
            step[:, layer] = ids
        offset = 0
        for request in runner.input_batch.req_ids:
            count = num_scheduled[request]
            start = int(runner.requests[request].num_computed_tokens)
            self._rows[request].append((start, step[offset : offset + count]))
            offset += count


def on_processor() -> bool:
    """Whether this is vLLM's build for processors."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _returns_routes(llm: Any) -> bool:
    config = getattr(llm.llm_engine.vllm_config, "aux_output_config", None)
    return bool(getattr(config, "enable_return_routed_experts", False))
