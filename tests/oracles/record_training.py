"""Record how heads of transformers 4.37.2 train, into `training_4.37.2.npz`.

By hand, from the root of the repository, in the environment of record_reference.py:

    hf4/bin/python -m tests.oracles.record_training tests/oracles/training_4.37.2.npz

The cases are those of training_cases.py, the weights of seeded.py. The file holds `facts`, JSON:
versions, and for each case the problem type chosen and the keys and shapes of the gradients; and
for each case `loss`, `logits`, `training` (the logits in training, with the dropout of dropout.py),
in float64, and `gradients` of these keys end to end, in float32.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
import torch
import transformers

from tests.oracles.dropout import visible_dropout
from tests.oracles.record_reference import SEED, build
from tests.oracles.reference_cases import tokens
from tests.oracles.training_cases import Case, all_cases


def record(case: Case) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and arrays of one case."""
    with torch.no_grad():
        model = build(case)
    ids, mask, labels = (torch.from_numpy(x) for x in (*tokens(), case["labels"]))
    answer = model(ids, attention_mask=mask, labels=labels)
    answer.loss.backward()
    with visible_dropout():
        training = model.train()(ids, attention_mask=mask).logits
    gradients = {
        key: parameter.grad.float()
        for key, parameter in model.named_parameters()
        if parameter.grad is not None and key.startswith(case["gradients of"])
    }
    found = {
        "loss": answer.loss,
        "logits": answer.logits,
        "training": training,
        "gradients": torch.cat([gradient.flatten() for gradient in gradients.values()]),
    }
    facts = {
        "problem type": model.config.problem_type,
        "gradients": {key: list(gradient.shape) for key, gradient in gradients.items()},
    }
    return facts, {key: tensor.detach().numpy() for key, tensor in found.items()}


def main(path: str) -> None:
    """Record everything into `path`."""
    transformers.logging.set_verbosity_error()
    torch.set_default_dtype(torch.float64)
    facts: dict[str, Any] = {
        "recorded with": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seed": SEED,
        "cases": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for name, case in all_cases().items():
        facts["cases"][name], found = record(case)
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez_compressed(path, facts=text, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
