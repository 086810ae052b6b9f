"""Record what the models of transformers 4.37.2 answer, into `reference_4.37.2.npz`.

By hand, from the root of the repository, in an environment of its own:

    python3.11 -m venv hf4
    hf4/bin/pip install transformers==4.37.2 "huggingface_hub<1" "numpy<2.5" torch
    hf4/bin/python -m tests.oracles.record_reference tests/oracles/reference_4.37.2.npz

The models and the calls are those of reference_cases.py, the weights of seeded.py. The file holds
`numbers`, all answers in float64 end to end, and `facts`, JSON: versions, seed, signatures, what
fails there, keys and shapes of the weights, and for each call the names and shapes of its answers,
in the order of their numbers.
"""

from __future__ import annotations

import inspect
import json
import platform
import sys
import warnings
from typing import Any

import numpy as np
import torch
import transformers

from tests.oracles.reference_cases import BASE, CROSS, DECODER, TYPES, all_models, tokens
from tests.oracles.seeded import residues, uniform, weight

SEED = 0
CLASSES = (
    "EsmModel",
    "EsmForMaskedLM",
    "EsmForSequenceClassification",
    "EsmForTokenClassification",
)
Model = dict[str, Any]


def build(model: Model) -> torch.nn.Module:
    """The reference's model of a case, its weights from the seed, pruned."""
    made = getattr(transformers, model.get("class", "EsmModel"))
    config = transformers.EsmConfig(**{**BASE, **model["config"]})
    options = {} if model.get("pooler", True) else {"add_pooling_layer": False}
    built = made(config, **options).double().eval()
    for key, tensor in built.state_dict().items():
        if not key.endswith(("inv_freq", "lm_head.decoder.weight")):  # computed, and tied
            tensor.copy_(torch.from_numpy(weight(key, tuple(tensor.shape), SEED)))
    for heads in model.get("prune", ()):
        built.prune_heads(heads)
    return built


def flat(name: str, value: Any) -> dict[str, np.ndarray]:
    """The arrays of an answer; nested ones are `name.0`, `name.0.1`."""
    if isinstance(value, torch.Tensor):
        return {name: value.numpy()}
    return {
        key: array
        for place, part in enumerate(value)
        for key, array in flat(f"{name}.{place}", part).items()
    }


def shape(value: Any) -> Any:
    """A nested tuple with shapes in place of tensors."""
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    return None if value is None else [shape(part) for part in value]


def record(model: Model) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Facts of one model and its calls, and the numbers of its answers."""
    built = build(model)
    numbers: list[np.ndarray] = []
    calls: list[dict[str, Any]] = []
    answers: list[Any] = []
    for call in model["calls"]:
        arguments = {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in call.items()
        }
        if "past_of" in arguments:
            past = answers[arguments.pop("past_of")]
            arguments["past_key_values"] = past.past_key_values
        answers.append(getattr(built, arguments.pop("METHOD", "__call__"))(**arguments))
        if isinstance(answers[-1], tuple):
            calls.append({"tuple": shape(answers[-1])})
            continue
        named = answers[-1] if isinstance(answers[-1], dict) else {"contacts": answers[-1]}
        arrays = {key: x for name in named for key, x in flat(name, named[name]).items()}
        calls.append({"keys": list(named), "shapes": {key: x.shape for key, x in arrays.items()}})
        numbers += [x.ravel() for x in arrays.values()]
    facts = {
        "pruned_heads": json.loads(built.config.to_json_string()).get("pruned_heads", {}),
        "weights": {key: list(tensor.shape) for key, tensor in built.state_dict().items()},
        "calls": calls,
    }
    return facts, numbers


def signatures() -> dict[str, dict[str, Any]]:
    """Arguments of every `forward`, in order, with their defaults, or "required"."""
    found = {}
    for name in CLASSES:
        parameters = inspect.signature(getattr(transformers, name).forward).parameters
        found[name] = {
            one.name: "required" if one.default is one.empty else one.default
            for one in list(parameters.values())[1:]
        }
    return found


def failures() -> dict[str, str]:
    """What a user might ask of 4.37.2 and does not get, and how it fails."""
    ids, mask = (torch.from_numpy(x) for x in tokens())
    whole = torch.from_numpy(residues("steps", (2, 9)))
    states = torch.from_numpy(uniform("states", (2, 7, 12)))
    deep = torch.ones(2, 9, 9)
    asked = {}
    for kind in TYPES:
        positions = {"position_embedding_type": kind}
        encoder = build({"config": positions})
        asked[f"a mask (B, L, L), {kind}"] = lambda m=encoder: m(ids, attention_mask=deep)
        asked[f"encoder states without a decoder, {kind}"] = lambda m=encoder: m(
            ids, encoder_hidden_states=states
        )
        dropping = build({"config": {**positions, "token_dropout": True}})
        asked[f"embeddings with token dropout, {kind}"] = lambda m=dropping: m(
            inputs_embeds=uniform_like(ids), attention_mask=mask
        )
        decoder = build({"config": {**DECODER, **positions}})
        asked[f"two tokens a step, {kind}"] = lambda m=decoder: difference_of_steps(m, whole, 7)
        asked[f"one token a step, {kind}"] = lambda m=decoder: difference_of_steps(m, whole, 8)
        asked[f"a step with the past's mask, {kind}"] = lambda m=decoder: m(
            ids[:, 8:], attention_mask=mask, past_key_values=m(ids[:, :8]).past_key_values
        )
        cross = build({"config": {**CROSS, **positions}})
        asked[f"cross attention, {kind}"] = lambda m=cross: m(ids, encoder_hidden_states=states)
        cut = build({"config": positions, "prune": [{0: [1]}]})
        asked[f"contacts of a pruned model, {kind}"] = lambda m=cut: m.predict_contacts(ids, mask)
    return {name: outcome(question) for name, question in asked.items()}


def uniform_like(ids: torch.Tensor) -> torch.Tensor:
    """Embeddings for token ids."""
    return torch.from_numpy(uniform("embeds", (*ids.shape, BASE["hidden_size"])))


def difference_of_steps(decoder: torch.nn.Module, ids: torch.Tensor, first: int) -> float:
    """Largest difference of the tokens after `first`, in a step of their own, from one pass."""
    mask = torch.ones_like(ids)
    whole = decoder(ids, attention_mask=mask).last_hidden_state[:, first:]
    past = decoder(ids[:, :first], attention_mask=mask[:, :first]).past_key_values
    step = decoder(ids[:, first:], attention_mask=mask[:, first:], past_key_values=past)
    return float((step.last_hidden_state - whole).abs().max())


def outcome(question: Any) -> str:
    """What came of it: "works", "differs by …", or the error."""
    try:
        answer = question()
    except (RuntimeError, ValueError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    if isinstance(answer, float):
        return "works" if answer < 1e-9 else f"differs by {answer:.2g}"
    return "works"


def main(path: str) -> None:
    """Record everything into `path`."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_default_dtype(torch.float64)  # pruning makes layers of the default precision
    torch.set_grad_enabled(False)
    facts: dict[str, Any] = {
        "recorded with": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seed": SEED,
        "signatures": signatures(),
        "failures": failures(),
        "models": {},
    }
    numbers: list[np.ndarray] = []
    for name, model in all_models().items():
        facts["models"][name], more = record(model)
        numbers += more
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez_compressed(path, facts=text, numbers=np.concatenate(numbers))


if __name__ == "__main__":
    main(sys.argv[1])
