"""A head of one's own on the encoder, trained on the token of each sequence."""

import torch
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmModel, EsmTokenizer


class Stability(nn.Module):
    """One number for each sequence."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = EsmModel.from_pretrained(name, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) to (B,)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        scores: Tensor = self.head(states[:, 0])
        return scores.squeeze(-1)


tokenizer = EsmTokenizer.from_pretrained("demo")
model = Stability("demo")
batch = tokenizer(["MKTAYIAK", "MLSDEDFKAVF"], return_tensors="pt", padding=True)
loss = (
    (model(batch["input_ids"], batch["attention_mask"]) - torch.tensor([0.5, 1.5])).square().mean()
)
loss.backward()
weights = model.encoder.get_input_embeddings().weight
print(loss.item(), weights.grad is not None)

config = EsmConfig.from_pretrained("demo", num_hidden_layers=1)
config, unused = EsmConfig.from_pretrained("demo", return_unused_kwargs=True, colour="red")
print(config.hidden_size, sorted(unused))
