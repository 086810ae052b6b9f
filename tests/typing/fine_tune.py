"""Fine-tune a classifier of sequences with a plain loop, save it and classify with it."""

import torch
from torch.optim import AdamW

from esm_pipeline import EsmForSequenceClassification, EsmTokenizer, classify

sequences = [
    "MKTAYIAKQRQISFVKSHFSRQ",
    "MLSDEDFKAVFGMTRSAFANL",
    "MKKLLPTAAAGLLLLAAQPAMA",
    "MSKGEELFTG",
]
labels = torch.tensor([0, 1, 0, 1])

torch.manual_seed(0)
tokenizer = EsmTokenizer.from_pretrained("demo")
model = EsmForSequenceClassification.from_pretrained("demo", num_labels=2)
model.train()
optimizer = AdamW(model.parameters(), lr=1e-3)
losses: list[float] = []
for _ in range(3):
    batch = tokenizer(sequences, return_tensors="pt", padding=True)
    output = model(**batch, labels=labels)
    assert output.loss is not None
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(output.loss.item())
print(losses)

model.save_pretrained("classifier")
tokenizer.save_pretrained("classifier")
table = classify(sequences, "classifier")
print(table[["id", "label"]])
print(classify(sequences, model.eval())["label"].value_counts())
