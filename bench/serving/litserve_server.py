"""The model behind LitServe, which gathers batches and waits for all of each. Needs litserve, which reads the annotations as they run."""

import argparse
import gc
from typing import Any

import litserve
import torch

from .batch_and_wait import Batch
from .characters import model, request


class Served(litserve.LitAPI):
    """Its process makes the model of these arguments."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(max_batch_size=args.slots, batch_timeout=args.wait)
        self._args = args

    def setup(self, device: str) -> None:
        torch.set_num_threads(self._args.threads)
        self._batch = Batch(model(self._args.hidden, self._args.most), self._args.slots)
        gc.collect()
        gc.freeze()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, x: list[dict[str, Any]] | dict[str, Any]) -> list[str]:
        bodies = [x] if isinstance(x, dict) else x
        return ["".join(chunks) for chunks in self._batch.run([request(body["prompt"], body["most"], body["seed"]) for body in bodies])]

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: Any) -> dict[str, str]:
        return {"text": output if isinstance(output, str) else output[0]}  # without batches, what `predict` gave


def serve(args: argparse.Namespace) -> None:
    """Until a signal comes."""
    server = litserve.LitServer(Served(args), accelerator="cpu", devices=1, workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False, pretty_logs=False)
