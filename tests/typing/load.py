"""Load a model and look at its logits, states and contacts."""

from typing import assert_type

import torch

from esm_pipeline import EsmForMaskedLM, EsmModel, EsmTokenizer

tokenizer = EsmTokenizer.from_pretrained("demo")
model = EsmForMaskedLM.from_pretrained("demo")
assert_type(tokenizer, EsmTokenizer)
assert_type(model, EsmForMaskedLM)

batch = tokenizer(["MKTAYIAK", "MLSDEDFKAVF"], return_tensors="pt", padding=True)
assert_type(batch["input_ids"], torch.Tensor)
with torch.no_grad():
    output = model(**batch, output_hidden_states=True)
assert_type(output.logits, torch.Tensor)
print(output.logits.softmax(-1).shape)
if output.hidden_states is not None:
    print(len(output.hidden_states), output.hidden_states[-1].shape)
assert_type(tokenizer.encode("MKT"), list[int])
print(tokenizer.decode(output.logits[0].argmax(-1).tolist()))
print(model.predict_contacts(batch["input_ids"], batch["attention_mask"]).shape)

encoder, info = EsmModel.from_pretrained("demo", output_loading_info=True, dtype=torch.float32)
assert_type(encoder, EsmModel)
print(sorted(info["missing_keys"]))
states = encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
assert_type(states, torch.Tensor)
