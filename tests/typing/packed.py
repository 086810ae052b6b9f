"""Run a model on many sequences without padding."""

from typing import assert_type

import torch

from esm_pipeline import EsmForMaskedLM, iter_packed, optimize_for_inference

sequences = ["MKTAYIAKQRQISFVKSHFSRQ", "MLSDEDFKAVF", "MKV"]
model = optimize_for_inference(EsmForMaskedLM.from_pretrained("demo"), torch.bfloat16)
entropies: dict[int, float] = {}
for place, logits in iter_packed(model, sequences, token_budget=64):
    assert_type(logits, torch.Tensor)
    log_p = logits.float().log_softmax(-1)
    entropies[place] = -(log_p.exp() * log_p).sum(-1).mean().item()
print([entropies[place] for place in range(len(sequences))])
for place, states in iter_packed(model, sequences, output="representation", layer=2):
    print(place, states.shape)
